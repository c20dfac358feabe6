"""A matrix unit that gives an output in every cycle loses none where its reader stops: with FINN's own file it does."""

from __future__ import annotations

import importlib.util
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from simulation_helpers import needs_verilator

import fxfactor.finn
from fxfactor.errors import FinnError
from fxfactor.finn.commands import Commands
from fxfactor.finn.simulation.compiling import Compiler
from fxfactor.finn.simulation.rtl import TOP, Code, hoist_leaf_loads
from fxfactor.finn.simulation.tools import find_tools

pytestmark = pytest.mark.finn

HERE = Path(__file__).parent
WRAPPER = """module {top} (
  input logic clk, input logic rst_n,
  input logic [{bits}:0] in0_data, input logic in0_valid, output logic in0_ready,
  output logic [15:0] out0_data, output logic out0_valid, input logic out0_ready
);
  mvu_vvu_axi #(.IS_MVU(1), .VERSION(2), .MW({simd}), .MH(1), .PE(1), .SIMD({simd}), .ACTIVATION_WIDTH(4), .WEIGHT_WIDTH(4),
    .ACCU_WIDTH(16), .NARROW_WEIGHTS(1), .FORCE_BEHAVIORAL(1)) core (
    .ap_clk(clk), .ap_clk2x(clk), .ap_rst_n(rst_n),
    .s_axis_weights_tdata({{4'b0000, {{{simd}{{4'b0001}}}}}}), .s_axis_weights_tvalid(1'b1), .s_axis_weights_tready(),
    .s_axis_input_tdata(in0_data), .s_axis_input_tvalid(in0_valid), .s_axis_input_tready(in0_ready),
    .m_axis_output_tdata(out0_data), .m_axis_output_tvalid(out0_valid), .m_axis_output_tready(out0_ready));
endmodule
"""


def library() -> Path:
    spec = find_spec("finn")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("finn-plus is not installed")
    return Path(spec.submodule_search_locations[0]) / "finn-rtllib" / "mvu"


def run(simd: int, unit: str, tmp_path: Path) -> str:
    """What the driver says of a unit with this text of mvu_vvu_axi.sv."""
    files = {path.name: path.read_text() for path in library().glob("*.sv")}
    files["mvu_vvu_axi.sv"] = unit
    files["add_multi.sv"] = hoist_leaf_loads(files["add_multi.sv"], Path("add_multi.sv"))
    bits = -(-4 * simd // 8) * 8  # whole bytes
    files[f"{TOP}.sv"] = WRAPPER.format(top=TOP, simd=simd, bits=bits - 1)
    code = Code(files, {}, (bits,), (16,))
    with Commands(time.monotonic() + 600) as commands:
        built = Compiler(find_tools(), tmp_path / "store", 1).build([code], commands, lambda step: None)
        program = tmp_path / "stall"
        native = built.simulator.parent
        commands.run(
            [find_tools().compiler, "-std=c++17", f"-I{native}", HERE / "stall_matrix_unit.cpp", "-o", program, "-ldl"],
            tmp_path,
            "compiling the driver",
        )
        return str(commands.run([program, built.libraries[code.key], "40"], tmp_path, "stalling the unit"))


class Unit:
    """What the correction needs of FINN's layer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get_nodeattr(self, name: str) -> str:
        return str(self.folder / "code_gen_ipgen_MVAU_rtl_0")

    def get_rtl_file_list(self, abspath: bool = False) -> list[str]:
        folder = f"{self.folder}/mvu/" if abspath else ""
        return [f"{folder}mvu.sv", f"{folder}mvu_vvu_axi.sv"]

    def instantiate_ip(self, cmd: list[str]) -> None:
        cmd += [f"add_files -norecurse {each}" for each in self.get_rtl_file_list(abspath=True)]
        cmd.append("create_bd_cell -type hier -reference MVAU_rtl_0 /MVAU_rtl_0")


@pytest.fixture
def correction(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The file that builds import, in this process, with a layer in the place of FINN's."""
    names = {"matrixvectoractivation_rtl": "MVAU_rtl", "vectorvectoractivation_rtl": "VVAU_rtl"}
    kinds = {name: type(name, (Unit,), {}) for name in names.values()}
    for file, name in names.items():
        module = SimpleNamespace(**{name: kinds[name]})
        monkeypatch.setitem(sys.modules, f"finn.custom_op.fpgadataflow.rtl.{file}", module)
    place = Path(fxfactor.finn.__file__).parent / "process" / "output_queues.py"
    spec = importlib.util.spec_from_file_location("output_queues_tested", place)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    found.register()  # again: nothing is corrected twice
    return found


@needs_verilator
@pytest.mark.slow
def test_finns_own_file_loses_outputs(tmp_path: Path) -> None:
    with pytest.raises(FinnError, match="Overflowing output queue"):
        run(6, (library() / "mvu_vvu_axi.sv").read_text(), tmp_path)


@needs_verilator
@pytest.mark.parametrize("simd", [6, *(pytest.param(simd, marks=pytest.mark.slow) for simd in (2, 8, 9, 15, 17))])
def test_with_the_correction_none_is_lost(simd: int, correction: ModuleType, tmp_path: Path) -> None:
    unit = Path(correction.corrected(str(library() / "mvu_vvu_axi.sv"), str(tmp_path / "code"))).read_text()
    given, taken = map(int, run(simd, unit, tmp_path).split())
    assert given == taken > 1000


def test_builds_take_the_copy_and_share_it(correction: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mvu").mkdir()
    (tmp_path / "mvu" / "mvu_vvu_axi.sv").write_text(f"queue {correction.SHORT} of words\n")
    for kind in (correction.MVAU_rtl, correction.VVAU_rtl):
        unit, commands = kind(tmp_path), ["open_project"]
        copy = str(tmp_path / "longer_output_queues" / "mvu_vvu_axi.sv")
        assert unit.get_rtl_file_list(abspath=True) == [f"{tmp_path}/mvu/mvu.sv", copy]
        assert unit.get_rtl_file_list() == ["mvu.sv", "mvu_vvu_axi.sv"]
        unit.instantiate_ip(commands)
        assert commands[:3] == [
            "open_project",
            f"add_files -norecurse {tmp_path}/mvu/mvu.sv",
            f"add_files -norecurse {copy}",
        ]
        assert len(commands) == 4
    assert Path(copy).read_text() == f"queue {correction.LONG} of words\n"
    assert [each.name for each in Path(copy).parent.iterdir()] == ["mvu_vvu_axi.sv"]


def test_another_file_of_finns_is_taken_as_it_is(correction: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mvu_vvu_axi.sv").write_text("a queue that is long enough\n")
    with pytest.warns(UserWarning, match=r"another output queue than FINN\+ 1\.6\.1"):
        assert correction.corrected(str(tmp_path / "mvu_vvu_axi.sv"), str(tmp_path / "code")) == str(
            tmp_path / "mvu_vvu_axi.sv"
        )
