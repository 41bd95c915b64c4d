"""Rows of the table of steps, one for each length and setting, printed and written as CSV."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lcjax_scripts.bench.steps.shape import Shape

GIB = 2**30

COLUMNS = (
    *("device", "jax", "implementation", "tokens", "policy", "memory", "quantize", "lora_r", "optimizer_memory"),
    *("mesh", "attention", "compile_seconds", "seconds", "tokens_per_second", "mfu", "peak_bytes", "planned_bytes"),
    *("host_bytes", "loss", "error"),
)

Row = dict[str, Any]


def rows_of(
    shape: Shape,
    lengths: Sequence[int],
    settings: Sequence[str],
    quantizations: Sequence[str] = (),
    attentions: Sequence[str] = (),
    meshes: Sequence[str] = (),
    *,
    peft: bool = False,
) -> Iterator[Row]:
    """Yields every length with every combination of settings, followed by PEFT if `peft`.

    Args:
      shape: the model; its quantization and attention are used if none are given, and its mesh.
      lengths: tokens of the sequence.
      settings: pairs of gradient checkpointing and `--memory`, separated by a space.
    """
    for tokens in lengths:
        for quantize, attention, setting, mesh in itertools.product(
            quantizations or (shape.quantize,), attentions or (shape.attention,), settings, meshes or (shape.mesh,)
        ):
            policy, _, memory = setting.partition(" ")
            yield _row("lcjax", tokens, policy, memory or "auto", quantize, attention, mesh)
        if peft:
            yield _row("peft", tokens, "full", "none", "none", "sdpa", "1x1x1")


def line_of(result: Row) -> str:
    """Returns a measured row as a line of text."""
    kind = f"{result['quantize']:4} {result['attention']:6} {result['mesh']}"
    name = f"{result['implementation']:5} {result['tokens']:>7,}  {kind}  {result['policy']:12} {result['memory']:40}"
    if "error" in result:
        return f"{name} {result['error']}"
    planned = f" (planned {result['planned_bytes'] / GIB:6.2f})" if "planned_bytes" in result else ""
    return (
        f"{name} {result['seconds']:8.2f} s {result['tokens_per_second']:8.0f} tok/s  {result['mfu']:6.1%}"
        f"  {result['peak_bytes'] / GIB:6.2f} GiB{planned}  host {result.get('host_bytes', 0) / GIB:6.2f}"
    )


def append_csv(path: Path, result: Row) -> None:
    """Appends a measured row; writes the header of a new file."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if new:
            writer.writeheader()
        writer.writerow(result)


def _row(implementation: str, tokens: int, policy: str, memory: str, quantize: str, attention: str, mesh: str) -> Row:
    return {
        "implementation": implementation,
        "tokens": tokens,
        "policy": policy,
        "memory": memory,
        "quantize": quantize,
        "attention": attention,
        "mesh": mesh,
    }
