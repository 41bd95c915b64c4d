"""The matrices of shapes: default, full, and long."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from lcjax_scripts.verify.cases.covering import covering
from lcjax_scripts.verify.cases.named import ATTENTION, ATTENTION_FEATURES
from lcjax_scripts.verify.cases.shapes import POSITIONS, AttentionShape, LongShape, ModelShape, RopeShape, Shapes

DTYPES = ("float32", "bfloat16", "float16")
HEAD_DIMS = (64, 80, 96, 128, 256)
GQA_RATIOS = (1, 3, 4, 8)
LENGTHS = (1, 17, 127, 128, 1000, 4097)

# The mask axis of the matrix: the fields of each mask, given the number of keys.
MASKS: dict[str, Callable[[int], dict[str, Any]]] = {
    "causal": lambda keys: {},
    "full": lambda keys: {"causal": False},
    "window": lambda keys: {"window": keys // 16 + 2},
    "window both ways": lambda keys: {"window": keys // 16 + 2, "causal": False},
    "packed": lambda keys: {"segments": "packed"},
    "arbitrary segments": lambda keys: {"segments": "arbitrary"},
    "unequal lengths": lambda keys: {"keys": keys + 333, "query_offset": 100, "lse_cotangent": True},
    "sinks": lambda keys: {"sinks": True},
    "soft cap": lambda keys: {"soft_cap": 2.0, "lse_cotangent": True},
}

# Dtype, head_dim and GQA ratio of each mask at 4,097 tokens. Every value occurs, and slow values
# are combined with fast ones: in the interpreter, float32 with head_dim 256 has 32 times the blocks
# of bfloat16 with 128, and a full mask has 16 times those of a window. Sinks have the most heads,
# because each head has one gradient, and the error of few numbers is a matter of chance.
LONGEST = {
    "causal": ("float32", 64, 1),
    "full": ("bfloat16", 128, 1),
    "window": ("bfloat16", 256, 1),
    "window both ways": ("bfloat16", 96, 4),
    "packed": ("float16", 256, 3),
    "arbitrary segments": ("bfloat16", 64, 1),
    "unequal lengths": ("float16", 128, 1),
    "sinks": ("float16", 64, 8),
    "soft cap": ("float16", 80, 1),
}


def default_matrix() -> Shapes:
    """Returns the named shapes, and shapes that cover every combination of two values.

    With 4,097 tokens, there are only the named shapes.
    """
    dtypes = itertools.cycle(("bfloat16", "float16", "float32"))
    shapes: Shapes = {name: dataclasses.replace(shape, dtype=next(dtypes)) for name, shape in ATTENTION.items()}
    shapes |= ATTENTION_FEATURES
    for i, mask in enumerate(MASKS):
        for j, tokens in enumerate(LENGTHS[:-1]):
            axes = DTYPES[(i + 2 * j + 2) % 3], HEAD_DIMS[(3 * i + j + 3) % 5], GQA_RATIOS[(i + j) % 4], tokens, mask
            shapes |= _attention(*axes)
    shapes["rope x1000"] = RopeShape(1000, 3, 1, 64, positions="at 1M")
    shapes["rope yarn"] = RopeShape(127, 6, 2, 64, pairs=24, positions="at 1M", attention_factor=1.2, dtype="bfloat16")
    rotations = itertools.product((False, True), DTYPES, (20, *HEAD_DIMS))
    for n, (partial, dtype, head_dim) in enumerate(rotations):
        gqa_ratio, tokens = GQA_RATIOS[(n + n // 5) % 4], LENGTHS[(3 * n + n // 18) % 4]
        shapes |= _rope(dtype, head_dim, gqa_ratio, tokens, tuple(POSITIONS)[(n + n // 12) % 4], partial)
    shapes["SmolLM2"] = ModelShape(128)
    return shapes


def full_matrix() -> Shapes:
    """Returns the default matrix, and shapes that cover every combination of three values.

    With 4,097 tokens, there are only LONGEST and the named shapes. The product has 6,120 shapes,
    which would take a day to interpret; this is a thirteenth of it. It finds bugs that need three
    conditions, such as float16, a head_dim of 80, and a window.
    """
    shapes = default_matrix()
    *lengths, longest = LENGTHS
    for axes in covering(3, DTYPES, HEAD_DIMS, GQA_RATIOS, lengths, tuple(MASKS)):
        shapes |= _attention(*axes)
    for mask, (dtype, head_dim, gqa_ratio) in LONGEST.items():
        shapes |= _attention(dtype, head_dim, gqa_ratio, longest, mask)
    for axes in covering(3, DTYPES, HEAD_DIMS, GQA_RATIOS, LENGTHS, tuple(POSITIONS), (False, True)):
        shapes |= _rope(*axes)
    return shapes


def long_matrix() -> Shapes:
    """Returns shapes with a million tokens, and with just over 2^31 elements per tensor.

    They need a GPU with 80 GB.
    """
    beyond = 2**31 // (16 * 128) + 512
    return {
        "attention, 1M tokens": LongShape(2**20, 2, 1, 128),
        "attention beyond 2^31 elements": LongShape(beyond, 16, 16, 128, window=4096),
        "rope beyond 2^31 elements": LongShape(beyond, 16, 16, 128, of="rope"),
    }


def _attention(dtype: str, head_dim: int, gqa_ratio: int, tokens: int, mask: str) -> Shapes:
    # A single query has many keys, as in decoding. With one key, its gradients would be 0 except
    # for rounding.
    one_query: dict[str, Any] = {"keys": 130, "batch": 16}
    fields = one_query | MASKS[mask](130) if tokens == 1 else MASKS[mask](tokens)
    kv_heads = 1 if tokens >= 1000 or gqa_ratio == 8 else 2
    if "sinks" in fields and tokens < 1000:
        # With few sinks, or sums of few numbers, the error is a matter of chance.
        kv_heads = -(-(64 if tokens == 1 else 8) // gqa_ratio)
        fields |= {"batch": 2} if tokens == 1 else {}
    shape = AttentionShape(tokens, gqa_ratio * kv_heads, kv_heads, head_dim, dtype=dtype, **fields)
    return {f"attention {dtype} d{head_dim} gqa{gqa_ratio} x{tokens} {mask}": shape}


def _rope(dtype: str, head_dim: int, gqa_ratio: int, tokens: int, positions: str, partial: bool) -> Shapes:
    kv_heads = 2 if gqa_ratio < 8 else 1
    pairs = head_dim // 8 * 3 if partial else None
    shape = RopeShape(
        tokens, gqa_ratio * kv_heads, kv_heads, head_dim, 1 if tokens > 128 else 2, pairs, positions, dtype=dtype
    )
    partly = " partial" if partial else ""
    return {f"rope {dtype} d{head_dim} gqa{gqa_ratio} x{tokens} {positions}{partly}": shape}
