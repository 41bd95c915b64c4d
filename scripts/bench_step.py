"""A training step of a large model with random weights on a GPU: time, model FLOPs, and the memory that was planned and used.

    python scripts/bench_step.py --lengths 16384 32768 --settings "full none" "offload tile=8192" --csv steps.csv
    python scripts/bench_step.py --lengths 16384 --quantize none --peft        # beside transformers + PEFT

Every row runs in a process of its own: the peak of one is not another's, and what runs out of memory ends alone. The batch is one
sequence. Prints seconds a step (the fastest), tokens a second, model FLOPs in parts of the GPU's peak, GiB at the peak beside
those that the compiler said, and GiB of pinned host memory.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Bench:
    """LoRA on all seven linear maps or every weight, AdamW, one sequence a step."""

    model: str = "llama-3.1-8b"
    """A preset or a config.json."""
    lengths: tuple[int, ...] = (16_384,)
    """Tokens a sequence."""
    settings: tuple[str, ...] = ("auto auto",)
    """Gradient checkpointing and --memory, as a pair in one word each: "offload tile=8192,head_groups=8"."""
    quantize: str = "nf4"
    """nf4, or none for bfloat16."""
    attention: str = "auto"
    """Implementation of attention."""
    lora_r: int = 32
    """Rank of the adapter; 0 trains every weight."""
    optimizer_memory: str = "auto"
    """As in lcjax.train: where AdamW's state is."""
    steps: int = 2
    """Timed steps, after one that warms up; 0 times that one, its first allocations included, where a step takes minutes."""
    host_gb: int = 100
    """GiB of host memory that may be pinned."""
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
        print(json.dumps(measure(bench, **{k: v for k, v in row.items() if k != "implementation"})))
        return 0
    print(*(f"{name} {version(name)}" for name in ("jax", "flax", "optax")), flush=True)
    for row in rows(bench):
        result = row | _in_a_process(bench, row)
        print(_line(result), flush=True)
        if bench.csv:
            _append(bench.csv, result)
    return 0


def rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """What is measured, in turn."""
    for tokens, settings in itertools.product(bench.lengths, bench.settings):
        policy, _, memory = settings.partition(" ")
        yield {"implementation": "lcjax", "tokens": tokens, "policy": policy, "memory": memory or "auto"}
    for tokens in bench.lengths if bench.peft else ():
        yield {"implementation": "peft", "tokens": tokens, "policy": "full", "memory": "none"}


def _in_a_process(bench: Bench, row: dict[str, Any]) -> dict[str, Any]:
    arguments = [f"--{f.name.replace('_', '-')}={getattr(bench, f.name)}" for f in dataclasses.fields(bench)
                 if f.name in ("model", "quantize", "attention", "lora_r", "optimizer_memory", "steps")]  # fmt: skip
    environment = os.environ | {
        "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": str(bench.host_gb),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, __file__, *arguments, f"--row={json.dumps(row)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["died"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def _line(result: dict[str, Any]) -> str:
    name = f"{result['implementation']:5} {result['tokens']:>7,}  {result['policy']:12} {result['memory']:60}"
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

    from lcjax import step
    from lcjax.memory import parse_memory
    from lcjax.model import ModelSettings
    from lcjax.plan.memory import measure
    from lcjax.plan.parameters import abstract_params
    from lcjax.plan.workload import Workload
    from lcjax.presets import resolve_config
    from lcjax.train.arguments import TrainingArguments
    from lcjax.train.program import build_program

    config, quantize = resolve_config(bench.model), None if bench.quantize == "none" else bench.quantize
    lora = Workload(bench.model, config, "h100-80gb", bench.lora_r, quantize).lora
    settings = ModelSettings(
        tokens,
        lora=lora,
        use_gradient_checkpointing=policy,
        attention=bench.attention,
        memory=parse_memory(memory),
    )
    params = jax.tree.map(_random, abstract_params(config, lora, quantize))
    arguments = TrainingArguments(optimizer_memory=bench.optimizer_memory)
    program = build_program(config, params, settings, arguments, max_steps=10)
    del params
    state = step.init_state(program.optimizer, program.trainable, 0)
    program = dataclasses.replace(program, trainable={})
    positions = jax.numpy.arange(tokens, dtype="int32")[None, None]
    ids = positions * 7919 % config.vocab_size
    batch = dict(zip(step.BATCH_KEYS, (ids, ids, positions, positions * 0), strict=True))
    began = time.perf_counter()
    train_step = step.jit_train_step(program.objective, program.optimizer)
    compiled = train_step.lower(state, program.frozen, batch).compile()
    compile_seconds = time.perf_counter() - began
    planned = measure(compiled, state, program.frozen)

    def one_step() -> float:
        nonlocal state
        state, metrics = compiled(state, program.frozen, batch)
        return float(metrics.loss)

    times, loss = _timed(one_step, bench.steps)
    device = jax.devices()[0]
    statistics = device.memory_stats() or {}
    return _rates(config, bench, tokens, min(times)) | {
        "device": device.device_kind,
        "jax": jax.__version__,
        "quantize": bench.quantize,
        "lora_r": bench.lora_r,
        "optimizer_memory": bench.optimizer_memory,
        "attention": bench.attention,
        "compile_seconds": round(compile_seconds, 1),
        "loss": loss,
        "peak_bytes": statistics.get("peak_bytes_in_use", 0),
        "planned_bytes": planned.device_bytes,
        "host_bytes": planned.host_bytes,
    }


def _random(leaf: Any) -> Any:
    """Values of a weight's size, made on the device."""
    import jax
    import jax.numpy as jnp

    def make():
        bits = jax.lax.iota(jnp.uint32, leaf.size) * jnp.uint32(2654435761) >> 8
        if leaf.dtype == jnp.uint8:
            return (bits & 0xFF).astype(jnp.uint8).reshape(leaf.shape)
        return ((bits.astype(jnp.float32) / 2**23 - 1) * 0.03).astype(leaf.dtype).reshape(leaf.shape)

    return jax.jit(make)()


def peft_step(bench: Bench, tokens: int, policy: str, memory: str) -> dict[str, Any]:
    """transformers + PEFT in bfloat16, its own gradient checkpointing, torch's scaled_dot_product_attention."""
    import peft
    import torch
    import transformers

    from lcjax.presets import resolve_config

    config = resolve_config(bench.model)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.LlamaConfig(**config.to_dict()), dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    adapter = peft.LoraConfig(r=bench.lora_r, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, adapter)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    ids = (torch.arange(tokens, device="cuda") * 7919 % config.vocab_size)[None]

    def one_step() -> float:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        return float(loss)

    times, loss = _timed(one_step, bench.steps)
    return _rates(config, bench, tokens, min(times)) | {
        "device": torch.cuda.get_device_name(),
        "quantize": "none",
        "lora_r": bench.lora_r,
        "attention": "sdpa",
        "loss": loss,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def _timed(one_step: Callable[[], float], steps: int) -> tuple[list[float], float]:
    """(seconds of each step after the first, or of the first alone where `steps` is 0; the last loss)."""
    loss, times = 0.0, []
    for _ in range(steps + 1):
        began = time.perf_counter()
        loss = one_step()
        times.append(time.perf_counter() - began)
    return times[1:] or times, loss


def _rates(config: Any, bench: Bench, tokens: int, seconds: float) -> dict[str, float]:
    from lcjax.plan.flops import PEAK_BF16_TFLOPS, step_flops

    flops = step_flops(config, tokens, bench.lora_r).total
    mfu = flops / seconds / (PEAK_BF16_TFLOPS["h100-80gb"] * 1e12)
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "mfu": mfu}


if __name__ == "__main__":
    sys.exit(main())
