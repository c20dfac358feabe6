"""Pictures and the page: complete, self-contained, readable in a browser, and clear about bad input."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxfactor
from fxfactor import PreconditionError
from fxfactor.analysis.distributions import distributions
from fxfactor.analysis.table import Distributions
from fxfactor.report import report

pytest.importorskip("matplotlib")

from fxfactor.report import plots
from fxfactor.report.architecture import architecture, outline
from fxfactor.report.style import save_png, to_svg


class Net(nn.Module):
    """Stem, one residual block, pooling and classifier: 3×12×12 → 10."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.classifier((x + self.norm(self.conv(x))).relu().mean((2, 3)))


def images() -> Tensor:
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def make_net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def variants() -> dict[str, GraphModule]:
    levels: tuple[Any, ...] = (0, 2, "depthwise")
    return {f"level {each}": fxfactor.transform(make_net(), each, 4, example_inputs=images()[:1]) for each in levels}


@pytest.fixture(scope="module")
def table(variants: dict[str, GraphModule]) -> Distributions:
    return distributions(make_net(), variants, [images()])


FINN = {"board": "ZCU104", "fps": 1234.5, "total": {"lut": 51234, "bram18": 1}, "available": {"lut": 230400}, "new": {"a": 1},
        "layers": [{"site": "stem", "kind": "MVAU", "cycles": 99}, 3], "software": ["Transpose"]}  # fmt: skip


@pytest.fixture(scope="module")
def page(variants: dict[str, GraphModule], table: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(
        variants, tmp_path_factory.mktemp("page") / "report.html", original=make_net(), distributions=table,
        accuracy={"original": 0.9, "level 2": 0.85}, finn=FINN, title="A <small> network",
    )  # fmt: skip


def test_the_page_has_everything(page: Path, table: Distributions) -> None:
    text = page.read_text(encoding="utf-8")
    for section in ("findings", "costs", "finn", "pictures", "layers", "skips", "architecture", "rows", "plan"):
        assert f'<section id="{section}">' in text, section
    for words in (
        "A &lt;small&gt; network",
        "85.0%",
        "-5.0",
        "1,234",
        "22%",
        "Transpose",
        "the first convolution",
        "schema_version",
    ):
        assert words in text, words
    assert text.count("<tr>") > len(table)


def test_the_page_needs_nothing_else(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    outside = re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"', text)
    assert outside == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_ids_are_unique_and_references_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', text)) <= set(ids)


def test_two_pages_are_alike(
    variants: dict[str, GraphModule], table: Distributions, page: Path, tmp_path: Path
) -> None:
    again = report(
        variants, tmp_path / "again.html", original=make_net(), distributions=table,
        accuracy={"original": 0.9, "level 2": 0.85}, finn=FINN, title="A <small> network",
    )  # fmt: skip
    assert again.read_text() == page.read_text()


def test_a_page_without_measurements(variants: dict[str, GraphModule], tmp_path: Path) -> None:
    text = report(variants["level 2"], tmp_path / "report.html").read_text()
    assert "Without distributions" in text
    assert '<section id="pictures">' not in text
    assert '<section id="layers">' in text


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(page: Path, tmp_path: Path, dark: bool) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    shot = tmp_path / "shot.png"
    names = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    names += " disable-component-update disable-sync window-size=1200,2400"
    flags = [f"--{name}" for name in names.split()]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", page.as_uri()],
        check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    from matplotlib.image import imread

    picture = imread(shot)[..., :3]
    assert picture.shape[:2] == (2400, 1200)
    assert picture.std() > 0.05  # something is drawn
    assert (np.median(picture) < 0.3) == dark


DRAWINGS = {
    "ranges": lambda table: plots.ranges(table, "output"),
    "between": lambda table: plots.ranges(table, "between"),
    "histograms": lambda table: plots.histograms(
        [row for row in table.where(variant="level 2", site="conv") if row.bins]
    ),
    "channels": lambda table: plots.channel_ranges(table, "between"),
    "errors": lambda table: plots.errors(table),
    "one": lambda table: plots.errors(table, ["level 2"]),
    "matrix": lambda table: plots.matrix(table, "sqnr_db", "between"),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_picture_is_drawn(table: Distributions, name: str, tmp_path: Path) -> None:
    figure = DRAWINGS[name](table)
    svg = to_svg(figure, name)
    ElementTree.fromstring(svg)
    assert "currentColor" in svg
    assert to_svg(DRAWINGS[name](table), name) == svg
    save_png(figure, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 2000


def test_the_outline_has_layers_joins_and_poolings(variants: dict[str, GraphModule]) -> None:
    graph = outline(variants["level 2"])
    kinds = [data["box"].kind for _, data in graph.nodes(data=True)]
    assert kinds == ["input", "dense", "spatial", "pointwise", "join", "pooling", "linear", "output"]
    assert graph.in_degree("add") == 2
    ElementTree.fromstring(to_svg(architecture(fxfactor.capture(make_net(), images()[:1]), variants["level 2"]), "x"))


@pytest.mark.parametrize(("settings", "message"), [
    ({"qmodel": nn.Linear(2, 2)}, "found Linear"),
    ({"qmodel": {}}, "without entries"),
    ({"accuracy": {"level 9": 0.5}}, "given for 'level 9'; known are 'original', 'level 0'"),
    ({"accuracy": {"level 2": 85.0}}, "a share from 0 to 1, found 85.0"),
    ({"distributions": Distributions((), 0)}, "must be those of 'level 0', 'level 2'"),
])  # fmt: skip
def test_bad_input_is_refused(
    variants: dict[str, GraphModule], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(PreconditionError, match=message):
        report(**{"qmodel": variants, "path": tmp_path / "report.html", **settings})
    assert not (tmp_path / "report.html").exists()


def test_nothing_to_draw_is_refused(table: Distributions) -> None:
    with pytest.raises(PreconditionError, match="no rows with 'sqnr_db' of 'nowhere'"):
        plots.matrix(table, "sqnr_db", "nowhere")


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer
    from typer.testing import CliRunner

    from fxfactor.cli import report as cli

    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(cli.distributions)
    app.command()(cli.report)
    np.save("images.npy", images().numpy())
    source = f"{__name__}:make_net"
    fxfactor.save(fxfactor.transform(make_net(), 2, 4, example_inputs=images()[:1]), "l2", source=source)
    run = CliRunner().invoke(app, ["distributions", "l2", "--images", "images.npy"])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["report", "l2", "--distributions", "distributions.json", "-o", "page.html"])
    assert run.exit_code == 0, run.output
    assert '<section id="pictures">' in Path("page.html").read_text()
