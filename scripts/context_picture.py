"""Draws docs/context.png, the longest context of an 8B model by GPU memory, from docs/context.json.

    python scripts/context_picture.py

docs/context.json holds lcjax's figures and those that others published; `scripts/context_table.py`
writes it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parents[1] / "docs"
MODEL, TRAINS = "llama-3.1-8b", "nf4, LoRA r=32"
SIZES_GB = (24, 48, 80)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Draw the longest context by GPU memory, from docs/context.json."""

    output: Path = DOCS / "context.png"
    """The PNG file to write."""


def figures(rows: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    """Returns (GB, tokens of lcjax, tokens of Unsloth) for each of SIZES_GB."""
    drawn = MODEL, TRAINS, 1
    found = {row["vram_gb"]: row for row in rows if (row["model"], row["trains"], row["gpus"]) == drawn}
    return [
        (size, found[size]["max_seq_length"], int(found[size]["others"].split()[-1].replace(",", "")))
        for size in SIZES_GB
    ]


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Draws two bars for each memory size, labeled with their tokens."""
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    axes = figure.subplots()
    for number, (_, ours, theirs) in enumerate(reversed(figures(rows))):
        for tokens, name, color, shift in ((ours, "lcjax", "#2166ac", 0.2), (theirs, "Unsloth", "#b0b0b0", -0.2)):
            label = name if number == 0 else None
            axes.barh(number + shift, tokens / 1e6, height=0.36, color=color, label=label)
            axes.annotate(
                f"{tokens:,}", (tokens / 1e6, number + shift), (4, 0), textcoords="offset points", va="center"
            )
    axes.set_yticks(range(len(SIZES_GB)), [f"{size} GB" for size in reversed(SIZES_GB)])
    axes.set_xlabel("longest context, million tokens")
    axes.set_xlim(0, 3.3)
    axes.set_title("Llama-3.1-8B, 4-bit weights, LoRA r=32, one GPU", loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    return figure


def main(argv: list[str] | None = None) -> int:
    """Writes the picture; returns the exit code."""
    arguments = tyro.cli(Arguments, args=argv)
    rows = json.loads((DOCS / "context.json").read_text(encoding="utf-8"))["rows"]
    draw(rows).savefig(arguments.output, dpi=150, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
