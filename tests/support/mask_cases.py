"""Masks of every kind on a small grid, and their values for every pair."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lcjax.ops.attention import masks
from lcjax.ops.attention.masks import Band, Blocks, Documents, Mask

BATCH, HEADS, TOKENS, KEYS = 2, 3, 70, 90
BLOCKS = Blocks(BATCH, HEADS, TOKENS, KEYS, query_block=16, key_block=32)
DRAW = np.random.default_rng(0)


def ids(length: int, *, ascending: bool):
    drawn = DRAW.integers(0, 4, (BATCH, length))
    return jnp.asarray(np.sort(drawn, axis=1) if ascending else drawn, jnp.int32)


ASCENDING = Documents(ids(TOKENS, ascending=True), ids(KEYS, ascending=True))
STEPS = jnp.asarray([2, 3, 40], jnp.int32)
# Masks with exact bounds, and masks whose bounds may include hidden blocks.
EXACT: dict[str, Mask] = {
    "causal": Band(after=0, static_offset=20),
    "causal from the start": Band(after=0),
    "all before": Band(after=0, static_offset=200),
    "none": Band(after=0, static_offset=-100),
    "window": Band(before=10, after=0, static_offset=20),
    "window of one": Band(before=1, after=0, static_offset=7),
    "both sides": Band(before=10, after=9),
    "offset at run time": Band(before=10, after=0, offset=jnp.asarray([13], jnp.int32)),
    "nothing hidden": masks.AllOf(),
    "documents": ASCENDING,
    "prefix": masks.function(lambda b, h, q, k: (k <= q) | (k < 40)),
    "dilated by head": masks.function(Partial(lambda steps, b, h, q, k: (q - k) % steps[h] == 0, STEPS)),
    "by sequence": masks.function(lambda b, h, q, k: (k < 10) & (b == 1)),
    "not even one": masks.function(lambda b, h, q, k: k < 0),
}
SAFE: dict[str, Mask] = {
    "causal documents": Band(after=0, static_offset=20) & ASCENDING,
    "documents in no order": Documents(ids(TOKENS, ascending=False), ids(KEYS, ascending=False)),
    "causal or documents": Band(after=0) | ASCENDING,
    "window and prefix": Band(before=30, after=0) & masks.function(lambda b, h, q, k: (k <= q) | (k < 40)),
}


def every_pair(mask: Mask) -> np.ndarray:
    """bool [B, H, T, S]."""
    indices = (jnp.arange(n, dtype=jnp.int32) for n in (BATCH, HEADS, TOKENS, KEYS))
    b, h, q, k = (x.reshape([-1 if axis == n else 1 for n in range(4)]) for axis, x in enumerate(indices))
    return np.broadcast_to(np.asarray(mask(b, h, q, k)), (BATCH, HEADS, TOKENS, KEYS))


def true_bounds(mask: Mask) -> tuple[np.ndarray, np.ndarray]:
    """Returns (some, every) [B, H, N, M], computed pair by pair."""
    pairs = every_pair(mask)
    starts = range(0, TOKENS, BLOCKS.query_block), range(0, KEYS, BLOCKS.key_block)
    cut = [
        [pairs[:, :, i : i + BLOCKS.query_block, j : j + BLOCKS.key_block].reshape(BATCH, HEADS, -1) for j in starts[1]]
        for i in starts[0]
    ]
    blocks = [np.array([[f(block, axis=-1) for block in row] for row in cut]) for f in (np.any, np.all)]
    return tuple(np.moveaxis(x, (2, 3), (0, 1)) for x in blocks)
