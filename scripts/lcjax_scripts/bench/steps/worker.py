"""The process of one row: `python -m lcjax_scripts.bench.steps.worker SHAPE ROW STEPS`.

SHAPE and ROW are JSON. The last line of the output is the result as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lcjax_scripts.bench.steps.sequential import wait_for_turn
from lcjax_scripts.bench.steps.shape import Shape


def command_of(shape: Shape, row: Mapping[str, Any], steps: int) -> list[str]:
    """Returns the command line of the process that measures a row."""
    attention = "auto" if row["implementation"] == "peft" else row["attention"]
    of_all = {field.name: getattr(shape, field.name) for field in dataclasses.fields(Shape)}
    of_row = Shape(**of_all | {"quantize": row["quantize"], "attention": attention, "mesh": row["mesh"]})
    arguments = [json.dumps(dataclasses.asdict(of_row)), json.dumps(dict(row)), str(steps)]
    return [sys.executable, "-m", "lcjax_scripts.bench.steps.worker", *arguments]


def main(argv: Sequence[str]) -> int:
    shape, row, steps = Shape(**json.loads(argv[0])), json.loads(argv[1]), int(argv[2])
    if row["implementation"] == "peft":
        result = peft_step(shape, row["tokens"], steps)
    else:
        result = lcjax_step(shape, row["tokens"], row["policy"], row["memory"], steps)
    print(json.dumps(result))
    return 0


def lcjax_step(shape: Shape, tokens: int, policy: str, memory: str, steps: int) -> dict[str, Any]:
    """Measures the step of `lcjax.train`."""
    import jax

    from lcjax_scripts.bench.steps import lcjax_side

    traced = lcjax_side.trace_step(shape, tokens, policy, memory)
    wait_for_turn()
    step = traced.compile()
    times, loss = timed(step.load(), steps)
    return rates(shape, tokens, min(times)) | {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "lora_r": shape.lora_r,
        "optimizer_memory": shape.optimizer_memory,
        "compile_seconds": round(traced.trace_seconds + step.compile_seconds, 1),
        "loss": loss,
        "peak_bytes": lcjax_side.peak_bytes(),
        "planned_bytes": step.planned.device_bytes,
        "host_bytes": step.planned.host_bytes,
    }


def peft_step(shape: Shape, tokens: int, steps: int) -> dict[str, Any]:
    """Measures the step of transformers + PEFT."""
    from lcjax_scripts.bench.steps import peft_side

    wait_for_turn()
    times, loss = timed(peft_side.make_step(shape, tokens), steps)
    return rates(shape, tokens, min(times)) | {
        "device": peft_side.device(),
        "lora_r": shape.lora_r,
        "loss": loss,
        "peak_bytes": peft_side.peak_bytes(),
    }


def timed(one_step: Callable[[], float], steps: int) -> tuple[list[float], float]:
    """Returns (seconds of each step after the first, last loss).

    If `steps` is 0, the first step is the only one, and it is timed.
    """
    loss, times = 0.0, []
    for _ in range(steps + 1):
        began = time.perf_counter()
        loss = one_step()
        times.append(time.perf_counter() - began)
    return times[1:] or times, loss


def rates(shape: Shape, tokens: int, seconds: float) -> dict[str, float]:
    """Returns tokens per second of all GPUs, and model FLOPs as a fraction of H100s' peak."""
    from lcjax.config.presets import resolve_config
    from lcjax.plan.choosing.flops import PEAK_BF16_TFLOPS, step_flops

    rows, gpus = shape.mesh_shape.data, shape.mesh_shape.size
    flops = rows * step_flops(resolve_config(shape.model), tokens, shape.lora_r).total
    mfu = flops / seconds / (gpus * PEAK_BF16_TFLOPS["h100-80gb"] * 1e12)
    return {"seconds": seconds, "tokens_per_second": rows * tokens / seconds, "mfu": mfu}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
