"""RoPE of queries and keys in one launch and in place, without extra memory.

Angles are computed where they are used, so no table of cosines is written and read. All heads of a
token share its sines and cosines. The backward pass is the same kernel with the sine negated, which
transposes a rotation. The attention factor is a constant of the kernel, or an argument if layers
differ in it.

Shapes: B batch, T tokens, H query heads, K key heads, D head_dim, F rotated pairs (2 F <= D); a
tile has G heads of one token.
Source: Su et al., RoFormer, arXiv 2104.09864, with the halves paired as in Hugging Face's Llama.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from lcjax.pallas.triton.launch import cos_and_sin, launch, load, store, whole

NUM_WARPS = 4
NUM_STAGES = 1
PAIRS_PER_THREAD = 8  # in bfloat16, two accesses of 16 bytes each


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def rotate(
    q_BTHD: jax.Array,
    k_BTKD: jax.Array,
    positions_BT: jax.Array,
    turns_2F: jax.Array,
    factor_1: jax.Array | None,
    attention_factor: float,
) -> tuple[jax.Array, jax.Array]:
    """The operation of `lcjax.ops.rope`, with its frequencies as `turns_per_token`, int32 [2, F].

    Rotated pairs are multiplied by `attention_factor`, and by factor_1, float32, if it is given.
    Differentiable in q and k; positions, frequencies and factors are constants. Largest safe size:
    all int32 positions; arrays of any number of elements.
    """
    return _forward(q_BTHD, k_BTKD, positions_BT, turns_2F, factor_1, attention_factor)[0]


def _forward(q_BTHD, k_BTKD, positions_BT, turns_2F, factor_1, attention_factor):
    constants = positions_BT, turns_2F, factor_1
    return _rotate(q_BTHD, k_BTKD, *constants, attention_factor=attention_factor, transposed=False), constants


def _backward(attention_factor, constants, cotangents):
    return *_rotate(*cotangents, *constants, attention_factor=attention_factor, transposed=True), None, None, None


rotate.defvjp(_forward, _backward)


def _rotate(q_BTHD, k_BTKD, positions_BT, turns_2F, factor_1, *, attention_factor: float, transposed: bool):
    constants = [x for x in (positions_BT, turns_2F, factor_1) if x is not None]
    batch, tokens = positions_BT.shape
    heads_specs = tuple(pl.BlockSpec((None, None, *x.shape[2:]), lambda t, b: (b, t, 0, 0)) for x in (q_BTHD, k_BTKD))
    return launch(
        functools.partial(_kernel, attention_factor=attention_factor, transposed=transposed),
        q_BTHD,
        k_BTKD,
        *constants,
        name="rope",
        # One token and many heads per program: more loads are in flight than with many tokens of
        # one head (docs/log.md).
        grid=(tokens, batch),
        in_specs=(*heads_specs, *map(whole, constants)),
        out_specs=heads_specs,
        out_shape=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BTHD, k_BTKD)),
        input_output_aliases={0: 0, 1: 1},
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )


def _kernel(q_ref, k_ref, positions_ref, turns_ref, *others, attention_factor: float, transposed: bool, native: bool):
    """Rotates all heads of a token in place.

    `others` are the reference of a factor, if there is one, and those of the results. Each group of
    heads is read before it is written, since the results reuse the arguments' memory.
    """
    *factor_refs, rotated_q_ref, rotated_k_ref = others
    pairs = turns_ref.shape[1]
    width = pl.next_power_of_2(pairs)
    in_columns_F = jnp.arange(width, dtype=jnp.int32) < pairs
    position = load(positions_ref.at[pl.program_id(1), pl.program_id(0)])
    high_F, low_F = (
        load(turns_ref.at[jnp.int32(word), _span(0, width)], mask=in_columns_F, other=0) for word in (0, 1)
    )
    cos_1F, sin_1F = (x[None, :] for x in cos_and_sin(position, high_F, low_F, native=native))
    if attention_factor != 1.0:
        cos_1F, sin_1F = cos_1F * attention_factor, sin_1F * attention_factor
    for factor_ref in factor_refs:
        factor = load(factor_ref.at[jnp.int32(0)])
        cos_1F, sin_1F = cos_1F * factor, sin_1F * factor
    if transposed:
        sin_1F = -sin_1F
    for x_ref, rotated_ref in ((q_ref, rotated_q_ref), (k_ref, rotated_k_ref)):
        heads = x_ref.shape[0]
        # As many heads at a time as fit into the registers of the program's threads.
        group = min(heads_at_once(pairs), pl.next_power_of_2(heads))
        for start in range(0, heads, group):
            inside = start + jnp.arange(group, dtype=jnp.int32)[:, None] < heads
            mask_GF = None if start + group <= heads and width == pairs else inside & in_columns_F[None, :]
            halves = tuple((_span(start, group), _span(column, width)) for column in (0, pairs))
            first_GF, second_GF = (_load(x_ref.at[half], mask_GF).astype(jnp.float32) for half in halves)
            rotated = first_GF * cos_1F - second_GF * sin_1F, second_GF * cos_1F + first_GF * sin_1F
            for half, x_GF in zip(halves, rotated, strict=True):
                store(rotated_ref.at[half], x_GF.astype(rotated_ref.dtype), mask=mask_GF)


def heads_at_once(pairs: int) -> int:
    """The heads that the threads of a program rotate together, for `pairs` pairs per head.

    It is a power of two.
    """
    return max(1, 32 * NUM_WARPS * PAIRS_PER_THREAD // pl.next_power_of_2(pairs))


def _span(start: int, size: int):
    # A start that is an array may exceed the axis, where the mask applies. A Python int may not.
    return pl.ds(jnp.int32(start), size)


def _load(ref, mask):
    return load(ref) if mask is None else load(ref, mask=mask, other=0.0)
