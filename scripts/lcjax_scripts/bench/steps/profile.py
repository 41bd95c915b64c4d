"""Records a training step with JAX's profiler, and prints seconds by kind of work and by kernel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lcjax_scripts.bench.steps.shape import Shape

LONGEST_KERNELS = 40


def record(shape: Shape, tokens: int, policy: str, memory: str, ceiling: float, folder: Path) -> dict[str, Any]:
    """Takes one warm-up step and records the next one; returns the content of profile.json.

    Args:
      shape: the model and how it runs.
      tokens: of the sequence.
      policy, memory: gradient checkpointing and `--memory`, as in `lcjax.train`.
      ceiling: TFLOP/s of a large bfloat16 product on this GPU.
      folder: where the trace goes.
    """
    import jax

    from lcjax_scripts.bench.steps import ideal, lcjax_side, trace

    traced = lcjax_side.trace_step(shape, tokens, policy, memory)
    one_step = traced.compile().load()
    one_step()
    with jax.profiler.trace(str(folder)):
        one_step()
    events = trace.read(folder)
    by_name = list(trace.seconds_by_name(events).items())[:LONGEST_KERNELS]
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        **{name: getattr(shape, name) for name in ("model", "quantize", "lora_r")},
        **{"tokens": tokens, "policy": policy, "memory": memory, "ceiling": ceiling},
        "seconds": trace.seconds_by_kind(events),
        "ideal_seconds": ideal.seconds(traced.step.run.config, shape, tokens, by_name, ceiling),
        "copies_seconds": {
            kind: sum(event.stop - event.start for event in events if event.kind == kind) / 1e9
            for kind in trace.HOST_COPIES
        },
        "kernels": [{"name": name, "count": count, "seconds": total} for name, (count, total) in by_name],
    }


def show(result: dict[str, Any]) -> None:
    """Prints the table, with the most lost time first, and the longest kernels."""
    seconds, ideal = result["seconds"], result["ideal_seconds"]
    whole = sum(seconds.values())
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("", "seconds", "share", "ideal", "lost", title=f"{result['tokens']:,} tokens, {whole:.2f} s")
    for kind, spent in sorted(seconds.items(), key=lambda item: ideal.get(item[0], 0.0) - item[1]):
        best = ideal.get(kind, 0.0)
        table.add_row(kind, f"{spent:.3f}", f"{spent / whole:.1%}", f"{best:.3f}", f"{spent - best:.3f}")
    console.print(table)
    for kind, spent in result["copies_seconds"].items():
        console.print(f"{kind}: {spent:.3f} s in total, overlapped by kernels or not")
    for kernel in result["kernels"][:15]:
        console.print(f"{kernel['seconds']:8.3f} s  {kernel['count']:6}  {kernel['name'][:100]}")
