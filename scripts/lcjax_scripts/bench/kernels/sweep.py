"""Candidate block sizes, and the fastest of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from rich.table import Table

from lcjax.cli.terminal import tables_console
from lcjax_scripts.bench.kernels.jobs import KERNELS, Job, Result

# (query block, key block, warps, stages). Sizes that do not fit the GPU are reported and skipped.
CANDIDATES = {
    "attention_forward": [(128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (128, 64, 4, 2), (128, 64, 4, 3), (256, 64, 8, 2),
                          (256, 64, 8, 3), (256, 64, 8, 4), (128, 128, 4, 3), (128, 128, 8, 2), (128, 128, 8, 3), (64, 64, 4, 3),
                          (128, 32, 4, 2), (128, 32, 4, 3), (128, 32, 4, 4), (128, 32, 8, 3)],
    "attention_dq": [(128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (128, 64, 4, 3), (64, 64, 4, 2),
                     (64, 64, 4, 3), (64, 32, 4, 3), (128, 32, 8, 2), (128, 32, 8, 3)],
    "attention_dkv": [(64, 128, 8, 3), (64, 128, 8, 4), (32, 128, 8, 3), (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 4),
                      (32, 64, 4, 3), (64, 64, 8, 2)],
}  # fmt: skip
# Only for Pallas, with the names of options of `lcjax.pallas.triton.block_sizes.BlockSizes`.
_WAIT, _SAVE, _BY_HEAD, _REGISTERS = "wait_for_wgmma", "save_registers", "one_head_at_a_time", "from_registers"
WITH_OPTIONS = {
    "attention_forward": [(256, 64, 8, 3, _WAIT), (256, 64, 8, 4, _WAIT), (128, 64, 4, 3, _WAIT), (128, 64, 4, 4, _WAIT),
                          (128, 128, 4, 2, _WAIT, _SAVE), (128, 128, 4, 3, _WAIT, _SAVE),
                          (128, 64, 8, 2, _BY_HEAD), (128, 64, 8, 2, _WAIT, _BY_HEAD)],
    "attention_dq": [(128, 64, 8, 3, _REGISTERS), (128, 64, 8, 4, _REGISTERS), (128, 64, 4, 3, _REGISTERS)],
    "attention_dkv": [(64, 64, 4, 3, _REGISTERS), (64, 64, 4, 4, _REGISTERS), (64, 128, 8, 3, _REGISTERS)],
}  # fmt: skip

IMPLEMENTATIONS = ("pallas", "triton")


def jobs(sizes: Iterable[Job], implementations: Sequence[str] = IMPLEMENTATIONS) -> list[Job]:
    """Returns every candidate of every kernel, at the sizes of the given jobs."""
    return [
        dataclasses.replace(size, part=kernel, implementation=implementation, tile=tile)
        for size in sizes
        for kernel in KERNELS
        for implementation in IMPLEMENTATIONS
        if implementation in implementations
        for tile in CANDIDATES[kernel] + (WITH_OPTIONS[kernel] if implementation == "pallas" else [])
    ]


def table(results: Sequence[Result]) -> None:
    """Prints the fastest block sizes of each kernel, implementation and length."""
    best: dict[tuple, Result] = {}
    for result in results:
        job = result.job
        key = job.part, job.implementation, job.head_dim, job.dtype, job.tokens
        if result.milliseconds and (key not in best or result.milliseconds < (best[key].milliseconds or 0)):
            best[key] = result
    shown = Table("kernel", "implementation", "head_dim", "dtype", "tokens", "best tile", "ms", "TFLOP/s")
    for (kernel, implementation, head_dim, dtype, tokens), result in best.items():
        speed = f"{result.milliseconds:.3f}", f"{result.tflops:.0f}"
        shown.add_row(kernel, implementation, str(head_dim), dtype, f"{tokens:,}", str(result.job.tile), *speed)
    tables_console(None).print(shown)
