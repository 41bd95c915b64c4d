"""Shared code of the three attention kernels: loading tiles, computing logits, evaluating the mask.

Logits are in base 2, written as `slope * x`, so that the exponential includes the factor: the
softmax of scores s is `2^(s log2(e))` divided by its sum.

A tile is a tuple of parts by columns. float32 tiles have parts of LONGEST_SUM columns, so that no
product over head_dim is one long chain of additions; other tiles have a single part. Shapes: M rows
of the current tile, D its columns, all or those of a part.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from lcjax.pallas.triton.block_sizes import BlockSizes, padded_head_dim
from lcjax.pallas.triton.launch import TableView, dot_transposed, load, multiply_add, opaque, reciprocal, store

LOG2_E = math.log2(math.e)
LN_2 = math.log(2)
# The largest number of float32 terms that are added in one chain.
LONGEST_SUM = 32
# Represents minus infinity in masked logits. It is finite, so that differences are not nan, and so
# far below any real logit that its exponential is 0. It is a power of two, so that `slope *
# MASK_VALUE` is exact and a fused multiply-add of it against itself gives 0.
MASK_VALUE = -(2.0**100)

ScoreMod = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """The static part of a call: lengths in tokens, heads, scale of the scores, block sizes."""

    batch: int
    tokens: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    blocks: BlockSizes
    is_float32: bool
    """Whether q, k and v are float32."""

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def width(self) -> int:
        return padded_head_dim(self.head_dim)

    @property
    def query_blocks(self) -> int:
        return -(-self.tokens // self.blocks.query_block)

    @property
    def key_blocks(self) -> int:
        return -(-self.keys // self.blocks.key_block)

    @property
    def ragged_queries(self) -> bool:
        return self.tokens % self.blocks.query_block != 0

    @property
    def ragged_keys(self) -> bool:
        return self.keys % self.blocks.key_block != 0

    def queries(self, block: jax.Array) -> jax.Array:
        """The indices of the queries of a block, [query_block]."""
        return block * self.blocks.query_block + jnp.arange(self.blocks.query_block, dtype=jnp.int32)

    def keys_of(self, block: jax.Array) -> jax.Array:
        """The indices of the keys of a block, [key_block]."""
        return block * self.blocks.key_block + jnp.arange(self.blocks.key_block, dtype=jnp.int32)

    @property
    def parts(self) -> tuple[slice | pl.Slice, ...]:
        """The columns of the parts of a tile."""
        if not self.is_float32 or self.width <= LONGEST_SUM:
            return (slice(None),)
        return tuple(pl.ds(start, LONGEST_SUM) for start in range(0, self.head_dim, LONGEST_SUM))

    def inside(self, rows: jax.Array | None, length: int) -> Inside:
        """bool [M, D] of each part of a tile: which elements are in the array; None if all are.

        `rows` is None if all rows are in the array.
        """
        in_rows = None if rows is None else (rows < length)[:, None]
        return tuple(self._inside(in_rows, part) for part in self.parts)

    def _inside(self, in_rows: jax.Array | None, part: slice | pl.Slice) -> jax.Array | None:
        start, size = (part.start, part.size) if isinstance(part, pl.Slice) else (0, self.width)
        if start + size <= self.head_dim:
            return in_rows
        columns = start + jnp.arange(size, dtype=jnp.int32)[None, :] < self.head_dim
        return columns if in_rows is None else in_rows & columns


Parts = tuple[jax.Array, ...]
Inside = tuple[jax.Array | None, ...]


def load_tile(spec: KernelSpec, ref: Any, inside: Inside, *rows: Any) -> Parts:
    """The parts of a tile, zero outside the array: the device checks no bounds itself.

    `rows` is the position of the tile in the view.
    """
    views = (ref.at[(*(rows or (slice(None),)), part)] for part in spec.parts)
    return tuple(
        load(view) if mask is None else load(view, mask=mask, other=0.0)
        for view, mask in zip(views, inside, strict=True)
    )


def store_tile(spec: KernelSpec, ref: Any, tile: Parts, inside: Inside) -> None:
    """The inverse of `load_tile`, in the dtype of the array."""
    for part, x_MD, mask in zip(spec.parts, tile, inside, strict=True):
        store(ref.at[slice(None), part], x_MD.astype(ref.dtype), mask=mask)


def store_tile_with_new_addresses(ref: Any, tile: Parts, inside: Inside, *, native: bool) -> None:
    """`store_tile` for a tile in one part, with separately computed addresses.

    Otherwise the addresses of a load of the same rows would occupy registers in between. The
    compiler then does not see that columns are adjacent, and stores each element separately. So use
    it for a tile that is stored once, at the end.
    """
    [x_MD], [mask] = tile, inside
    rows, columns = (jnp.arange(size, dtype=jnp.int32) for size in x_MD.shape)
    places = rows[:, None], opaque(columns, native=native)[None, :]
    store(ref.at[tuple(jnp.broadcast_to(x, x_MD.shape) for x in places)], x_MD.astype(ref.dtype), mask=mask)


def scaled(tile: Parts, factor: Any) -> Parts:
    """Every part times a number or an array that broadcasts to each."""
    return tuple(x_MD * factor for x_MD in tile)


def row_products(x: Parts, y: Parts, *, native: bool) -> jax.Array:
    """`sum over D of x y`, float32 [M].

    For float32 it is taken from the diagonal of a product, in which the device adds in the same
    order as in any other product over head_dim. So equal values cancel to 0 and not to a rounding
    error.
    """
    if x[0].dtype != jnp.float32:
        [x_MD], [y_MD] = x, y
        return jnp.sum(x_MD.astype(jnp.float32) * y_MD.astype(jnp.float32), axis=1)
    rows = jnp.arange(x[0].shape[0], dtype=jnp.int32)
    products_MM = dot_transposed(x, y, native=native)
    return jnp.sum(jnp.where(rows[:, None] == rows[None, :], products_MM, 0.0), axis=1)


def load_rows(ref: Any, rows: jax.Array, length: int | None, other: float) -> jax.Array:
    """One number per row, `other` beyond `length`; None if no row is beyond."""
    return load(ref) if length is None else load(ref, mask=rows < length, other=other)


def load_softmax(
    lse_ref: Any, total_ref: Any, rows: jax.Array, length: int | None, *, native: bool
) -> tuple[jax.Array, jax.Array | None]:
    """(offset, factor) of each row: its weights are `2^(x - offset) factor` for base-2 logits x.

    None means a factor of 1. `lse_ref` and `total_ref` are results of `attention_forward`;
    total_ref is None if the log-sum-exp is one number.
    """
    lse = load_rows(lse_ref, rows, length, jnp.inf)
    if total_ref is None:
        return lse * LOG2_E, None
    return lse, reciprocal(load_rows(total_ref, rows, length, 1.0), native=native)


def slope(spec: KernelSpec, score_mod: ScoreMod | None) -> float:
    """The factor that converts the results of `logits` to base-2 logits."""
    return LOG2_E * (spec.scale if score_mod is None else 1.0)


def in_base_e(maximum: jax.Array, total: jax.Array, slope: float, *, native: bool = False) -> jax.Array:
    """The log-sum-exp from the largest base-2 logit and the sum of the weights relative to it.

    `maximum` includes the rounding of the slope to float32. This is corrected here with two
    constants whose sum is exact. If it is +inf, for a query without a key, the result is +inf, too.
    """
    factor = LN_2 * slope / float(np.float32(slope))
    coarse = float(np.float32(factor))
    whole = multiply_add(maximum, coarse, maximum * (factor - coarse) + jnp.log(total), native=native)
    # The two constants have different signs for some slopes, so inf would give inf - inf.
    return jnp.where(jnp.isposinf(maximum), maximum, whole)


def logits(products: jax.Array, spec: KernelSpec, score_mod: ScoreMod | None, indices: tuple) -> jax.Array:
    """The logits of unscaled products q k^T, without the factor `slope`."""
    if score_mod is None:
        return products
    return score_mod(products * spec.scale, *indices).astype(jnp.float32)


def logits_and_derivative(
    products: jax.Array, spec: KernelSpec, score_mod: ScoreMod | None, indices: tuple
) -> tuple[jax.Array, jax.Array | None]:
    """`logits`, and the derivative of the modified score by the plain one (None if it is 1)."""
    if score_mod is None:
        return products, None
    scores = products * spec.scale
    # Pallas cannot differentiate around a load. The first call records what it reads, and the
    # second call uses the record.
    notes: list[jax.Array] = []
    jax.tree.map(lambda table: _Noting(table, notes), score_mod)(scores, *indices)
    unread = iter(notes)
    noted = jax.tree.map(lambda table: _Noted(table, unread), score_mod)
    modified, derivative = jax.jvp(lambda s: noted(s, *indices), (scores,), (jnp.ones_like(scores),))
    return modified.astype(jnp.float32), derivative.astype(jnp.float32)


class _Noting(TableView):
    def __init__(self, table: Any, notes: list[jax.Array]):
        super().__init__(table)
        self._notes = notes

    def __getitem__(self, index: Any) -> jax.Array:
        self._notes.append(self.table[index])
        return self._notes[-1]


class _Noted(TableView):
    def __init__(self, table: Any, unread: Iterator[jax.Array]):
        super().__init__(table)
        self._unread = unread

    def __getitem__(self, index: Any) -> jax.Array:
        return next(self._unread)
