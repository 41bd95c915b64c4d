"""RoPE of queries and keys in one launch and in place: no memory beside the arrays themselves.

Angles are computed where they are used, so there is no table of cosines to write and read: a token's sines and cosines are shared
by all of its heads. The backward pass is the same kernel with the sine negated: that transposes a rotation, and its attention
factor is a number.

Shapes: B batch, T tokens, H query heads, K key heads, D head_dim, F rotated pairs (2 F <= D); a tile has M tokens.
Source: Su et al., RoFormer, arXiv 2104.09864, with the halves paired as in Hugging Face's Llama.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from lcjax.pallas.launch import cos_and_sin, launch, load, store, whole

NUM_WARPS = 4
NUM_STAGES = 1
PAIRS_A_THREAD = 8  # in bfloat16 two accesses of 16 bytes; more pairs, warps or heads at once were slower on an H200


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def rotate(
    q_BTHD: jax.Array,
    k_BTKD: jax.Array,
    positions_BT: jax.Array,
    inverse_frequencies_F: jax.Array,
    attention_factor: float,
) -> tuple[jax.Array, jax.Array]:
    """The operation of `lcjax.ops.rope`. Differentiable in q and k; positions and frequencies are constants.

    Largest safe size: positions up to 2^24 (float32 holds no greater integer exactly); arrays of any number of elements.
    """
    return _rotate(
        q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F, attention_factor=attention_factor, transposed=False
    )


def _forward(q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F, attention_factor):
    rotated = _rotate(
        q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F, attention_factor=attention_factor, transposed=False
    )
    return rotated, (positions_BT, inverse_frequencies_F)


def _backward(attention_factor, residuals, cotangents):
    return *_rotate(*cotangents, *residuals, attention_factor=attention_factor, transposed=True), None, None


rotate.defvjp(_forward, _backward)


def _rotate(q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F, *, attention_factor: float, transposed: bool):
    batch, tokens = positions_BT.shape
    programs = pl.cdiv(tokens, tokens_a_program(inverse_frequencies_F.shape[0]))
    arguments = q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F
    specs = tuple(whole(x) for x in arguments)
    return launch(
        functools.partial(_kernel, attention_factor=attention_factor, transposed=transposed),
        *arguments,
        name="rope",
        grid=(programs, batch),
        in_specs=specs,
        out_specs=specs[:2],
        out_shape=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BTHD, k_BTKD)),
        input_output_aliases={0: 0, 1: 1},
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )


def tokens_a_program(pairs: int) -> int:
    """Tokens that a program rotates, for heads with so many rotated pairs."""
    return max(1, 32 * NUM_WARPS * PAIRS_A_THREAD // pl.next_power_of_2(pairs))


def _kernel(
    _q_ref,
    _k_ref,
    positions_ref,
    frequencies_ref,
    q_ref,
    k_ref,
    *,
    attention_factor: float,
    transposed: bool,
    native: bool,
):
    """Reads and writes the outputs, which are the inputs' memory."""
    b = pl.program_id(1)
    tokens, pairs = positions_ref.shape[1], frequencies_ref.shape[0]
    width, size = pl.next_power_of_2(pairs), tokens_a_program(pairs)
    rows = pl.ds(pl.program_id(0) * size, size)
    in_rows = rows.start + jnp.arange(size, dtype=jnp.int32) < tokens
    in_columns = jnp.arange(width, dtype=jnp.int32) < pairs
    positions_M = load(positions_ref.at[b, rows], mask=in_rows, other=0)
    frequencies_F = load(frequencies_ref.at[_columns(0, width)], mask=in_columns, other=0.0)
    angles_MF = positions_M.astype(jnp.float32)[:, None] * frequencies_F[None, :]
    cos_MF, sin_MF = cos_and_sin(angles_MF, native=native)
    if attention_factor != 1.0:
        cos_MF, sin_MF = cos_MF * attention_factor, sin_MF * attention_factor
    if transposed:
        sin_MF = -sin_MF
    inside = None if tokens % size == 0 and width == pairs else in_rows[:, None] & in_columns[None, :]

    def rotate_head(head, _, *, ref):
        first_ref, second_ref = (ref.at[b, rows, head, _columns(start, width)] for start in (0, pairs))
        first_MF, second_MF = (_load(half, inside).astype(jnp.float32) for half in (first_ref, second_ref))
        store(first_ref, (first_MF * cos_MF - second_MF * sin_MF).astype(ref.dtype), mask=inside)
        store(second_ref, (second_MF * cos_MF + first_MF * sin_MF).astype(ref.dtype), mask=inside)

    for ref in (q_ref, k_ref):
        lax.fori_loop(0, ref.shape[2], functools.partial(rotate_head, ref=ref), None)


def _columns(start: int, width: int):
    # A start that is an array may reach beyond the axis, where the mask takes over; a Python int may not.
    return pl.ds(jnp.int32(start), width)


def _load(ref, inside):
    return load(ref) if inside is None else load(ref, mask=inside, other=0.0)
