"""Compilation of the simulator and of layers, each kept in a cache under a hash of what went in."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from fxfactor.finn.commands import Commands, end
from fxfactor.finn.process.cache import drop_oldest, sweep
from fxfactor.finn.simulation.rtl import TOP, Code
from fxfactor.finn.simulation.tools import Tools

KEPT = 2000
"""Compiled layers in the cache; those used longest ago go first. One is about 0.2 MB."""

NATIVE = ("layer.h", "models.h", "fifo.h", "simulator.cpp")
CXX = ("-std=c++17", "-O1", "-w", "-fPIC")
VERILATE = (
    "--cc",
    "--no-timing",
    "--output-split",
    "0",
    "-O3",
    "-Wno-fatal",
    "-Wno-lint",
    "-Wno-style",
    "-DFINN_SIMULATION",
)


@dataclass(frozen=True)
class Compiler:
    """Compiles with `tools` into the folder `store`, `jobs` at a time."""

    tools: Tools
    store: Path
    jobs: int

    def build(self, codes: Iterable[Code], commands: Commands, progress: Callable[[str], None]) -> Built:
        """The simulator and the libraries of all `codes`, from the cache where they are there."""
        self.store.mkdir(parents=True, exist_ok=True)
        sweep(self.store)
        base = self._base()
        runtime = self.store / f"{base}-runtime"
        if not runtime.is_dir():
            progress("compile the simulator")
            self._in_draft(runtime, lambda draft: self._compile_runtime(draft, commands))
        os.utime(runtime)
        wanted = {code.key: code for code in codes}
        libraries = {key: self.store / f"{base}-{key}" for key in wanted}
        missing = [key for key, place in libraries.items() if not place.is_dir()]
        self._compile_all([(wanted[key], libraries[key]) for key in missing], runtime, commands, progress)
        for place in libraries.values():
            os.utime(place)
        drop_oldest(self.store, KEPT)
        paths = {key: place / "layer.so" for key, place in libraries.items()}
        return Built(runtime / "simulator", paths, len(missing))

    def _base(self) -> str:
        """A hash of all that every compilation depends on."""
        digest = hashlib.sha256(f"{self.tools.versions} {CXX} {VERILATE}".encode())
        for name in NATIVE:
            digest.update(_native(name).encode())
        return digest.hexdigest()[:12]

    def _in_draft(self, place: Path, make: Callable[[Path], None]) -> None:
        """Make a folder beside its place and move it there in one step."""
        with tempfile.TemporaryDirectory(prefix=f".run-{os.getpid()}-", dir=self.store) as draft:
            new = Path(draft) / "new"
            new.mkdir()
            make(new)
            try:
                new.rename(place)
            except OSError:
                if not place.is_dir():  # else another run was faster: its files are the same
                    raise

    def _include(self) -> list[str]:
        include = self.tools.root / "include"
        return [f"-I{include}", f"-I{include / 'vltstd'}"]

    def _compile_runtime(self, folder: Path, commands: Commands) -> None:
        """Verilator's own library, the simulator, and verilated.h precompiled: reading it is half of a layer's time."""
        for name in NATIVE:
            (folder / name).write_text(_native(name))
        include = self.tools.root / "include"
        library = [include / "verilated.cpp", include / "verilated_threads.cpp"]
        (folder / "common.h").write_text('#include "verilated.h"\n#include "layer.h"\n')
        compiler, what = self.tools.compiler, "compiling the simulator"
        commands.run(
            [compiler, *CXX, "-shared", *self._include(), *library, "-o", "libverilated.so", "-pthread"], folder, what
        )
        commands.run(
            [compiler, *CXX, *self._include(), "-x", "c++-header", "common.h", "-o", "common.h.gch"], folder, what
        )
        commands.run([compiler, "-std=c++17", "-O2", "simulator.cpp", "-o", "simulator", "-ldl"], folder, what)

    def _compile_all(
        self, missing: list[tuple[Code, Path]], runtime: Path, commands: Commands, progress: Callable[[str], None]
    ) -> None:
        if not missing:
            return
        with ThreadPoolExecutor(self.jobs) as pool:
            waiting = {pool.submit(self._compile_layer, code, place, runtime, commands) for code, place in missing}
            try:
                while waiting:
                    progress(f"compile layers ({len(missing) - len(waiting)} of {len(missing)})")
                    done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
            finally:
                for future in waiting:
                    future.cancel()
                for process in list(commands.running):
                    end(process)

    def _compile_layer(self, code: Code, place: Path, runtime: Path, commands: Commands) -> None:
        def make(folder: Path) -> None:
            for name, text in code.files.items():
                (folder / name).write_text(text)
            prefix, what = f"V{code.key}", f"compiling a layer ({next(iter(code.files))})"
            command: list[str | Path] = [
                self.tools.verilator,
                *VERILATE,
                "--top-module",
                TOP,
                "--prefix",
                prefix,
                "-Mdir",
                "verilated",
            ]
            commands.run([*command, *code.files], folder, what, self.tools.root)
            parts = sorted((folder / "verilated").glob("*.cpp"))
            (folder / "layer.cpp").write_text(_glue(code, prefix, [part.name for part in parts]))
            include = [f"-I{runtime}", *self._include(), "-Iverilated", "-include", "common.h"]
            link = ["-L" + str(runtime), "-lverilated", f"-Wl,-rpath,$ORIGIN/../{runtime.name}"]
            command = [self.tools.compiler, *CXX, "-shared", *include, "layer.cpp", "-o", "layer.so", *link]
            commands.run(command, folder, what)
            for file in folder.iterdir():  # what is left is what a simulation loads
                if file.name != "layer.so":
                    shutil.rmtree(file) if file.is_dir() else file.unlink()

        self._in_draft(place, make)


@dataclass(frozen=True)
class Built:
    """The program that simulates, and the library of each code by its key; `compiled` counts those made just now."""

    simulator: Path
    libraries: dict[str, Path]
    compiled: int


def _native(name: str) -> str:
    return (files("fxfactor.finn.simulation") / "native" / name).read_text(encoding="utf-8")


def _glue(code: Code, prefix: str, parts: Sequence[str]) -> str:
    """C++ that makes a `Layer` (layer.h) of the class that Verilator wrote."""

    def cases(ports: Sequence[int], statement: str) -> str:
        return " ".join(f"case {index}: {statement.format(index)}; break;" for index in range(len(ports)))

    includes = "\n".join(f'#include "{part}"' for part in parts)
    return f"""{includes}
#include "layer.h"
namespace {{
struct Compiled final : Layer {{
  VerilatedContext context;
  {prefix} top;
  explicit Compiled(const char* name) : top(&context, name) {{}}
  void reset(bool active) override {{ top.rst_n = !active; top.clk = 0; top.eval(); }}
  void set_input(int port, bool valid, const Limb* word) override {{
    switch (port) {{ {cases(code.inputs, "top.in{0}_valid = valid; if (valid) put(top.in{0}_data, word)")} }}
  }}
  void set_output_ready(int port, bool ready) override {{
    switch (port) {{ {cases(code.outputs, "top.out{0}_ready = ready")} }}
  }}
  void settle() override {{ top.clk = 0; top.eval(); }}
  bool input_ready(int port) override {{
    bool ready = false;
    switch (port) {{ {cases(code.inputs, "ready = top.in{0}_ready")} }}
    return ready;
  }}
  bool output_valid(int port) override {{
    bool valid = false;
    switch (port) {{ {cases(code.outputs, "valid = top.out{0}_valid")} }}
    return valid;
  }}
  void output_word(int port, Limb* word) override {{
    switch (port) {{ {cases(code.outputs, "get(top.out{0}_data, word)")} }}
  }}
  void clock() override {{ top.clk = 1; top.eval(); }}
  bool stopped() override {{ return context.gotFinish(); }}
}};
}}
extern "C" Layer* make_layer(const char* name) {{ return new Compiled(name); }}
"""
