"""The zoo: plans that `fxfactor.compress` found, each with what was measured of it. zoo/NAME.json, zoo/rows.json, docs/zoo.md.

    python benchmarks/compress.py out --fps 10000 --epochs 6 --plans 4
    python benchmarks/plan_zoo.py add out --name resnet20-zcu104-10000 --run "--fps 10000 --epochs 6 --plans 4" --cpu-minutes 78
    python benchmarks/plan_zoo.py page

`add` takes what the run chose: accuracy on the 500 test images that chose nothing, our estimate, and FINN's hardware simulated
on two of these images, every word compared. `page` writes docs/zoo.md anew from the rows.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "zoo" / "rows.json"
CHOSE = 500
"""Test images by which candidates were chosen (benchmarks/compress.py); the others judge."""
HEAD = """# Zoo

Plans that `fxfactor.compress` found for a network, a board and a speed, each with what was measured of it. A plan says groups,
channels and bits of every layer; take it for the same network with weights of your own:

    fxfactor transform my.nets:resnet20 --weights resnet20.pth --plan zoo/{first}.json --images train.npz -o compressed

Written by `benchmarks/plan_zoo.py` from the runs named below (one run each, `python benchmarks/compress.py out …`; one thread of
a shared machine). Accuracy: CIFAR-10, the 500 test images that chose nothing, and one standard error; the original has {original}
on them. Look-up tables, block RAMs, DSPs and UltraRAMs are our estimates before synthesis; nobody has run Vivado on these
networks. *Simulated*: the RTL that FINN generates, clock by clock, two frames, every word compared; frames/s by its cycles.

"""


def add(options: argparse.Namespace) -> None:
    """One run becomes a plan and a row."""
    import torch
    from data import find

    import fxfactor
    from fxfactor.exploration.rung import top1
    from fxfactor.quantization.plain_copy import freeze

    torch.set_num_threads(1)
    out = Path(options.folder)
    result = json.loads((out / "result.json").read_text())
    model = find().cifar_resnet(options.depth).eval()
    images, labels = (part[CHOSE:] for part in find().cifar10("test"))
    judged = list(zip(images.split(250), labels.split(250), strict=True))
    share = top1(freeze(fxfactor.load(out / "best", model)).eval(), judged)
    prepared = json.loads((out / "build" / "estimate.json").read_text())
    simulated = fxfactor.finn.simulate(
        out / "model.onnx", images[:2], prepared["board"], options.target_fps, prepared["clock_ns"]
    )
    best, plan = result["best"], fxfactor.Plan.load(out / "plan.json")
    split = [layer for layer in plan.layers.values() if layer.groups is not None]
    row = {
        "name": options.name, "network": f"ResNet-{options.depth}", "data": "CIFAR-10", "target": result["target"],
        "accuracy": share, "error": (share * (1 - share) / len(labels)) ** 0.5,
        "original": top1(model, judged), "chosen_by": best["metric"], "epochs": best["epochs"],
        "layers": len(plan.layers), "split": len(split), "weight_bits": _mean(plan, "weight_bits"),
        "activation_bits": _mean(plan, "activation_bits"),
        **{name: best[name] for name in ("lut", "bram18", "dsp", "uram", "fps")},
        "simulated_fps": simulated.fps, "words": simulated.words, "wrong": sum(each.wrong for each in simulated.streams),
        "run": options.run, "cpu_minutes": options.cpu_minutes,
    }  # fmt: skip
    ROWS.parent.mkdir(exist_ok=True)
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else []
    rows = sorted([each for each in rows if each["name"] != options.name] + [row], key=lambda each: each["name"])
    shutil.copy(out / "plan.json", ROWS.parent / f"{options.name}.json")
    ROWS.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(row, indent=1))


def _mean(plan: Any, name: str) -> float:
    bits = [getattr(layer, name) for layer in plan.layers.values()]
    return sum(bits) / len(bits)


def page(rows: list[dict[str, Any]]) -> str:
    """docs/zoo.md."""
    heads = ("plan", "for", "layers split", "mean bits, weights / activations", "accuracy", "LUT", "BRAM18", "DSP", "URAM",
             "frames/s", "simulated", "found by", "CPU minutes")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        wrong = f"{row['wrong']:,} of {row['words']:,} words wrong" if row["wrong"] else f"{row['words']:,} words right"
        cells = (
            f"[{row['name']}](../zoo/{row['name']}.json)", f"{row['network']}, {row['target']}",
            f"{row['split']} of {row['layers']}",
            f"{row['weight_bits']:.1f} / {row['activation_bits']:.1f}", f"{row['accuracy']:.1%} ± {row['error']:.1%}",
            *(f"{row[name]:,}" for name in ("lut", "bram18", "dsp", "uram")), f"{row['fps']:,.0f}",
            f"{row['simulated_fps']:,.0f}, {wrong}", f"`{row['run']}`", f"{row['cpu_minutes']}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    first = rows[0]
    return HEAD.format(first=first["name"], original=f"{first['original']:.1%}") + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add")
    adding.add_argument("folder")
    adding.add_argument("--name", required=True)
    adding.add_argument("--run", required=True, help="options of benchmarks/compress.py")
    adding.add_argument("--cpu-minutes", type=int, required=True)
    adding.add_argument("--depth", type=int, default=20)
    commands.add_parser("page")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.command == "page":
        (ROOT / "docs" / "zoo.md").write_text(page(json.loads(ROWS.read_text())), encoding="utf-8")
        return
    speed = re.search(r"--fps (\S+)", options.run)
    options.target_fps = "max" if speed and speed[1] == "max" else int(speed[1]) if speed else 2000
    add(options)


if __name__ == "__main__":
    main()
