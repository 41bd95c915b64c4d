"""Measures, in a process of its own, how much resident memory loading a model takes at most, and saving it.

Usage: python peak_memory.py LOADED DTYPE SAVED, or LOADED DTYPE --quantize KIND, which saves nothing. Prints JSON: bytes of the
model, of its largest tensor, of the largest linear map of a layer in float32, and the two peaks above what was resident before.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import jax

from lcjax import weights
from lcjax.model.params import tensor_names


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def reset_peak() -> int:
    """Returns what is resident now. The kernel's high-water mark counts mapped file pages too, as ru_maxrss does."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def main() -> None:
    loaded, dtype, saved, *kind = sys.argv[1:]
    jax.numpy.zeros(1).block_until_ready()  # the backend's own memory is no part of the measurement
    before = reset_peak()
    config, params, _ = weights.load_model_files(loaded, dtype, *kind)
    measured = {
        "model": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "tensor": max(math.prod(name.shape) for name in tensor_names(config)) * params["norm"]["weight"].dtype.itemsize,
        "linear": max(math.prod(shape) for shape in config.linear_shapes().values()) * 4,
        "load": resident("VmHWM") - before,
    }
    if not kind:
        before = reset_peak()
        weights.save_checkpoint(saved, params, config, max_shard_bytes=10**8)
        measured["save"] = resident("VmHWM") - before
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
