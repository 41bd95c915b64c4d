"""The tiles worth trying, and which of them won."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from rich.table import Table

from lcjax.cli.terminal import tables_console
from lcjax_scripts.bench.kernels.jobs import KERNELS, Job, Result

# (query block, key block, warps, stages): more than fit; a tile that the GPU cannot hold is reported and passed over.
CANDIDATES = {
    "attention_forward": [(128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (128, 64, 4, 2), (128, 64, 4, 3), (256, 64, 8, 2),
                          (256, 64, 8, 3), (256, 64, 8, 4), (128, 128, 4, 3), (128, 128, 8, 2), (128, 128, 8, 3), (64, 64, 4, 3),
                          (128, 32, 4, 2), (128, 32, 4, 3), (128, 32, 4, 4), (128, 32, 8, 3)],
    "attention_dq": [(128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (128, 64, 4, 3), (64, 64, 4, 2),
                     (64, 64, 4, 3), (64, 32, 4, 3), (128, 32, 8, 2), (128, 32, 8, 3)],
    "attention_dkv": [(64, 128, 8, 3), (64, 128, 8, 4), (32, 128, 8, 3), (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 4),
                      (32, 64, 4, 3), (64, 64, 8, 2)],
}  # fmt: skip
# Of Pallas alone, with options of `lcjax.pallas.triton.tiles.Tile` by name.
WITH_OPTIONS = {
    "attention_forward": [(256, 64, 8, 3, "drain"), (256, 64, 8, 4, "drain"), (128, 64, 4, 3, "drain"), (128, 64, 4, 4, "drain"),
                          (128, 128, 4, 2, "drain", "frugal"), (128, 128, 4, 3, "drain", "frugal"),
                          (128, 64, 8, 2, "heads_in_turn"), (128, 64, 8, 2, "drain", "heads_in_turn")],
    "attention_dq": [(128, 64, 8, 3, "from_registers"), (128, 64, 8, 4, "from_registers"), (128, 64, 4, 3, "from_registers")],
    "attention_dkv": [(64, 64, 4, 3, "from_registers"), (64, 64, 4, 4, "from_registers"), (64, 128, 8, 3, "from_registers")],
}  # fmt: skip

IMPLEMENTATIONS = ("pallas", "triton")


def jobs(sizes: Iterable[Job], implementations: Sequence[str] = IMPLEMENTATIONS) -> list[Job]:
    """Every candidate of every kernel at the sizes of the given jobs."""
    return [
        dataclasses.replace(size, part=kernel, implementation=implementation, tile=tile)
        for size in sizes
        for kernel in KERNELS
        for implementation in IMPLEMENTATIONS
        if implementation in implementations
        for tile in CANDIDATES[kernel] + (WITH_OPTIONS[kernel] if implementation == "pallas" else [])
    ]


def table(results: Sequence[Result]) -> None:
    """Prints the best tile of each kernel, implementation and length."""
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
