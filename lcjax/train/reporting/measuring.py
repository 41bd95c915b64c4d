"""The row of metrics.jsonl of a step: its numbers, and what the step took.

What a machine does not report is left out: a CPU has no memory statistics and no peak of FLOP/s.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lcjax.config import LlamaConfig
from lcjax.data import Batch
from lcjax.model import Llama
from lcjax.parallel.placement import this_device
from lcjax.plan.choosing.flops import PEAK_BF16_TFLOPS, step_flops
from lcjax.plan.compiling.aot import gpu_of_kind
from lcjax.train.running.computation import Computation, Step

MEASURED = (
    "tokens_per_second", "seconds", "elapsed_seconds", "mfu", "device_memory_bytes", "device_memory_peak_bytes",
    "host_memory_bytes",
)  # fmt: skip
"""The fields that differ between two runs with the same arguments."""


class Meter:
    """Makes the rows of a run, whose tokens and seconds continue those of the rows before."""

    def __init__(self, computation: Computation, former: Sequence[dict[str, Any]]):
        """Starts the clock.

        Args:
          computation: of the run.
          former: the rows of the steps that a resumed run has taken.
        """
        last = former[-1] if former else {}
        self._tokens = sum(row["tokens"] for row in former)
        self._began = time.perf_counter() - last.get("elapsed_seconds", 0.0)
        arguments = computation.arguments
        rows_per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        self._epochs_per_step = rows_per_step / max(len(computation.data.train_plan), 1)
        self._model = computation.model
        self._peak_flops = peak_flops(this_device(), computation.devices.shape.size)

    def row(self, number: int, done: Step) -> dict[str, Any]:
        """The row of step `number`.

        Its fields: step, loss (nats per token), router_aux_loss if experts are balanced, grad_norm,
        learning_rate, tokens (of this step, without padding), epoch, num_input_tokens_seen, and
        those of `MEASURED`: seconds of the step, elapsed_seconds of all sessions of the run, mfu,
        bytes of memory.
        """
        self._tokens += done.tokens
        row = {
            "step": number,
            "loss": done.loss,
            **({} if done.router_aux_loss is None else {"router_aux_loss": done.router_aux_loss}),
            "grad_norm": done.grad_norm,
            "learning_rate": done.learning_rate,
            "tokens": done.tokens,
            "epoch": round(number * self._epochs_per_step, 6),
            "num_input_tokens_seen": self._tokens,
            "tokens_per_second": round(done.tokens / done.seconds, 1),
            "seconds": round(done.seconds, 4),
            "elapsed_seconds": round(time.perf_counter() - self._began, 3),
        }
        if self._peak_flops is not None:
            row["mfu"] = round(batch_flops(self._model, done.batch) / done.seconds / self._peak_flops, 4)
        return row | memory(this_device().memory_stats())


def memory(statistics: dict[str, int] | None) -> dict[str, int]:
    """Bytes of device memory, from a result of `jax.Device.memory_stats`, and of host memory."""
    names = {"bytes_in_use": "device_memory_bytes", "peak_bytes_in_use": "device_memory_peak_bytes"}
    of_device = {name: statistics[key] for key, name in names.items() if key in statistics} if statistics else {}
    resident = resident_bytes()
    return of_device | ({} if resident is None else {"host_memory_bytes": resident})


def resident_bytes() -> int | None:
    """Bytes of this process in physical memory; None if the system is not Linux."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_flops(device: Any, count: int) -> float | None:
    """Dense bfloat16 FLOP/s of `count` such devices; None if they are not in lcjax.plan's table."""
    gpu = gpu_of_kind(device.device_kind)
    return None if gpu is None else count * PEAK_BF16_TFLOPS[gpu] * 1e12


def batch_flops(model: Llama, batch: Batch) -> int:
    """Model FLOPs of one step: of every piece of a document, as `lcjax.plan` counts them.

    Padding is not counted, and a token attends only to tokens of its own piece.
    """
    lora = model.settings.lora
    rank, targets = (0, None) if lora is None else (lora.r, tuple(lora.target_modules))
    lengths, counts = np.unique(piece_lengths(batch["segment_ids"]), return_counts=True)
    return sum(
        int(count) * _flops(model.config, int(length), rank, targets)
        for length, count in zip(lengths, counts, strict=True)
    )


@functools.lru_cache(maxsize=4096)
def _flops(config: LlamaConfig, tokens: int, rank: int, targets: tuple[str, ...] | None) -> int:
    return step_flops(config, tokens, rank, targets).total


def piece_lengths(segment_ids: np.ndarray) -> np.ndarray:
    """The tokens of every piece in rows [..., T] of segment ids, where 0 is padding."""
    rows = segment_ids.reshape(-1, segment_ids.shape[-1])
    begins = np.ones(rows.shape, bool)
    begins[:, 1:] = rows[:, 1:] != rows[:, :-1]
    first = np.flatnonzero(begins)
    lengths = np.diff(np.append(first, rows.size))
    return lengths[rows.reshape(-1)[first] != 0]
