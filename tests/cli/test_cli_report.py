"""fxfactor report on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hardware_results import COMPRESSED, SIMULATION, SYNTHESIS
from report_helpers import images, make_net

import fxfactor

pytest.importorskip("matplotlib")


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
    run = CliRunner().invoke(app, ["distributions", "l2", "--images", "images.npy", "--model", source])
    assert run.exit_code == 0, run.output
    Path("simulation.json").write_text(SIMULATION.to_json())
    Path("synthesis.json").write_text(SYNTHESIS.to_json())
    Path("result.json").write_text(COMPRESSED.to_json())
    hardware = ["--simulation", "simulation.json", "--synthesis", "synthesis.json", "--compressed", "result.json"]
    measured = ["--distributions", "distributions.json"]
    run = CliRunner().invoke(app, ["report", "l2", "--model", source, *measured, *hardware, "-o", "page.html"])
    assert run.exit_code == 0, run.output
    for section in ("candidates", "pictures", "simulation", "synthesis"):
        assert f'<section id="{section}">' in Path("page.html").read_text()
