"""Yosys over many layers at a time, each in a process of its own, each counted once and kept."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from fxfactor.errors import FinnError
from fxfactor.files import write_text
from fxfactor.finn.commands import Commands, end
from fxfactor.finn.process.cache import drop_oldest, sweep
from fxfactor.finn.simulation.rtl import TOP, Code
from fxfactor.finn.synthesis.cells import Area, area_of
from fxfactor.finn.synthesis.rtl_for_yosys import (
    BLACK_BOXES,
    CELLS,
    LUT_RAMS,
    ROM_MAP,
    ROMS,
    Source,
    libraries_of,
    source_of,
)

YOSYS = "0.70"
"""The release of pyosys on PyPI that FINN's RTL was tried with."""
KEPT = 20_000
"""Counts in the cache; those used longest ago go first. One is 100 bytes."""

_RUNNER = Path(__file__).with_name("run_yosys.py")
_READ = (
    "read_slang --top {top} --allow-use-before-declare --ignore-assertions --ignore-timing "
    "-Wno-unconnected-output-port -Wno-unconnected-port {boxes} {files}"
)
_SYNTHESIS = "synth_xilinx -family {family} {ultra} -flatten -noiopad -noclkbuf -top {top} -run {steps}"
_MEMORIES = {
    "xc7": "-lib +/xilinx/lutrams_xc5v.txt -lib +/xilinx/brams_xc4v.txt -D HAS_SIZE_36 -D HAS_CASCADE -D HAS_MIXWIDTH_SDP",
    "xcup": "-lib {lut_rams} -lib +/xilinx/brams_xc4v.txt -D HAS_SIZE_36 -D HAS_MIXWIDTH_SDP -D HAS_ADDRCE",
}
"""Family -> which memories there are, as synth_xilinx has it; but look-up tables of UltraScale as `LUT_RAMS` says."""
_BLOCK_RAM_MAPS = {"xc7": "brams_xc6v_map.v", "xcup": "brams_xcu_map.v"}


@dataclass(frozen=True)
class Yosys:
    """`share` is its folder share/xilinx, `release` its version."""

    share: Path
    release: str


def find_yosys() -> Yosys:
    """Yosys in this Python environment. Raises FinnError that names the package to install where there is none."""
    spec = find_spec("pyosys")
    folders = [Path(each) / "share" / "xilinx" for each in (spec.submodule_search_locations or ())] if spec else []
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        raise FinnError(
            "required: Yosys, to count what the RTL takes; found: no package pyosys in this Python environment; install it with "
            f'`pip install "fxfactor[synthesize]"` or `pip install pyosys=={YOSYS}` (wheels for CPython on Linux and macOS)'
        )
    with suppress(PackageNotFoundError):
        return Yosys(found, version("pyosys"))
    return Yosys(found, "unknown")


def family_of(part: str) -> str:
    """Yosys' name for the family of a part. Raises FinnError for one that it does not know."""
    if part.startswith("xc7"):
        return "xc7"
    if part.startswith(("xczu", "xcu", "xck", "xcvu", "xcku")):
        return "xcup"
    raise FinnError(
        f"required: a part of Zynq-7000 or UltraScale+; found: {part}, which Yosys has no cells for; choose a board like ZCU104"
    )


@dataclass(frozen=True)
class Counter:
    """Counts for one `family` of parts, with what was counted before from the folder `store`, `jobs` layers at a time."""

    yosys: Yosys
    family: str
    has_ultra_ram: bool
    store: Path
    jobs: int

    def areas(
        self, codes: Iterable[Code], commands: Commands, progress: Callable[[str], None]
    ) -> tuple[dict[str, Area], int]:
        """Key of the code -> what it takes; and how many were counted just now."""
        self.store.mkdir(parents=True, exist_ok=True)
        sweep(self.store)
        libraries = libraries_of(self.yosys.share)
        sources = {code.key: source_of(code) for code in codes}
        places = {key: self.store / f"{self._key(source, libraries)}.json" for key, source in sources.items()}
        missing = {place: sources[key] for key, place in places.items() if not place.is_file()}
        self._count_all(missing, libraries, commands, progress)
        for place in places.values():
            os.utime(place)
        found = {key: Area(**json.loads(place.read_text())) for key, place in places.items()}
        drop_oldest(self.store, KEPT)
        return found, len(missing)

    def _key(self, source: Source, libraries: dict[str, str]) -> str:
        """A hash of all that a count depends on."""
        text = f"{self.yosys.release} {self._script(source)} {libraries} {source.key}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _count_all(
        self,
        missing: dict[Path, Source],
        libraries: dict[str, str],
        commands: Commands,
        progress: Callable[[str], None],
    ) -> None:
        if not missing:
            return
        with ThreadPoolExecutor(self.jobs) as pool:
            waiting = {
                pool.submit(self._count, source, place, libraries, commands) for place, source in missing.items()
            }
            try:
                while waiting:
                    progress(f"count layers ({len(missing) - len(waiting)} of {len(missing)})")
                    done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
            finally:
                for future in waiting:
                    future.cancel()
                for process in list(commands.running):
                    end(process)

    def _count(self, source: Source, place: Path, libraries: dict[str, str], commands: Commands) -> None:
        with tempfile.TemporaryDirectory(prefix=f".run-{os.getpid()}-", dir=self.store) as draft:
            folder = Path(draft)
            for name, text in {**source.files, **libraries, "script": self._script(source)}.items():
                (folder / name).write_text(text)
            for name, content in source.data.items():
                (folder / name).write_bytes(content)
            what = f"counting a layer ({next(iter(source.files))})"
            commands.run([sys.executable, _RUNNER, "script"], folder, what)
            told = json.loads((folder / "cells.json").read_text())
        try:
            area = area_of(told["design"]["num_cells_by_type"])
        except ValueError as error:
            raise FinnError(f"{what}: Yosys left {error}; report it with the file as a defect of fxfactor") from error
        write_text(place, json.dumps(asdict(area)), "keeping a count")

    def _script(self, source: Source) -> str:
        """What synth_xilinx does, with its step for memories done here."""
        files = " ".join([*(name for name in source.files if not name.endswith(".vh")), CELLS])
        boxes = " ".join(f"--blackboxed-module {name}" for name in BLACK_BOXES)
        ultra = "-uram" if self.has_ultra_ram else ""
        memories = _MEMORIES[self.family].format(lut_rams=LUT_RAMS)

        def steps(wanted: str) -> str:
            return _SYNTHESIS.format(family=self.family, ultra=ultra, top=TOP, steps=wanted)

        lines = [
            _READ.format(top=TOP, boxes=boxes, files=files),
            f"hierarchy -check -top {TOP}",
            steps("begin:map_memory"),
            f"memory_libmap -logic-cost-rom 0.015625 -lib {ROMS} {memories} "
            + ("-lib +/xilinx/urams.txt" if self.has_ultra_ram else "-no-auto-huge"),
            f"techmap -map {ROM_MAP}",
            "techmap -map +/xilinx/lutrams_xc5v_map.v",
            f"techmap -map +/xilinx/{_BLOCK_RAM_MAPS[self.family]}",
            *(["techmap -map +/xilinx/urams_map.v"] if self.has_ultra_ram else []),
            steps("map_ffram:"),
            f"tee -q -o cells.json stat -json -top {TOP}",
        ]
        return "\n".join(lines) + "\n"
