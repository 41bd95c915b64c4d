"""Measures attention over several GPUs, and compares it with one GPU in the same run.

    python scripts/bench_mesh.py --lengths 131072 --meshes 1x1x2 1x2x1 --csv mesh.csv

One sequence is divided over the GPUs of each mesh, data x ring x heads: along `heads` GPUs exchange
tokens for heads, along `ring` keys and values travel. A line shows the time of one layer's causal
attention, how many times as fast as one GPU it is, and the largest difference of any result from
one GPU's, relative to its largest value. By heads the kernels are the same, and results differ at
most by the rounding of what the compiler computes around them.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import sys
from importlib.metadata import version
from pathlib import Path

import tyro

from lcjax.cli.entry import entry_point
from lcjax.memory.allocators import raise_limits
from lcjax_scripts.bench.steps.shape import mesh_of

COLUMNS: tuple[str, ...] = (
    "device",
    "jax",
    "implementation",
    "pass",
    "tokens",
    "mesh",
    "milliseconds",
    "speedup",
    "difference",
)


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measures one layer's attention, forward, and forward with backward."""

    lengths: tuple[int, ...] = (131_072,)
    """Tokens of the sequence."""
    meshes: tuple[str, ...] = ("1x1x2",)
    """Meshes of GPUs, data x ring x heads, with 1 for data."""
    implementations: tuple[str, ...] = ("pallas",)
    """Implementations of attention, as in --attention of lcjax.train."""
    heads: int = 32
    """Query heads."""
    kv_heads: int = 8
    """Key/value heads."""
    head_dim: int = 128
    """Dimension of a head."""
    seconds: float = 3.0
    """Time to spend on each measurement, excluding warm-up."""
    csv: Path | None = None
    """Append every line, with the machine and version, to this file."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    bench = tyro.cli(Bench, args=argv, description=__doc__)
    meshes = [mesh_of(mesh) for mesh in bench.meshes]
    raise_limits(0)  # before JAX starts its devices
    import jax

    from lcjax.config.parallel.mesh import ONE_DEVICE
    from lcjax_scripts.bench.mesh_attention import Layer, error, measure

    print("jax", version("jax"), jax.device_count(), jax.devices()[0].device_kind, flush=True)
    for tokens, implementation, backward in itertools.product(bench.lengths, bench.implementations, (False, True)):
        layer, one = Layer(tokens, bench.heads, bench.kv_heads, bench.head_dim), None
        for shape in (ONE_DEVICE, *meshes):
            found = measure(layer, implementation, shape, backward=backward, seconds=bench.seconds)
            one = one or found
            row = {
                "device": jax.devices()[0].device_kind,
                "jax": version("jax"),
                "implementation": implementation,
                "pass": "both" if backward else "forward",
                "tokens": tokens,
                "mesh": f"{shape.data}x{shape.ring}x{shape.heads}",
                "milliseconds": round(found.milliseconds, 3),
                "speedup": round(one.milliseconds / found.milliseconds, 4),
                "difference": max(error(*pair) for pair in zip(found.results, one.results, strict=True)),
            }
            print(
                f"{implementation:6} {row['pass']:7} {tokens:>9,}  {row['mesh']}  {found.milliseconds:9.2f} ms"
                f"  {row['speedup']:.3f} x  difference {row['difference']:.1e}",
                flush=True,
            )
            if bench.csv:
                _append(bench.csv, row)
    return 0


def _append(path: Path, row: dict[str, object]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    sys.exit(main())
