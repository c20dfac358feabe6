"""Where the tests of a module are: beside their like, or elsewhere for a reason."""

from __future__ import annotations

from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]

_CHECK = (
    "tests/finn/test_check.py tests/finn/test_interpret.py tests/finn/test_streams.py",
    "checked bit by bit on the small networks that go through it",
)
_RUNNER = (
    "tests/finn/test_runner.py tests/finn/test_costs.py",
    "runs in another process, and is seen by what comes back from it",
)
_FOLDING = (
    "tests/finn/test_folding.py tests/finn/test_prices.py",
    "one program in several files: seen by what is chosen and what it costs",
)
_SIMULATION = (
    "tests/finn/test_simulation_flow.py tests/finn/test_simulation_models.py",
    "a part of simulate, whose words are compared with the network's, and whose faults are found",
)
ELSEWHERE: dict[str, tuple[str, str]] = {
    "fxfactor/analysis/rows.py": (
        "tests/analysis/test_distributions.py",
        "every figure of a row is checked against the tensors",
    ),
    "fxfactor/analysis/taps.py": ("tests/analysis/test_distributions.py", "what is tapped is seen in the rows"),
    "fxfactor/cli/__init__.py": ("tests/cli/test_app.py", "main alone, which starts app"),
    "fxfactor/arrays.py": ("tests/storage/test_hostile_files.py", "damaged and hostile arrays beside damaged folders"),
    "fxfactor/cli/transform.py": ("tests/cli/test_app.py", "the first commands of the command line"),
    "fxfactor/cli/options.py": (
        "tests/cli/test_app.py tests/cli/test_cli_explore.py",
        "what options say is seen where commands take them",
    ),
    "fxfactor/plan_passes.py": ("tests/test_recipe.py", "what transform makes of a plan"),
    "fxfactor/graph/differences.py": (
        "tests/graph/test_faithful.py",
        "what differs, and where, as a comparison tells it",
    ),
    "fxfactor/graph/faithful_in_training.py": ("tests/graph/test_faithful.py", "the other half of the comparison"),
    "fxfactor/graph/other_inputs.py": (
        "tests/graph/test_faithful.py tests/graph/test_guards.py",
        "a size that was frozen is found by them",
    ),
    "fxfactor/finn/comparison_result.py": ("tests/finn/test_comparison.py", "what a comparison shows"),
    "fxfactor/compression/run.py": ("tests/compression/test_compress.py", "what happens in a call of compress"),
    "fxfactor/compression/state_file.py": (
        "tests/compression/test_compress.py",
        "seen where a run goes on that was stopped",
    ),
    "fxfactor/storage/state_file.py": (
        "tests/exploration/test_state_file.py tests/exploration/test_hostile_state_files.py tests/compression/test_compress.py",
        "what explorations and compressions have in common",
    ),
    "fxfactor/finn/__init__.py": ("tests/finn/test_check.py", "names alone, and which extra is missing"),
    "fxfactor/finn/boards.py": (
        "tests/finn/test_runner.py tests/finn/test_costs.py",
        "a table of FINN's, with its refusal",
    ),
    "fxfactor/finn/checking.py": ("tests/finn/test_check.py", "the function is called check"),
    "fxfactor/finn/estimation.py": ("tests/finn/test_runner.py", "the function is called estimate, the process runner"),
    "fxfactor/finn/exact_reference.py": (
        "tests/finn/test_check.py tests/finn/test_runner.py",
        "the function is called reference",
    ),
    "fxfactor/finn/integer/forms.py": (
        "tests/finn/test_grouped.py",
        "descriptions of layers, tested where a form is chosen",
    ),
    "fxfactor/finn/process/grouped_mvau.py": (
        "tests/finn/test_grouped.py tests/finn/test_prepare.py",
        "needs finn-plus, and is loaded by the worker",
    ),
    "fxfactor/finn/process/integer_requant.py": (
        "tests/finn/test_requantizing.py",
        "needs finn-plus, and is loaded by the worker",
    ),
    "fxfactor/finn/process/unequal_splits.py": (
        "tests/finn/test_prepare.py tests/finn/test_other_networks.py",
        "needs finn-plus, and is loaded by the worker",
    ),
    "fxfactor/finn/integer/channels.py": ("tests/finn/test_other_networks.py", "with other kinds of networks"),
    "fxfactor/finn/integer/one_dimension.py": ("tests/finn/test_other_networks.py", "with other kinds of networks"),
    "fxfactor/finn/integer/resampling.py": ("tests/finn/test_other_networks.py", "with other kinds of networks"),
    "fxfactor/finn/layer_costs.py": ("tests/finn/test_costs.py", "the tests speak of costs"),
    "fxfactor/finn/preparation.py": ("tests/finn/test_prepare.py", "the function is called prepare"),
    "fxfactor/finn/result.py": ("tests/finn/test_runner.py", "what estimate answers"),
    "fxfactor/finn/rules.py": ("tests/finn/test_check.py", "one small network for each rule, refused in its words"),
    "fxfactor/finn/target.py": (
        "tests/finn/test_costs.py tests/finn/test_runner.py",
        "checks of what costs and estimates are asked for",
    ),
    **{
        f"fxfactor/finn/integer/{name}.py": _CHECK
        for name in (
            "arithmetic",
            "builder",
            "context",
            "emitting",
            "execute",
            "functions",
            "layers",
            "onnx_constants",
            "pooling",
            "quantizing",
            "shapes",
            "values",
        )
    },
    **{
        f"fxfactor/finn/process/{name}.py": _RUNNER
        for name in ("cache", "cost_worker", "fast_lookups", "load", "stand_ins", "start", "worker")
    },
    **{
        f"fxfactor/finn/process/folding/{name}.py": _FOLDING
        for name in ("candidates", "connections", "fold", "formulas", "program", "steps")
    },
    "fxfactor/finn/process/layer_streams.py": (
        "tests/finn/test_simulation_flow.py tests/finn/test_simulation_models.py",
        "what it tells is right where the simulation is",
    ),
    **{
        f"fxfactor/finn/simulation/{name}.py": _SIMULATION
        for name in ("compiling", "design", "result", "rtl", "running", "tools")
    },
    **{
        f"fxfactor/finn/synthesis/{name}.py": ("tests/finn/test_synthesis.py", "a part of synthesize")
        for name in ("cells", "counting", "flow", "result", "rtl_for_yosys", "run_yosys")
    },
    "fxfactor/finn/commands.py": (
        "tests/finn/test_simulation_flow.py tests/finn/test_simulation_models.py tests/finn/test_synthesis.py",
        "the commands are those of simulate and synthesize",
    ),
    "fxfactor/plan/layer_plan.py": ("tests/plan/test_plan.py", "the entry of a plan: no plan without it"),
    "fxfactor/planning/board.py": ("tests/finn/test_costs.py", "needs finn-plus, as all in tests/finn"),
}
"""Module -> the test files that test it instead, and why."""


@cache
def modules() -> tuple[str, ...]:
    """All modules of the package, as paths below the root: fxfactor/plan/ladder.py, passes/quantize.py."""
    files = (file for folder in ("fxfactor", "passes") for file in (ROOT / folder).rglob("*.py"))
    return tuple(
        sorted(str(file.relative_to(ROOT)) for file in files if "passes" not in file.relative_to(ROOT).parts[1:])
    )


def tests_of(module: str) -> tuple[str, ...]:
    """The test files of a module: tests/PACKAGE/test_MODULE.py, or test_PACKAGE_MODULE.py, or what ELSEWHERE says."""
    parts = Path(module).with_suffix("").parts
    folders, name = parts[:-1] if parts[0] == "passes" else parts[1:-1], parts[-1]
    folder = ROOT / "tests" / Path(*folders[:1])
    candidates = [folder / f"test_{name.strip('_')}.py", folder / f"test_{'_'.join(folders[-1:])}_{name}.py"]
    found = tuple(str(file.relative_to(ROOT)) for file in candidates if file.exists())
    return found or tuple(ELSEWHERE.get(module, ("", ""))[0].split())
