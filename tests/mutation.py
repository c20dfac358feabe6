"""Do the tests notice? `make mutation` changes one line of the package at a time and runs the tests near it.

    python tests/mutation.py --named                 the changes in named_mutations.py, each of which must be noticed
    python tests/mutation.py --sample 40 --seed 3    changes drawn at random over all packages

Everything happens on a copy of the tree in a temporary folder, one mutation at a time. The tests of the module come first
(the folder rule of test_layout.py), then the test files that import it, then those of the modules that import it; the first
failure ends the run. A run may take eight times what the same tests took where they passed, and three minutes more, so that a
loop without end counts as noticed. The process that runs the tests is forked from one that has imported torch and the like already.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from layout import ROOT, modules, tests_of
from mutation_operators import Mutation, mutations_of
from named_mutations import NAMED

PRELOADED = ("torch", "torchvision", "brevitas.nn", "brevitas.quant", "onnx", "qonnx.core.modelwrapper", "networkx", "scipy.optimize",
             "hypothesis", "pytest", "rich.table", "typer.testing", "torch.fx", "torch.export", "safetensors.torch")  # fmt: skip
FINDER = '''
import importlib.util, os, sys


class CopyFinder:
    """Finds the copy, whatever an editable installation has put in front."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("fxfactor", "fxfactor.passes"):
            folder = os.path.join({root!r}, *name.split("."))
            return importlib.util.spec_from_file_location(
                name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
            )


sys.meta_path.insert(0, CopyFinder)
'''


# ---- the copy, and pytest in it ----


def copy_tree(root: Path) -> None:
    """All files of the repository, and fxfactor with its passes as they are installed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    shutil.copytree(root / "passes", root / "fxfactor" / "passes")
    (root / "sitecustomize.py").write_text(FINDER.format(root=str(root)))


def in_copy(root: Path, module: str) -> Path:
    return root / ("fxfactor/" + module if module.startswith("passes/") else module)


def run_tests(root: Path, files: Iterable[str], limit: float, first_only: bool = True) -> tuple[int | None, str]:
    """pytest's exit code, None where the time was up, and what it printed; its report is left in times.xml."""
    report, output = root / "times.xml", root / "output.txt"
    report.unlink(missing_ok=True)
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line", "-m", "not slow", *files]
    arguments.append(f"--junitxml={report}")
    child = os.fork()
    if child == 0:
        _become_pytest(root, ["-x", *arguments] if first_only else arguments, output)
    deadline, ended, status = time.monotonic() + limit, 0, 0
    try:
        while not ended and time.monotonic() < deadline:
            time.sleep(0.05)
            ended, status = os.waitpid(child, os.WNOHANG)
    finally:  # also what the tests may have left behind, and where this script is stopped
        _kill_group(child)
    if not ended:
        os.waitpid(child, 0)
        return None, output.read_text(errors="replace")
    return os.waitstatus_to_exitcode(status), output.read_text(errors="replace")


def _kill_group(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def _become_pytest(root: Path, arguments: list[str], output: Path) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        os.chdir(root)
        os.environ["PYTHONPATH"] = str(root)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(root))
        exec((root / "sitecustomize.py").read_text(), {})
        import pytest

        code = int(pytest.main(arguments))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ---- which tests, and how long they take ----


@cache
def imports_of(file: Path) -> frozenset[str]:
    """The modules of the package that a file imports, lazily exported names followed to their homes."""
    known, homes, found = set(modules()), _homes(), set()
    text = file.read_text()

    def add(dotted: str) -> None:
        path = dotted.replace("fxfactor.", "fxfactor/", 1).replace(".", "/")
        path = path.removeprefix("fxfactor/") if path.startswith("fxfactor/passes/") else path
        for candidate in (f"{path}.py", f"{path}/__init__.py"):
            if candidate in known:
                found.add(candidate)

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fxfactor":
            add(node.module)
            for alias in node.names:
                add(f"{node.module}.{alias.name}")
                found.update(homes.get((node.module, alias.name), ()))
    for name in re.findall(r"\bfxfactor\.(\w+)", text):
        found.update(homes.get(("fxfactor", name), ()))
    return frozenset(found)


@cache
def _homes() -> dict[tuple[str, str], tuple[str, ...]]:
    """(package, public name) -> the module where it lives, read from the packages' own imports."""
    homes: dict[tuple[str, str], tuple[str, ...]] = {}
    for module in modules():
        if module.endswith("__init__.py"):
            package = module.removesuffix("/__init__.py").replace("passes", "fxfactor/passes").replace("/", ".")
            for node in ast.walk(ast.parse((ROOT / module).read_text())):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fxfactor"):
                    home = node.module.replace(".", "/") + ".py"
                    home = home.removeprefix("fxfactor/") if home.startswith("fxfactor/passes/") else home
                    for alias in node.names:
                        homes[package, alias.name] = (home,)
    return homes


@cache
def stages(module: str) -> tuple[tuple[str, ...], ...]:
    """Test files for a module, nearest first: its own, those that import it, those of the modules that import it."""
    files = {
        str(f.relative_to(ROOT)): imports_of(f)
        for f in sorted((ROOT / "tests").rglob("test_*.py"))
        if f.name != "test_layout.py"
    }
    own = tuple(f for f in tests_of(module) if f in files)
    direct = tuple(f for f, imports in files.items() if module in imports and f not in own)
    users = {m for m in modules() if module in imports_of(ROOT / m)}
    further = [
        f for f in files if f not in (*own, *direct) and (files[f] & users or any(f in tests_of(u) for u in users))
    ]
    return own, direct, tuple(further)


class Times:
    """Seconds that each test file takes, learnt from runs in which all passed; of a file not seen yet UNKNOWN is assumed."""

    UNKNOWN = 10.0

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file is not None and file.exists() else {}

    def of(self, files: Iterable[str]) -> float:
        return sum(self.seconds.get(each, self.UNKNOWN) for each in files)

    def learn(self, files: Iterable[str], report: Path) -> None:
        """Take over what pytest's report says of test files that have passed."""
        measured: dict[str, float] = dict.fromkeys(files, 0.0)
        for case in ElementTree.parse(report).iter("testcase"):
            measured[case.get("classname", "").replace(".", "/") + ".py"] += float(case.get("time", 0))
        self.seconds.update(measured)
        if self.file is not None:
            self.file.write_text(json.dumps(self.seconds, indent=1))


# ---- mutations ----


def named() -> list[tuple[str, Mutation]]:
    """The mutations of named_mutations.py; one whose text is no longer there ends the script."""
    found = []
    for name, (file, before, after) in NAMED.items():
        source = (ROOT / file).read_text()
        if source.count(before) != 1:
            raise SystemExit(f"named mutation {name!r}: {before!r} stands {source.count(before)} times in {file}")
        start = source.index(before)
        found.append((name, Mutation(file, "named", start, start + len(before), after)))
    return found


def sample(count: int, seed: int, without: str = "", within: str = "") -> list[tuple[str, Mutation]]:
    """`count` mutations at different lines: each package has its share by size, and one at least.

    Modules whose path contains `without` are left out: those of finn, say, where finn-plus is not installed. `within`: only
    modules whose path contains it, such as one that is new.
    """
    draw = random.Random(seed)
    packages: dict[str, dict[tuple[str, int], list[Mutation]]] = defaultdict(lambda: defaultdict(list))
    for module in modules():
        if (without and without in module) or within not in module:
            continue
        source = (ROOT / module).read_text()
        for mutation in mutations_of(module, source):
            packages[str(Path(module).parent)][module, mutation.line(source)].append(mutation)
    total = sum(len(each) for each in packages.values())
    chosen: list[Mutation] = []
    for lines in packages.values():
        share = max(1, round(count * len(lines) / total))
        chosen += [draw.choice(lines[key]) for key in draw.sample(sorted(lines), min(share, len(lines)))]
    draw.shuffle(chosen)
    return [(f"{seed}.{index}", mutation) for index, mutation in enumerate(chosen[:count])]


def is_noticed(mutation: Mutation, root: Path, times: Times, widen: float) -> tuple[bool, str]:
    """Whether a test fails, and which (as pytest names it), or what else happened."""
    path = in_copy(root, mutation.file)
    source = path.read_text()
    ran: list[str] = []
    path.write_text(mutation.apply(source))
    try:
        for stage in stages(mutation.file):
            files = _affordable(stage, times, widen) if ran else list(stage)
            if not files:
                continue
            limit = 180 + 8 * times.of(files)
            code, _ = run_tests(root, files, limit)
            ran += files
            if code is None:
                return True, f"time limit of {limit:.0f} s"
            if code not in (0, 5):
                return True, next(_failed_in(root / "times.xml"), f"exit code {code}")
            times.learn(files, root / "times.xml")
    finally:
        path.write_text(source)
    return False, f"{len(ran)} test files pass: {', '.join(Path(each).name for each in ran)}"


def _failed_in(report: Path) -> Iterator[str]:
    """The tests that failed in pytest's report, as pytest names them; nothing where a file could not be read at all."""
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        if case.find("failure") is not None or (case.find("error") is not None and case.get("classname")):
            yield f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"


def failing_anyway(root: Path, tests: Iterable[str]) -> set[str]:
    """Those of the tests that fail on the unchanged tree too: what they say of a mutation is worth nothing."""
    wanted = sorted(set(tests))
    if not wanted:
        return set()
    run_tests(root, wanted, 4 * 3600, first_only=False)
    return set(_failed_in(root / "times.xml"))


def _affordable(files: Iterable[str], times: Times, seconds: float) -> list[str]:
    """As many of the files as fit into `seconds`, the quick ones first."""
    chosen, left = [], seconds
    for each in sorted(files, key=lambda each: times.of([each])):
        left -= times.of([each])
        if left < 0:
            break
        chosen.append(each)
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--named", action="store_true", help="the mutations of named_mutations.py")
    parser.add_argument("--only", default="", help="of those, the ones whose name contains this")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="N mutations drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", default="", metavar="WORD", help="no samples of modules whose path contains this")
    parser.add_argument(
        "--within", default="", metavar="WORD", help="samples of modules whose path contains this alone"
    )
    parser.add_argument("--widen", type=float, default=90, metavar="SECONDS", help="of each further round of tests")
    parser.add_argument("--times", type=Path, metavar="JSON", help="keep the times of the tests here")
    parser.add_argument("--list", action="store_true", help="only show the mutations")
    options = parser.parse_args()
    chosen = [each for each in named() if options.only in each[0]] if options.named or options.only else []
    chosen += sample(options.sample, options.seed, options.without, options.within) if options.sample else []
    if not chosen:
        parser.error("give --named, --only or --sample")
    if options.list:
        for name, mutation in chosen:
            print(f"{name} {mutation.file}\n{mutation.diff((ROOT / mutation.file).read_text())}")
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in PRELOADED:
            importlib.import_module(each)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the copy goes
    alive = 0
    with tempfile.TemporaryDirectory(prefix="fxfactor-mutation-") as folder:
        root = Path(folder)
        copy_tree(root)
        times = Times(options.times)
        killers: dict[str, list[str]] = defaultdict(list)
        for name, mutation in chosen:
            source = in_copy(root, mutation.file).read_text()  # the tree may change meanwhile
            noticed, by = is_noticed(mutation, root, times, options.widen)
            alive += not noticed
            if "::" in by:
                killers[by].append(name)
            where = f"{mutation.file}:{mutation.line(source)}"
            print(f"{'killed' if noticed else 'ALIVE '} {name} {where} ({mutation.operator}) by {by}", flush=True)
            if not noticed:
                print(mutation.diff(source), flush=True)
        for test in failing_anyway(root, killers):
            print(f"{test} fails on the unchanged tree too, so nothing noticed {', '.join(killers[test])}")
            alive += len(killers[test])
    print(f"{len(chosen) - alive} of {len(chosen)} noticed ({1 - alive / len(chosen):.1%})")
    return 1 if alive and options.named else 0


if __name__ == "__main__":
    sys.exit(main())
