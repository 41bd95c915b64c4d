"""Products of rows with the matrices of their experts.

A program computes a tile of a block of rows. The rows of a block have the same expert
(`lcjax.ops.grouped.routing`), so a program reads one matrix. A program of
the gradient of the weights adds up the blocks of one expert, in order.

Shapes: R rows, N blocks of M rows, E experts, O out, I in; a tile is [M, P] of the result, and K of
the summed axis are read at a time.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from lcjax.ops.grouped.routing import Routing
from lcjax.pallas.triton.block_sizes import H100, traced_gpu
from lcjax.pallas.triton.launch import add_dot, launch, load, store, whole

_STEP = 64
_SMALLEST = 16  # of every axis of a product, for Triton
# Columns of a tile and stages of the pipelined loop, by whether shared memory is small and by bytes
# of an element. The 2-byte entry for Hopper is the fastest that was measured on an H200.
_WIDEST = {(False, 2): (256, 4), (True, 2): (128, 3), (False, 4): (64, 2), (True, 4): (64, 2)}


def product(x_RI: jax.Array, weight_EOI: jax.Array, routing: Routing, transposed: bool) -> jax.Array:
    """See `lcjax.ops.grouped.product.Products`."""
    columns, rows = weight_EOI.shape[2 if transposed else 1], routing.block_rows
    widest, stages = _WIDEST[_has_small_memory(), x_RI.dtype.itemsize]
    tile, step = _fitting(columns, widest), _fitting(x_RI.shape[1], _STEP // (x_RI.dtype.itemsize // 2))
    return launch(
        functools.partial(_product, rows=rows, tile=tile, step=step, transposed=transposed),
        *(routing.expert_N, x_RI, weight_EOI),
        name="grouped_product",
        # Programs that run at the same time share a part of a matrix.
        grid=(len(routing.expert_N), pl.cdiv(columns, tile)),
        in_specs=tuple(map(whole, (routing.expert_N, x_RI, weight_EOI))),
        out_specs=pl.BlockSpec((len(x_RI), columns), lambda *_: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((len(x_RI), columns), x_RI.dtype),
        num_warps=8 if rows * tile >= 128 * 128 else 4,
        num_stages=stages,
    )


def outer_product(dy_RO: jax.Array, x_RI: jax.Array, routing: Routing) -> jax.Array:
    """See `lcjax.ops.grouped.product.Products`."""
    outputs, inputs = dy_RO.shape[1], x_RI.shape[1]
    shape = routing.experts, outputs, inputs
    # Products of float32 have no tensor cores: with more rows at a time, registers run out.
    widest, most_rows = (128, routing.block_rows) if x_RI.dtype.itemsize == 2 else (64, _SMALLEST)
    tiles = _fitting(outputs, widest), _fitting(inputs, widest)
    return launch(
        functools.partial(_outer_product, rows=routing.block_rows, step=most_rows, tiles=tiles),
        *(routing.first_E1, dy_RO, x_RI),
        name="grouped_outer_product",
        grid=(pl.cdiv(inputs, tiles[1]), pl.cdiv(outputs, tiles[0]), routing.experts),
        in_specs=tuple(map(whole, (routing.first_E1, dy_RO, x_RI))),
        out_specs=pl.BlockSpec(shape, lambda *_: (0, 0, 0)),
        out_shape=jax.ShapeDtypeStruct(shape, x_RI.dtype),
        num_warps=8 if tiles[0] * tiles[1] >= 128 * 128 else 4,
        num_stages=2 if _has_small_memory() or x_RI.dtype == jnp.float32 else 3,
    )


def _has_small_memory() -> bool:
    """Whether a program has less shared memory than on Hopper."""
    return traced_gpu().shared_memory < H100.shared_memory


def _fitting(size: int, most: int) -> int:
    """The part of an axis that a program has: a power of two, at most `most`."""
    return max(_SMALLEST, min(most, pl.next_power_of_2(size)))


def _product(expert_ref, x_ref, weight_ref, y_ref, *, rows: int, tile: int, step: int, transposed: bool, native: bool):
    expert = load(expert_ref.at[pl.program_id(0)])
    columns, summed = y_ref.shape[1], x_ref.shape[1]
    span_M, first = pl.ds(pl.program_id(0) * rows, rows), pl.program_id(1) * tile
    inside_P = first + jnp.arange(tile, dtype=jnp.int32) < columns

    def add(n, sum_MP):
        inside_K = n * step + jnp.arange(step, dtype=jnp.int32) < summed
        span_K, span_P = pl.ds(n * step, step), pl.ds(first, tile)
        x_MK = _load(x_ref.at[span_M, span_K], _mask(None, inside_K, (rows, step), summed % step))
        ragged = bool(summed % step or columns % tile)
        if transposed:
            w_KP = _load(weight_ref.at[expert, span_K, span_P], _mask(inside_K, inside_P, (step, tile), ragged))
            return add_dot(sum_MP, x_MK, w_KP, b_axis=0, native=native)
        w_PK = _load(weight_ref.at[expert, span_P, span_K], _mask(inside_P, inside_K, (tile, step), ragged))
        return add_dot(sum_MP, x_MK, w_PK, b_axis=1, native=native)

    # A block without rows belongs to no expert. Its result is zeros.
    steps = jnp.where(expert < weight_ref.shape[0], jnp.int32(pl.cdiv(summed, step)), jnp.int32(0))
    y_MP = lax.fori_loop(jnp.int32(0), steps, add, jnp.zeros((rows, tile), jnp.float32))
    mask = _mask(None, inside_P, (rows, tile), columns % tile)
    store(y_ref.at[span_M, pl.ds(first, tile)], y_MP.astype(y_ref.dtype), mask=mask)


def _outer_product(first_ref, dy_ref, x_ref, sum_ref, *, rows: int, step: int, tiles: tuple[int, int], native: bool):
    i, o, expert = (pl.program_id(axis) for axis in range(3))
    (outputs, inputs), (wide, long) = (dy_ref.shape[1], x_ref.shape[1]), tiles
    span_O, span_I = pl.ds(o * wide, wide), pl.ds(i * long, long)
    inside_O = o * wide + jnp.arange(wide, dtype=jnp.int32) < outputs
    inside_I = i * long + jnp.arange(long, dtype=jnp.int32) < inputs

    def add(n, sum_OI):
        span_M = pl.ds(n * step, step)
        dy_MO = _load(dy_ref.at[span_M, span_O], _mask(None, inside_O, (step, wide), outputs % wide))
        x_MI = _load(x_ref.at[span_M, span_I], _mask(None, inside_I, (step, long), inputs % long))
        return add_dot(sum_OI, dy_MO.T, x_MI, b_axis=0, native=native)

    first, end = (load(first_ref.at[expert + n]) * (rows // step) for n in (0, 1))
    sum_OI = lax.fori_loop(first, end, add, jnp.zeros(tiles, jnp.float32))
    mask = _mask(inside_O, inside_I, tiles, outputs % wide or inputs % long)
    store(sum_ref.at[expert, span_O, span_I], sum_OI.astype(sum_ref.dtype), mask=mask)


def _mask(inside_A, inside_B, shape: tuple[int, int], ragged):
    """Which elements of a tile are inside of the array; None if all are."""
    if not ragged:
        return None
    mask = inside_B[None, :] if inside_A is None else inside_A[:, None] & inside_B[None, :]
    return jnp.broadcast_to(mask, shape)


def _load(ref, mask):
    return load(ref) if mask is None else load(ref, mask=mask, other=0.0)
