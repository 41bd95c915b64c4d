"""The specification in plain PyTorch, simple and quadratic. Tests run it in float64.

Results have the dtype of the inputs. Shapes: B batch, T query tokens, S key tokens, H query heads,
K key/value heads, G = H / K, D head_dim, F rotated pairs.
"""

from __future__ import annotations

import math

import torch

# 2^66 / (2 pi) in two words of 32 bits.
INVERSE_OF_2_PI = 0xA2F9836E, 0x4E441529


def attention(
    q_BTHD: torch.Tensor,
    k_BSKD: torch.Tensor,
    v_BSKD: torch.Tensor,
    *,
    causal: bool = True,
    query_segments_BT: torch.Tensor | None = None,
    key_segments_BS: torch.Tensor | None = None,
    query_offset: int | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks_H: torch.Tensor | None = None,
    scale: float | None = None,
    scores_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Specifies `triton_ref.attention`; returns (out [B, T, H, D], lse [B, H, T]).

    Scores, softmax and lse have `scores_dtype`, by default the dtype of the inputs (see
    `products`).
    """
    batch, tokens, heads, head_dim = q_BTHD.shape
    keys, kv_heads = k_BSKD.shape[1:3]
    q_BTKGD = q_BTHD.reshape(batch, tokens, kv_heads, heads // kv_heads, head_dim)
    scores = products(q_BTKGD, k_BSKD, scores_dtype or q_BTHD.dtype).reshape(batch, heads, tokens, keys)
    scores = scores * (head_dim**-0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    offset = keys - tokens if query_offset is None else query_offset
    mask = attention_mask(tokens, keys, causal, offset, window, q_BTHD.device)
    if query_segments_BT is not None and key_segments_BS is not None:
        mask = mask & (query_segments_BT[:, None, :, None] == key_segments_BS[:, None, None, :])
    scores = torch.where(mask, scores, -torch.inf)
    sinks_H = scores.new_full((heads,), -torch.inf) if sinks_H is None else sinks_H.to(scores.dtype)
    scores = torch.cat([sinks_H[None, :, None, None].expand(batch, heads, tokens, 1), scores], dim=-1)
    # Where nothing is visible, a finite score avoids nan in the softmax and its gradient.
    blind = (scores == -torch.inf).all(dim=-1, keepdim=True)
    scores = torch.where(blind, 0, scores)
    weights = torch.where(blind, 0, torch.softmax(scores, dim=-1))[..., 1:]
    lse_BHT = torch.where(blind, -torch.inf, torch.logsumexp(scores, dim=-1, keepdim=True))[..., 0]
    weights = weights.reshape(batch, kv_heads, heads // kv_heads, tokens, keys).to(v_BSKD.dtype)
    return torch.einsum("bkgts,bskd->btkgd", weights, v_BSKD).reshape(q_BTHD.shape), lse_BHT


def products(q_BTKGD: torch.Tensor, k_BSKD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns q k^T [B, K, G, T, S] in `dtype`.

    If the inputs are narrower, a GPU multiplies them on its tensor cores, whose sums are less exact
    than float32. A CPU has no such product, so the inputs are converted.
    """
    if q_BTKGD.dtype == dtype or not q_BTKGD.is_cuda:
        return torch.einsum("btkgd,bskd->bkgts", q_BTKGD.to(dtype), k_BSKD.to(dtype))
    batch, tokens, kv_heads, group, head_dim = q_BTKGD.shape
    keys = k_BSKD.shape[1]
    q_rows = q_BTKGD.permute(0, 2, 3, 1, 4).reshape(batch * kv_heads, group * tokens, head_dim)
    k_columns = k_BSKD.permute(0, 2, 3, 1).reshape(batch * kv_heads, head_dim, keys)
    return torch.bmm(q_rows, k_columns, out_dtype=dtype).reshape(batch, kv_heads, group, tokens, keys)


def attention_mask(
    tokens: int, keys: int, causal: bool, offset: int, window: int | None, device: torch.device | None = None
) -> torch.Tensor:
    """Returns which keys each query sees by position, bool [T, S]; query t is at `t + offset`."""
    position = torch.arange(tokens, device=device)[:, None] + offset
    key = torch.arange(keys, device=device)[None, :]
    mask = torch.ones(tokens, keys, dtype=torch.bool, device=device)
    if causal:
        mask = mask & (key <= position)
    if window is not None:
        mask = mask & (position - key < window)
        if not causal:
            mask = mask & (key - position < window)
    return mask


def rope(
    q_BTHD: torch.Tensor,
    k_BTKD: torch.Tensor,
    positions_BT: torch.Tensor,
    inverse_frequencies_F: torch.Tensor,
    attention_factor: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Specifies `triton_ref.rope`, out of place.

    The float32 frequencies are taken as exact. The angles are float64 even if q and k are not, and
    right to 2^-29 radians at every int32 position.
    """
    # The product of integers wraps around, which removes whole turns.
    turns = positions_BT.long()[..., None] * _turns_per_token(inverse_frequencies_F)
    angles = turns.double() * (2 * math.pi / 2**64)
    cos, sin = ((attention_factor * f(angles))[:, :, None].to(q_BTHD.dtype) for f in (torch.cos, torch.sin))
    half = inverse_frequencies_F.shape[0]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)

    return rotate(q_BTHD), rotate(k_BTKD)


def _turns_per_token(inverse_frequencies_F: torch.Tensor) -> torch.Tensor:
    """Returns frequencies from -4 to 4 in units of 2^-64 turns, rounded toward 0, int64 [F].

    A frequency is an integer of 24 bits times a power of two. The product of the integer and the
    bits of 1 / (2 pi) has 88 bits, in a pair of int64, and is shifted.
    """
    significands, exponents = torch.frexp(inverse_frequencies_F.double().abs())
    integers, shifts = (significands * 2**24).long(), 26 - exponents.long()
    low = integers * INVERSE_OF_2_PI[1]
    high, low = integers * INVERSE_OF_2_PI[0] + (low >> 32), low & 0xFFFFFFFF
    near = (high << (32 - shifts).clamp(min=0)) + (low >> shifts.clamp(max=63))
    turns = torch.where(shifts <= 32, near, high >> (shifts - 32).clamp(0, 63))
    return torch.where(inverse_frequencies_F < 0, -turns, turns)
