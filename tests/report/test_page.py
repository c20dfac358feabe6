"""Pictures and the page: complete, self-contained, readable in a browser, and clear about bad input."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_helpers import images, make_net
from torch import nn
from torch.fx import GraphModule

import fxfactor
from fxfactor import PreconditionError
from fxfactor.analysis.distributions import distributions
from fxfactor.analysis.table import Distributions
from fxfactor.report import report

pytest.importorskip("matplotlib")


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
    assert re.findall(r"<script[^>]*>", text) == ["<script>"]  # ours, in the page
    assert "fetch(" not in text
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


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(page: Path, tmp_path: Path, dark: bool) -> None:
    shot = tmp_path / "shot.png"
    names = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    names += " disable-component-update disable-sync window-size=1200,2400"
    flags = [f"--{name}" for name in names.split()]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run(
        [browser(), *flags, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", page.as_uri()],
        check=True, capture_output=True,
    )  # fmt: skip
    from matplotlib.image import imread

    picture = imread(shot)[..., :3]
    assert picture.shape[:2] == (2400, 1200)
    assert picture.std() > 0.05  # something is drawn
    assert (np.median(picture) < 0.3) == dark


STEPS = """
const shown = (rows) => rows.filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
const table = document.querySelector("#layers table"), rows = () => [...table.tBodies[0].rows], said = [];
const tell = () => said.push(shown(rows()).join(" "));
tell();
table.tHead.rows[0].cells[6].querySelector("button").click(); tell();
said.push(table.tHead.rows[0].cells[6].getAttribute("aria-sort"));
table.tHead.rows[0].cells[6].querySelector("button").click(); tell();
table.tHead.rows[0].cells[0].querySelector("button").click(); tell();
const chooser = document.querySelector("select");
said.push([...chooser.options].map((option) => option.textContent).join("/"));
chooser.value = "level 2"; chooser.dispatchEvent(new Event("change"));
said.push([...document.querySelectorAll("#layers details details")].filter((part) => !part.hidden).length);
const long = [...document.querySelectorAll("#rows table")].find((each) => each.tBodies[0].rows.length > 8);
const input = long.closest(".scroll").previousElementSibling.querySelector("input");
input.value = "spatial"; input.dispatchEvent(new Event("input"));
said.push(shown([...long.tBodies[0].rows]).length < long.tBodies[0].rows.length);
location.hash = "#plan";
setTimeout(() => { said.push(document.querySelector("#plan > details").open);
  document.body.innerHTML = ""; document.body.append(said.join("|")); }, 100);
"""


@pytest.mark.slow
def test_tables_sort_and_filter_and_networks_are_chosen(page: Path, tmp_path: Path) -> None:
    acting = tmp_path / "acting.html"
    acting.write_text(
        page.read_text(encoding="utf-8").replace("</body>", f"<script>{STEPS}</script></body>"), encoding="utf-8"
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run(
        [browser(), *flags, "--dump-dom", acting.as_uri()], check=True, capture_output=True, text=True
    )
    said = re.search(r"<body>(.*?)</body>", done.stdout, re.DOTALL)
    assert said is not None
    first, by_macs, way, upwards, by_name, names, left, fewer, is_open = said[1].split("|")
    assert sorted(first.split()) == sorted(by_macs.split()) == sorted(by_name.split())
    assert by_macs.split() == upwards.split()[::-1] != first.split()
    assert way == "descending"
    assert by_name.split() == sorted(first.split(), reverse=True)
    assert names == "all networks/level 0/level 2/level depthwise/original"
    assert (left, fewer, is_open) == ("1", "true", "true")


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
