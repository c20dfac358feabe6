"""A correction of FINN and FINN+ 1.6.1: matrix units in RTL whose output queue is two words too short.

A unit that gives an output in every cycle (SIMD as wide as its rows) has as many on the way as its pipeline is deep when the
layer behind it stops, and takes in more before it stops itself. The queue of mvu_vvu_axi.sv holds no more than the pipeline, so
outputs are lost ("Overflowing output queue" in simulation, wrong numbers on a board). With this file imported, builds take a copy
of FINN's file with a queue that is long enough. Needs nothing of fxfactor.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from finn.custom_op.fpgadataflow.rtl.matrixvectoractivation_rtl import MVAU_rtl
from finn.custom_op.fpgadataflow.rtl.vectorvectoractivation_rtl import VVAU_rtl

NAME = "mvu_vvu_axi.sv"
SHORT = "MAX_IN_FLIGHT = CORE_PIPELINE_DEPTH;"
LONG = "MAX_IN_FLIGHT = CORE_PIPELINE_DEPTH + 2;  // two more come in before idle is seen"
FOLDER = "longer_output_queues"
"""Beside the folders of generated code, so that all units share one copy."""


def corrected(file: str, code_folder: str) -> str:
    """The path of a copy of FINN's file with a longer queue; FINN's own where it has another queue than is known here."""
    text = Path(file).read_text()
    if LONG in text:
        return file
    if text.count(SHORT) != 1:
        warnings.warn(f"{file} has another output queue than FINN+ 1.6.1; it is taken as it is", stacklevel=2)
        return file
    copy = Path(code_folder).parent / FOLDER / NAME
    wanted = text.replace(SHORT, LONG)
    if not copy.is_file() or copy.read_text() != wanted:
        copy.parent.mkdir(parents=True, exist_ok=True)
        draft = copy.with_name(f"{NAME}.{os.getpid()}")
        draft.write_text(wanted)
        draft.replace(copy)
    return str(copy)


def _correct(kind: Any) -> None:
    """Let a layer name the copy wherever it named FINN's file."""
    listed, instantiated = kind.get_rtl_file_list, kind.instantiate_ip

    def get_rtl_file_list(self: Any, abspath: bool = False) -> list[str]:
        files = listed(self, abspath)
        folder = self.get_nodeattr("code_gen_dir_ipgen")
        return [corrected(each, folder) if abspath and Path(each).name == NAME else each for each in files]

    def instantiate_ip(self: Any, cmd: list[str]) -> None:
        before, folder = len(cmd), self.get_nodeattr("code_gen_dir_ipgen")
        instantiated(self, cmd)
        for index in range(before, len(cmd)):
            command, _, file = cmd[index].rpartition(" ")
            if Path(file).name == NAME:
                cmd[index] = f"{command} {corrected(file, folder)}"

    kind.get_rtl_file_list, kind.instantiate_ip = get_rtl_file_list, instantiate_ip
    kind.has_longer_output_queues = True


def register() -> None:
    """Correct FINN in this process, once."""
    for kind in (MVAU_rtl, VVAU_rtl):
        if not vars(kind).get("has_longer_output_queues"):
            _correct(kind)


def step_take_longer_output_queues(model: Any, cfg: Any) -> Any:
    """The first step of a build. The model is as it was."""
    register()
    return model


register()
