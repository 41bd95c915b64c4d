"""Measures the products of experts, and compares them with dense products and XLA's ragged_dot.

    python scripts/bench_experts.py --model gpt-oss-20b --tokens 8192 --csv experts.csv

The default sizes need a GPU. On a CPU, use the config.json of a small model and few --tokens.

Each token has random experts. For every linear map of a model's experts, a line shows the time of
the product (`forward`), of the gradient of its inputs (`inputs`) and of its weights (`weights`),
the useful TFLOP/s, the time of a dense product with as many FLOPs, and how many times as long
`jax.lax.ragged_dot` takes, which computes the same; nothing if it needs more than --most-gib of
temporary memory.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
from importlib.metadata import version
from pathlib import Path

import tyro

from lcjax.cli.entry import entry_point


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measures the linear maps of the experts of one layer."""

    model: str = "gpt-oss-20b"
    """A preset or a config.json file of a model with experts."""
    tokens: int = 8192
    """Tokens that are routed together."""
    seconds: float = 1.0
    """Time to spend on each measurement, excluding warm-up."""
    most_gib: float = 60.0
    """The most temporary memory, in GiB, that ragged_dot may need."""
    csv: Path | None = None
    """Write every line, with the machine and version, to this file."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    bench = tyro.cli(Bench, args=argv, description=__doc__)
    import jax

    from lcjax.config.presets import resolve_config
    from lcjax_scripts.bench.experts import measured

    machine = {"device": jax.devices()[0].device_kind, "jax": version("jax"), "model": bench.model}
    print(*machine.values(), flush=True)
    rows = []
    for row in measured(resolve_config(bench.model), bench.tokens, bench.seconds, bench.most_gib):
        rows.append(machine | row)
        ragged = f"ragged_dot {row['ragged_dot']:.1f} x" if row["ragged_dot"] else ""
        print(
            f"{row['map']:12} {row['pass']:7} {row['milliseconds']:9.3f} ms  {row['tflops']:6.1f} TFLOP/s"
            f"  {row['dense']:.2f} of dense  {ragged}",
            flush=True,
        )
    if bench.csv:
        with bench.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
