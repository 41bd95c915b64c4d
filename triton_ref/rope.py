"""Rotary position embedding of queries and keys in one launch, in place.

Shapes: B batch, T tokens, H query heads, K key heads, D head_dim, F rotated pairs (2 F <= D).
"""

# Kernel arguments are traced, and constants are unwrapped. Triton's annotations express neither.
# pyright: reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from triton_ref.checks import check_rope

# 2^66 / (2 pi), and in units of 2^-32 turns: a quarter turn, an eighth, the radians of a unit.
INVERSE_OF_2_PI = tl.constexpr(0xA2F9836E4E441529)
QUARTER, EIGHTH, RADIANS = tl.constexpr(1 << 30), tl.constexpr(1 << 29), tl.constexpr(math.pi / 2**31)
HEADS_A_STEP = tl.constexpr(32)
OPTIONS = {"num_warps": 2, "enable_fp_fusion": True}


def rope(
    q_BTHD: torch.Tensor,
    k_BTKD: torch.Tensor,
    positions_BT: torch.Tensor,
    inverse_frequencies_F: torch.Tensor,
    attention_factor: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotates the pairs (x[i], x[i + F]) of every head by `position * inverse_frequencies[i]`.

    Works in place; elements from 2 F on are not changed. Angles are exact fractions of a turn at
    every position (see `_cos_and_sin`). Cosines, sines and the rotation are float32. The backward
    pass rotates the cotangents in the opposite direction, with the same attention factor. It works
    out of place, because other operations may use the cotangents too. Safe for any tensor size with
    B T below 2^31 tokens.

    Args:
      q_BTHD, k_BTKD: bfloat16, float16 or float32, contiguous; overwritten.
      positions_BT: int32, one position in tokens for each token, so that packed documents can start
        again at 0.
      inverse_frequencies_F: float32, radians per token, from 0 to 4.
      attention_factor: factor of cosines and sines, a compile-time constant.

    Returns:
      q and k themselves.

    Raises:
      ValueError: inconsistent or unsupported shapes, dtypes, devices or layouts.

    Source: Su et al., RoFormer, arXiv 2104.09864, with the halves paired as in Hugging Face's
      Llama.
    """
    check_rope(q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F)
    # Autograd accepts two tensors that are modified in place only if neither is a view, and the
    # output of a projection usually is one. Modify its base instead, which modifies the view too.
    q, k = (x if x._base is None or x._base.numel() != x.numel() else x._base for x in (q_BTHD, k_BTKD))
    pairs = inverse_frequencies_F.shape[0]
    constants = rope_constants(q_BTHD.shape[2], k_BTKD.shape[2], q_BTHD.shape[3], pairs, attention_factor)
    _Rope.apply(q, k, positions_BT.contiguous(), inverse_frequencies_F.contiguous(), constants)
    return q_BTHD, k_BTKD


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, positions, inverse_frequencies, constants):
        _rotate(q, k, q, k, positions, inverse_frequencies, constants, transposed=False)
        ctx.mark_dirty(q, k)
        ctx.save_for_backward(positions, inverse_frequencies)
        ctx.constants = constants
        return q, k

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *cotangents):  # pyright: ignore[reportIncompatibleMethodOverride]
        dq_out, dk_out = (x.contiguous() for x in cotangents)
        dq, dk = torch.empty_like(dq_out), torch.empty_like(dk_out)
        _rotate(dq_out, dk_out, dq, dk, *ctx.saved_tensors, ctx.constants, transposed=True)
        return dq, dk, None, None, None


def _rotate(q_in, k_in, q_out, k_out, positions, inverse_frequencies, constants, *, transposed: bool) -> None:
    with torch.cuda.device_of(q_in):
        rope_kernel[(positions.numel(),)](
            q_in, k_in, q_out, k_out, positions, inverse_frequencies, **constants,
            TRANSPOSED=transposed, IN_PLACE=q_in is q_out, **OPTIONS,
        )  # fmt: skip


def rope_constants(
    heads: int, kv_heads: int, head_dim: int, pairs: int, attention_factor: float = 1.0
) -> dict[str, int | float]:
    """Returns the constants of the kernel, except its direction."""
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "PAIRS": pairs,
        "PADDED_PAIRS": triton.next_power_of_2(pairs),
        "PADDED_REST": triton.next_power_of_2(head_dim - 2 * pairs),
        "ATTENTION_FACTOR": float(attention_factor),
    }


@triton.jit
def rope_kernel(
    q_in, k_in, q_out, k_out, positions, inverse_frequencies,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    PAIRS: tl.constexpr, PADDED_PAIRS: tl.constexpr, PADDED_REST: tl.constexpr,
    ATTENTION_FACTOR: tl.constexpr, TRANSPOSED: tl.constexpr, IN_PLACE: tl.constexpr,
):  # fmt: skip
    """Rotates a token per program; q [B, T, H, D], k [B, T, K, D]; IN_PLACE: in is out."""
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, PADDED_PAIRS)
    frequency = tl.load(inverse_frequencies + pair, mask=pair < PAIRS, other=0.0)
    cos, sin = _cos_and_sin(tl.load(positions + token), frequency)
    if ATTENTION_FACTOR != 1.0:
        cos = cos * ATTENTION_FACTOR
        sin = sin * ATTENTION_FACTOR
    if TRANSPOSED:
        sin = -sin
    _rotate_heads(q_in, q_out, token, cos, sin, HEADS, HEAD_DIM, PAIRS, PADDED_REST, IN_PLACE)
    _rotate_heads(k_in, k_out, token, cos, sin, KV_HEADS, HEAD_DIM, PAIRS, PADDED_REST, IN_PLACE)


@triton.jit
def _cos_and_sin(position, frequency):
    """The cosine and the sine of `position * frequency`, exact except for float32 at the end.

    A frequency is an integer m of 24 bits times 2^(e - 150). In turns, its first 64 fractional bits
    are those of m / (2 pi), shifted. The product with a position wraps around, which removes whole
    turns. Its first 32 bits are reduced to an eighth of a turn on either side, then converted.
    """
    bits = frequency.to(tl.uint32, bitcast=True)
    exponent = bits >> 23
    integer = (bits & 0x7FFFFF) | 0x800000
    turns_per_token = tl.umulhi(integer.to(tl.uint64) << 40, INVERSE_OF_2_PI) >> tl.minimum(128 - exponent, 63)
    turns = ((position.to(tl.uint64) * turns_per_token) >> 32).to(tl.int32)
    quarters = turns + EIGHTH
    angle = ((quarters & (QUARTER - 1)) - EIGHTH).to(tl.float32) * RADIANS
    square = angle * angle
    # The polynomials of Cephes' sinf and cosf. Those of libdevice also reduce large angles.
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * angle + angle
    cosine = ((2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2) * square
    cosine = (cosine - 0.5) * square + 1.0
    odd = (quarters & QUARTER) != 0
    cos, sin = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where(quarters + QUARTER < 0, -cos, cos), tl.where(quarters < 0, -sin, sin)


@triton.jit
def _rotate_heads(
    x_in, x_out, token, cos, sin,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr, PADDED_REST: tl.constexpr, IN_PLACE: tl.constexpr,
):  # fmt: skip
    STEP: tl.constexpr = min(triton.next_power_of_2(HEADS), HEADS_A_STEP)
    x_in += token * (HEADS * HEAD_DIM)
    x_out += token * (HEADS * HEAD_DIM)
    pair = tl.arange(0, cos.shape[0])[None, :]
    for start in range(0, HEADS, STEP):
        head = start + tl.arange(0, STEP)[:, None]
        offsets = head * HEAD_DIM + pair
        mask = (head < HEADS) & (pair < PAIRS)
        first = tl.load(x_in + offsets, mask=mask).to(tl.float32)
        second = tl.load(x_in + PAIRS + offsets, mask=mask).to(tl.float32)
        tl.store(x_out + offsets, (first * cos - second * sin).to(x_out.dtype.element_ty), mask=mask)
        tl.store(x_out + PAIRS + offsets, (second * cos + first * sin).to(x_out.dtype.element_ty), mask=mask)
        if not IN_PLACE and 2 * PAIRS < HEAD_DIM:
            rest = 2 * PAIRS + tl.arange(0, PADDED_REST)[None, :]
            mask = (head < HEADS) & (rest < HEAD_DIM)
            tl.store(x_out + head * HEAD_DIM + rest, tl.load(x_in + head * HEAD_DIM + rest, mask=mask), mask=mask)
