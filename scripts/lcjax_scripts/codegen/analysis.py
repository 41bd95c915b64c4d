"""Extracts what determines a kernel's speed from its PTX: registers, spills, products and loops."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from pathlib import Path

from lcjax_scripts.codegen import ptx, sass, toolchain

_FUNCTION = re.compile(r"Compiling entry function '(\w+)'")
_SERIALIZED = re.compile(r"\((C\d+)\).*wgmma.*serialized.*function '(\w+)'")


@dataclasses.dataclass(frozen=True)
class Codegen:
    """One kernel as ptxas assembles it for its target."""

    registers: int
    """32-bit registers per thread."""
    stack: int
    """Bytes of local memory per thread, including spills."""
    spill_stores: int
    """Bytes per thread that ptxas stores because registers ran out."""
    spill_loads: int
    """Bytes per thread that ptxas loads back."""
    serialized: tuple[str, ...]
    """Codes of the ptxas warnings that wgmma instructions are serialized, such as C7510."""
    counts: ptx.PtxCounts
    loops: tuple[int, ...]
    """Machine instructions of every innermost loop that multiplies or writes results, in the order
    of the code."""
    main_loop: int
    """Machine instructions of the loop that dominates the time of a long sequence; 0 if there is
    none."""
    main_loop_spills: int
    """Accesses of local memory in that loop."""


def analyze(module: str) -> dict[str, Codegen]:
    """Assembles a PTX module, and returns the facts about each kernel by name.

    Raises:
      InputError: ptxas or nvdisasm is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "module.ptx"), Path(folder, "module.cubin")
        source.write_text(module, encoding="utf-8")
        report = toolchain.assemble(source, cubin, architecture=ptx.target(module))
        lines = sass.functions(toolchain.disassemble(cubin))
    return {name: _facts(name, body, report, lines[name]) for name, body in ptx.entries(module).items()}


def _facts(name: str, body: str, report: str, lines: list[str]) -> Codegen:
    resources = _section(name, report)
    loops = sass.loops(lines)
    main = sass.main_loop(loops)
    return Codegen(
        registers=_number(r"Used (\d+) registers", resources),
        stack=_number(r"(\d+) bytes stack frame", resources),
        spill_stores=_number(r"(\d+) bytes spill stores", resources),
        spill_loads=_number(r"(\d+) bytes spill loads", resources),
        serialized=tuple(sorted({code for code, function in _SERIALIZED.findall(report) if function == name})),
        counts=ptx.count(body),
        loops=tuple(loop.instructions for loop in sass.work_loops(loops)),
        main_loop=main.instructions if main else 0,
        main_loop_spills=main.spills if main else 0,
    )


def _section(name: str, report: str) -> str:
    """Returns the part of ptxas' report that is about one kernel."""
    headings = list(_FUNCTION.finditer(report))
    for heading, end in zip(headings, [*(h.start() for h in headings[1:]), len(report)], strict=True):
        if heading.group(1) == name:
            return report[heading.start() : end]
    raise ValueError(f"ptxas reports nothing about {name}")


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"ptxas' report has no {pattern!r}:\n{text}")
    return int(match.group(1))
