"""RoPE of queries and keys in one launch and in place: no memory beside the arrays themselves.

Angles are computed where they are used, so there is no table of cosines to write and read: a token's 2 F sines and cosines are
shared by all of its heads. The backward pass is the same kernel with the sine negated, since a rotation's inverse is its
transpose.

Shapes: B batch, T tokens, H query heads, K key heads, D head_dim, F rotated pairs (2 F <= D); a tile has M tokens.
Source: Su et al., RoFormer, arXiv 2104.09864, with the halves paired as in Hugging Face's Llama.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from lcjax.pallas.launch import launch, load, store, whole

TOKENS = 32  # a program's tile
NUM_WARPS = 4
HEADS_AT_ONCE = 2  # heads whose loads are in flight together


@jax.custom_vjp
def rotate(
    q_BTHD: jax.Array, k_BTKD: jax.Array, positions_BT: jax.Array, inverse_frequencies_F: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The operation of `lcjax.ops.rope`. Differentiable in q and k; positions and frequencies are constants.

    Largest safe size: positions up to 2^24 (float32 holds no greater integer exactly); arrays of any number of elements.
    """
    return _rotate(q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F, inverse=False)


def _forward(q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F):
    rotated = _rotate(q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F, inverse=False)
    return rotated, (positions_BT, inverse_frequencies_F)


def _backward(residuals, cotangents):
    return *_rotate(*cotangents, *residuals, inverse=True), None, None


rotate.defvjp(_forward, _backward)


def _rotate(q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F, *, inverse: bool):
    batch, tokens = positions_BT.shape
    arguments = q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F
    specs = tuple(whole(x) for x in arguments)
    return launch(
        functools.partial(_kernel, inverse=inverse),
        *arguments,
        name="rope",
        grid=(-(-tokens // TOKENS), batch),
        in_specs=specs,
        out_specs=specs[:2],
        out_shape=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BTHD, k_BTKD)),
        input_output_aliases={0: 0, 1: 1},
        num_warps=NUM_WARPS,
        num_stages=2,
    )


def _kernel(_q_ref, _k_ref, positions_ref, frequencies_ref, q_ref, k_ref, *, inverse: bool, native: bool):
    """Reads and writes the outputs, which are the inputs' memory."""
    b = pl.program_id(1)
    tokens, pairs = positions_ref.shape[1], frequencies_ref.shape[0]
    width = pl.next_power_of_2(pairs)
    start = pl.program_id(0) * TOKENS
    in_rows = start + jnp.arange(TOKENS, dtype=jnp.int32) < tokens
    in_columns = jnp.arange(width, dtype=jnp.int32) < pairs
    positions_M = load(positions_ref.at[b, pl.ds(start, TOKENS)], mask=in_rows, other=0)
    frequencies_F = load(frequencies_ref.at[_columns(0, width)], mask=in_columns, other=0.0)
    angles_MF = positions_M.astype(jnp.float32)[:, None] * frequencies_F[None, :]
    cos_MF, sin_MF = jnp.cos(angles_MF), jnp.sin(angles_MF)
    if inverse:
        sin_MF = -sin_MF
    inside = in_columns[None, :] if tokens % TOKENS == 0 else in_rows[:, None] & in_columns[None, :]
    inside = None if tokens % TOKENS == 0 and width == pairs else jnp.broadcast_to(inside, (TOKENS, width))

    def rotate_head(ref, head):
        halves = [ref.at[b, pl.ds(start, TOKENS), head, _columns(offset, width)] for offset in (0, pairs)]
        first_MF, second_MF = (_load(half, inside).astype(jnp.float32) for half in halves)
        store(halves[0], (first_MF * cos_MF - second_MF * sin_MF).astype(ref.dtype), mask=inside)
        store(halves[1], (second_MF * cos_MF + first_MF * sin_MF).astype(ref.dtype), mask=inside)

    for ref in (q_ref, k_ref):
        heads = ref.shape[2]
        at_once = HEADS_AT_ONCE if heads % HEADS_AT_ONCE == 0 else 1

        def rotate_heads(n, _, ref=ref, at_once=at_once):
            for m in range(at_once):
                rotate_head(ref, n * at_once + jnp.int32(m))
            return _

        lax.fori_loop(0, heads // at_once, rotate_heads, None)


def _columns(start: int, width: int):
    # A start that is an array may reach beyond the axis, where the mask takes over; a Python int may not.
    return pl.ds(jnp.int32(start), width)


def _load(ref, inside):
    return load(ref) if inside is None else load(ref, mask=inside, other=0.0)
