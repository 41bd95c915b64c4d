"""Measures the peak resident memory of loading and saving a model, in a separate process.

Usage: python peak_memory.py LOADED DTYPE SAVED, or LOADED DTYPE --quantize KIND, which does not
save. Prints JSON with the bytes of the model, of its largest tensor, of the largest linear layer in
float32, and both peaks relative to the resident memory at the start.
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
    """Resets the peak and returns the resident bytes. The peak includes mapped files."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def main() -> None:
    loaded, dtype, saved, *kind = sys.argv[1:]
    jax.numpy.zeros(1).block_until_ready()  # excludes the memory of the backend
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
