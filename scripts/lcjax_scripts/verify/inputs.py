"""Random inputs of a shape, seeded by its name, so that JAX's and torch's processes agree.

This module uses only numpy and ml_dtypes. Arrays have the dtype that the implementation receives.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import ml_dtypes
import numpy as np

from lcjax_scripts.verify.cases import POSITIONS, AttentionShape, RopeShape

Arrays = dict[str, np.ndarray]
Options = dict[str, Any]

NUMPY_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def make_inputs(name: str, shape: AttentionShape | RopeShape) -> tuple[Arrays, Options]:
    """Returns (arrays, options) for a call of the shape's operation, including cotangents."""
    rng = generator(name)
    return _attention(rng, shape) if isinstance(shape, AttentionShape) else _rope(rng, shape)


def digest(arrays: Arrays) -> str:
    """Returns a hash of every byte, to compare the inputs of both sides."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _attention(rng: np.random.Generator, shape: AttentionShape) -> tuple[Arrays, Options]:
    def normal(tokens: int, heads: int, size: float = 1.0) -> np.ndarray:
        drawn = rng.normal(size=(shape.batch, tokens, heads, shape.head_dim))
        return (size * drawn).astype(NUMPY_DTYPES[shape.dtype])

    arrays = {
        "q": normal(shape.tokens, shape.heads, shape.sharpness),
        "dout": normal(shape.tokens, shape.heads),
        "k": normal(shape.key_count, shape.kv_heads),
        "v": normal(shape.key_count, shape.kv_heads),
    }
    if shape.lse_cotangent:
        arrays["dlse"] = rng.normal(size=(shape.batch, shape.heads, shape.tokens)).astype(np.float32)
    if shape.sinks:
        arrays["sinks"] = rng.normal(size=shape.heads).astype(np.float32)
    if shape.segments is not None:
        keys = rng.integers(-1, 4, (shape.batch, shape.key_count), dtype=np.int32)
        if shape.segments == "packed":
            keys = np.sort(keys, axis=1)
        same = shape.key_count == shape.tokens
        queries = keys if same else rng.integers(-1, 4, (shape.batch, shape.tokens), dtype=np.int32)
        arrays |= {"query_segments": queries, "key_segments": keys}
    fields = ("causal", "window", "query_offset", "soft_cap")
    return arrays, {field: getattr(shape, field) for field in fields} | {"scale": None}


def _rope(rng: np.random.Generator, shape: RopeShape) -> tuple[Arrays, Options]:
    heads = {"q": shape.heads, "k": shape.kv_heads, "dq_out": shape.heads, "dk_out": shape.kv_heads}
    arrays = {
        name: rng.normal(size=(shape.batch, shape.tokens, n, shape.head_dim)).astype(NUMPY_DTYPES[shape.dtype])
        for name, n in heads.items()
    }
    position = POSITIONS[shape.positions]
    row = np.array([position(t, shape.tokens) for t in range(shape.tokens)], np.int32)
    arrays["positions"] = np.stack([np.roll(row, n) for n in range(shape.batch)])
    exponents = np.arange(shape.pair_count) / shape.pair_count
    arrays["inverse_frequencies"] = (shape.theta**-exponents).astype(np.float32)
    return arrays, {"attention_factor": shape.attention_factor}
