"""A training step of a large model with random weights on a GPU: time, model FLOPs, and the memory that was planned and used.

    python scripts/bench_step.py --lengths 16384 32768 --settings "full none" "offload tile=8192" --csv steps.csv
    python scripts/bench_step.py --lengths 16384 --quantize none --peft        # beside transformers + PEFT

Every row runs in a process of its own: the peak of one is not another's, and what runs out of memory ends alone. The batch is one
sequence. Prints seconds a step (the fastest), tokens a second, model FLOPs in parts of the GPU's peak, GiB at the peak beside
those that the compiler said, and GiB of pinned host memory. With --ahead the next rows are traced while one is timed; they compile
when it is their turn, since XLA tries algorithms out on the device.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import tyro

from lcjax_scripts.bench.steps.sequential import measured, wait_for_turn
from lcjax_scripts.bench.steps.shape import Shape

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Bench(Shape):
    """Which steps to time, one sequence each."""

    lengths: tuple[int, ...] = (16_384,)
    """Tokens a sequence."""
    settings: tuple[str, ...] = ("auto auto",)
    """Gradient checkpointing and --memory, as a pair in one word each: "offload tile=8192,head_groups=8"."""
    quantizations: tuple[Literal["nf4", "none"], ...] = ()
    """Every setting with each of these, instead of --quantize."""
    attentions: tuple[str, ...] = ()
    """Every setting with each of these implementations, instead of --attention."""
    ahead: int = 0
    """How many rows are traced while one is timed; each holds half a GiB of the device."""
    steps: int = 2
    """Timed steps, after one that warms up; 0 times that one, its first allocations included, where a step takes minutes."""
    peft: bool = False
    """Also time transformers + PEFT with gradient checkpointing and torch's attention, in bfloat16."""
    csv: Path | None = None
    """Append every row, with machine and versions, to this file."""
    row: str | None = None
    """Internal: one row as JSON; its result is printed as JSON."""


def main(argv: list[str] | None = None) -> int:
    bench = tyro.cli(Bench, args=argv, description=__doc__)
    if bench.row is not None:
        row = json.loads(bench.row)
        measure = peft_step if row["implementation"] == "peft" else lcjax_step
        print(json.dumps(measure(bench, row["tokens"], row["policy"], row["memory"])))
        return 0
    print(*(f"{name} {version(name)}" for name in ("jax", "flax", "optax")), flush=True)
    with tempfile.TemporaryDirectory() as kept:
        environment = os.environ | _environment(kept)
        results = measured(
            list(rows(bench)),
            lambda row: _command(bench, row),
            environment,
            ahead=bench.ahead,
        )
        for row, result in results:
            print(_line(row | result), flush=True)
            if bench.csv:
                _append(bench.csv, row | result)
    return 0


def rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """What is measured, in turn."""
    for tokens in bench.lengths:
        for quantize, attention, settings in itertools.product(
            bench.quantizations or (bench.quantize,), bench.attentions or (bench.attention,), bench.settings
        ):
            policy, _, memory = settings.partition(" ")
            yield {
                "implementation": "lcjax",
                "tokens": tokens,
                "policy": policy,
                "memory": memory or "auto",
                "quantize": quantize,
                "attention": attention,
            }
        if bench.peft:
            yield {
                "implementation": "peft",
                "tokens": tokens,
                "policy": "full",
                "memory": "none",
                "quantize": "none",
                "attention": "sdpa",
            }


def _command(bench: Bench, row: dict[str, Any]) -> list[str]:
    attention = "auto" if row["implementation"] == "peft" else row["attention"]
    of_row = dataclasses.replace(bench, quantize=row["quantize"], attention=attention)
    return [sys.executable, __file__, *of_row.flags(), f"--steps={bench.steps}", f"--row={json.dumps(row)}"]


def _environment(kept: str) -> dict[str, str]:
    """`kept`: where XLA keeps the algorithms that it has chosen, for the next process."""
    return {
        "JAX_COMPILATION_CACHE_DIR": kept,
        "JAX_TRACEBACK_FILTERING": "off",  # else a remark on filtering is the last line of an error
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def _line(result: dict[str, Any]) -> str:
    kind = f"{result['quantize']:4} {result['attention']:6}"
    name = f"{result['implementation']:5} {result['tokens']:>7,}  {kind}  {result['policy']:12} {result['memory']:40}"
    if "error" in result:
        return f"{name} {result['error']}"
    planned = f" (planned {result['planned_bytes'] / GIB:6.2f})" if "planned_bytes" in result else ""
    return (
        f"{name} {result['seconds']:8.2f} s {result['tokens_per_second']:8.0f} tok/s  {result['mfu']:6.1%}"
        f"  {result['peak_bytes'] / GIB:6.2f} GiB{planned}  host {result.get('host_bytes', 0) / GIB:6.2f}"
    )


def _append(path: Path, result: dict[Any, Any]) -> None:
    columns: tuple[str, ...] = (
        *(
            "device",
            "jax",
            "implementation",
            "tokens",
            "policy",
            "memory",
            "quantize",
            "lora_r",
            "optimizer_memory",
            "attention",
            "compile_seconds",
        ),
        *("seconds", "tokens_per_second", "mfu", "peak_bytes", "planned_bytes", "host_bytes", "loss", "error"),
    )
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        if new:
            writer.writeheader()
        writer.writerow(dict(result))


def lcjax_step(bench: Bench, tokens: int, policy: str, memory: str) -> dict[str, Any]:
    """The very step of `lcjax.train`."""
    import jax

    from lcjax_scripts.bench.steps import lcjax_side

    traced = lcjax_side.trace_step(bench, tokens, policy, memory)
    wait_for_turn()
    step = traced.compile()
    times, loss = _timed(step.load(), bench.steps)
    return _rates(bench, tokens, min(times)) | {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "lora_r": bench.lora_r,
        "optimizer_memory": bench.optimizer_memory,
        "compile_seconds": round(traced.trace_seconds + step.compile_seconds, 1),
        "loss": loss,
        "peak_bytes": lcjax_side.peak_bytes(),
        "planned_bytes": step.planned.device_bytes,
        "host_bytes": step.planned.host_bytes,
    }


def peft_step(bench: Bench, tokens: int, policy: str, memory: str) -> dict[str, Any]:
    """transformers + PEFT."""
    from lcjax_scripts.bench.steps import peft_side

    wait_for_turn()
    times, loss = _timed(peft_side.make_step(bench, tokens), bench.steps)
    return _rates(bench, tokens, min(times)) | {
        "device": peft_side.device(),
        "lora_r": bench.lora_r,
        "loss": loss,
        "peak_bytes": peft_side.peak_bytes(),
    }


def _timed(one_step: Callable[[], float], steps: int) -> tuple[list[float], float]:
    """(seconds of each step after the first, or of the first alone where `steps` is 0; the last loss)."""
    loss, times = 0.0, []
    for _ in range(steps + 1):
        began = time.perf_counter()
        loss = one_step()
        times.append(time.perf_counter() - began)
    return times[1:] or times, loss


def _rates(shape: Shape, tokens: int, seconds: float) -> dict[str, float]:
    from lcjax.config.presets import resolve_config
    from lcjax.plan.flops import PEAK_BF16_TFLOPS, step_flops

    flops = step_flops(resolve_config(shape.model), tokens, shape.lora_r).total
    mfu = flops / seconds / (PEAK_BF16_TFLOPS["h100-80gb"] * 1e12)
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "mfu": mfu}


if __name__ == "__main__":
    sys.exit(main())
