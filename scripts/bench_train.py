"""Compares the training speed and memory of lcjax with those of transformers + PEFT on a CPU.

    python scripts/bench_train.py --tokens 1024 --rounds 3

Both sides use the same model, batch, dtype and number of threads. Each side runs in a separate
process, so that the memory and threads of one are not counted for the other. The sides alternate,
so that noise on the machine affects both. Prints tokens per second of the fastest step, peak
resident memory, and the ratios.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
from importlib.metadata import version

import tyro

from lcjax.cli.entry import entry_point
from lcjax_scripts.bench.training.setup import Setup
from lcjax_scripts.bench.training.worker import run_side


@dataclasses.dataclass(frozen=True)
class Bench(Setup):
    """LoRA r=16 on all linear layers, AdamW, batch 1: lcjax compared with transformers + PEFT."""

    rounds: int = 2
    """How many times each side runs."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    bench = tyro.cli(Bench, args=argv, description=__doc__)
    setup = Setup(bench.model, bench.tokens, bench.steps, bench.threads, bench.dtype)
    versions = (f"{name} {version(name)}" for name in ("jax", "flax", "torch", "transformers", "peft"))
    print(f"{platform.processor() or platform.machine()}, {bench.threads} threads;", *versions)
    results = {"lcjax": [], "peft": []}
    for _ in range(bench.rounds):
        for side, rows in results.items():
            row = run_side(side, setup)
            rows.append(row)
            losses = " ".join(f"{loss:.4f}" for loss in row["losses"])
            speed = f"{row['tokens_per_second']:8.1f} tok/s   {row['peak_gib']:5.2f} GiB peak"
            print(f"{side:<6} {speed}   losses {losses}", flush=True)
    best = {side: max(row["tokens_per_second"] for row in rows) for side, rows in results.items()}
    peak = {side: max(row["peak_gib"] for row in rows) for side, rows in results.items()}
    speed, memory = best["lcjax"] / best["peft"], peak["lcjax"] / peak["peft"]
    print(f"ratio  {speed:8.2f} x speed   {memory:5.2f} x memory   (lcjax / peft)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
