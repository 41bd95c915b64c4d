"""The report as a table for a terminal."""

from __future__ import annotations

from collections.abc import Container, Iterable

from rich.table import Table

from lcjax_scripts.codegen.analysis import Codegen
from lcjax_scripts.codegen.budgets import budget_key
from lcjax_scripts.codegen.compiled import CompiledKernel

_CAPTION = (
    "tile: block of one iteration, warps / stages; spilled: bytes per thread; shared: KiB per "
    "program; 16 B, narrow: global memory accesses of at least 16 bytes per thread, and of fewer; "
    "loops: machine instructions per iteration; a score: those per attention score; all other "
    "columns count instructions in the text (wgmma: tcgen05 on Blackwell)"
)
_TEXT = ("kernel", "by", "tile", "serialized")


def report_table(rows: Iterable[tuple[CompiledKernel, Codegen]], broken: Container[str], *, title: str) -> Table:
    """Returns a table with a row per kernel. Kernels that exceed their budget are red."""
    table = Table(title=title, caption=_CAPTION, title_justify="left", caption_justify="left")
    previous = None
    for kernel, codegen in rows:
        cells = _cells(kernel, codegen)
        if previous is None:
            for name in cells:
                table.add_column(name, justify="left" if name in _TEXT else "right", no_wrap=True)
        elif kernel.kernel != previous:
            table.add_section()
        if kernel.kernel == previous:
            cells["kernel"] = ""
        previous = kernel.kernel
        table.add_row(*cells.values(), style="red" if budget_key(kernel) in broken else "")
    return table


def instructions_a_score(kernel: CompiledKernel, codegen: Codegen) -> float | None:
    """Returns the instructions per score in attention's main loop; None for RoPE.

    This number is comparable between kernels with different block sizes.
    """
    if len(kernel.block) != 2:
        return None
    threads, (queries, keys) = 32 * kernel.num_warps, kernel.block
    return codegen.main_loop * threads / (queries * keys)


def _cells(kernel: CompiledKernel, codegen: Codegen) -> dict[str, str]:
    counts = codegen.counts
    a_score = instructions_a_score(kernel, codegen)
    others = list(codegen.loops)
    if codegen.main_loop:
        others.remove(codegen.main_loop)
    return {
        "kernel": kernel.kernel,
        "head_dim": str(kernel.head_dim),
        "by": kernel.implementation,
        "tile": f"{' x '.join(map(str, kernel.block))}, {kernel.num_warps} / {kernel.num_stages}",
        "registers": str(codegen.registers),
        "spilled": _count(codegen.spill_stores + codegen.spill_loads),
        "shared": f"{kernel.shared_memory / 1024:.0f}",
        "wgmma": _count(counts.wgmma + counts.tcgen05),
        "mma": _count(counts.mma),
        "cp.async": _count(counts.cp_async),
        "TMA": _count(counts.tma),
        "16 B": _count(counts.wide),
        "narrow": _count(counts.narrow),
        "main loop": _count(codegen.main_loop),
        "a score": "-" if a_score is None else f"{a_score:.1f}",
        "other loops": " ".join(map(str, others)) or "-",
        "serialized": " ".join(codegen.serialized) or "-",
    }


def _count(number: int) -> str:
    return str(number or "-")
