"""Flash attention as a differentiable torch function that launches three kernels.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads (H is a multiple of
K), D head_dim.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
import triton

from triton_ref.attention_dkv import dkv_kernel
from triton_ref.attention_dq import dq_kernel
from triton_ref.attention_forward import forward_kernel
from triton_ref.block_sizes import BlockSizes, block_sizes_for, padded
from triton_ref.checks import check_attention
from triton_ref.segment_ranges import segment_ranges


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
    return_lse: bool = False,
    block_sizes: Mapping[str, BlockSizes] | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Computes `softmax(scale * q k^T + mask) v` with grouped query heads.

    Differentiable with respect to q, k, v and sinks, for cotangents of both the output and the lse.
    Query t has key index `p = t + query_offset`. Query head h uses key/value head `h // (H / K)`.
    Accumulation is float32, also over the query heads of a group; products of float32 inputs are
    full float32. Deterministic. Memory is O(T + S). The output of a query that sees no key is 0.
    Safe for any tensor size with T + S below 2^31 tokens.

    Args:
      q_BTHD, k_BSKD, v_BSKD: bfloat16, float16 or float32, with the same dtype; D at most 256.
      causal: a query sees the keys s <= p.
      query_segments_BT, key_segments_BS: int32 document ids, both or neither. A query sees only
        keys
        with its own id. With ascending ids, blocks without a common id cost nothing.
      query_offset: the key index of query 0 in tokens. None means `S - T`, which aligns the last
        query with the last key.
      window: a query sees the keys with `p - s < window` tokens and, if not causal, with
        `s - p < window`.
      soft_cap: scores become `soft_cap * tanh(score / soft_cap)`, before the mask.
      sinks_H: float32, one logit per head that is added to the denominator, neither scaled nor
        capped.
      scale: None means `1 / sqrt(D)`.
      return_lse: whether to return the log-sum-exp as well.
      block_sizes: block sizes by kernel ("forward", "dq", "dkv") that replace those in
        `triton_ref.block_sizes.BLOCK_SIZES`.

    Returns:
      out [B, T, H, D] in q's dtype. With `return_lse`, also lse, float32 [B, H, T], the natural
      logarithm with sinks included. It is -inf for a query that sees neither a key nor a sink.

    Raises:
      ValueError: inconsistent or unsupported shapes, dtypes, devices or options.

    Source: Dao, FlashAttention-2, arXiv 2307.08691; sinks: gpt-oss model card, arXiv 2508.10925.
    """
    segments = query_segments_BT, key_segments_BS
    check_attention(q_BTHD, k_BSKD, v_BSKD, *segments, query_offset, window, soft_cap, sinks_H, scale, block_sizes)
    tokens, keys = q_BTHD.shape[1], k_BSKD.shape[1]
    lower, upper = band(tokens, keys, causal, keys - tokens if query_offset is None else query_offset, window)
    call = KernelCall(lower, upper, q_BTHD.shape[3] ** -0.5 if scale is None else scale, soft_cap, block_sizes)
    if not tokens or not keys:
        segments = None, None
    # The kernels need contiguous tensors. A tensor that is already contiguous is not copied.
    inputs = (q_BTHD, k_BSKD, v_BSKD, sinks_H, *segments)
    out, lse = _Attention.apply(call, *(None if x is None else x.contiguous() for x in inputs))
    return (out, lse) if return_lse else out


def band(tokens: int, keys: int, causal: bool, offset: int, window: int | None) -> tuple[int | None, int | None]:
    """Returns (lower, upper): by position, query t sees key s if `lower <= s - t <= upper`.

    A bound that hides nothing is None. A bound that hides everything is clamped to fit int32.
    """
    lower = -tokens if window is None else offset - window + 1
    upper = offset if causal else keys if window is None else offset + window - 1
    return (
        None if lower <= 1 - tokens else min(lower, keys),
        None if upper >= keys - 1 else max(upper, -tokens),
    )


# With more keys than this, the forward kernel uses Kahan summation for the weights, as Pallas does.
MANY_KEYS = 2**17


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """The static properties of a call, and the launch of its kernels."""

    lower: int | None
    upper: int | None
    scale: float
    soft_cap: float | None
    block_sizes: Mapping[str, BlockSizes] | None

    def launch(
        self, name: str, q: torch.Tensor, k: torch.Tensor, segments: tuple, **tensors: torch.Tensor | None
    ) -> None:
        """Launches the kernel `name` over blocks of queries, or of keys for "dkv".

        `tensors` are the arguments that not all kernels have.
        """
        batch, tokens, heads, head_dim = q.shape
        keys, kv_heads = k.shape[1:3]
        sizes = block_sizes_for(name, head_dim, q.dtype, self.block_sizes)
        over_keys = name == "dkv"
        blocks = triton.cdiv(keys, sizes.keys) * kv_heads if over_keys else triton.cdiv(tokens, sizes.queries) * heads
        lower, upper = (_negated(self.upper), _negated(self.lower)) if over_keys else (self.lower, self.upper)
        with torch.cuda.device_of(q):
            FUNCTIONS[name][(batch * blocks,)](
                q=q, k=k, **tensors, query_segments=segments[0], key_segments=segments[1],
                ranges=_ranges(segments, sizes, over_keys), T=tokens, S=keys, lower=lower, upper=upper,
                scale=self.scale, **attention_constants(heads, kv_heads, head_dim, self.soft_cap, sizes),
                **summation(name, keys), **sizes.options,
            )  # fmt: skip


FUNCTIONS: dict[str, Any] = {"forward": forward_kernel, "dq": dq_kernel, "dkv": dkv_kernel}


def attention_constants(
    heads: int, kv_heads: int, head_dim: int, soft_cap: float | None, sizes: BlockSizes
) -> dict[str, int | float | None]:
    """Returns the constants of a kernel."""
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "WIDTH": padded(head_dim),
        "SOFT_CAP": soft_cap,
        "QUERIES": sizes.queries,
        "KEYS": sizes.keys,
    }


def summation(name: str, keys: int) -> dict[str, bool]:
    """Returns the constants that select how a kernel sums weights."""
    return {"COMPENSATED": keys > MANY_KEYS} if name == "forward" else {}


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call: KernelCall, q, k, v, sinks, query_segments, key_segments):
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32, device=q.device)
        base2_lse, totals = torch.empty_like(lse), torch.empty_like(lse) if q.dtype == torch.float32 else None
        row_sums = {"base2_lse": base2_lse, "totals": totals}
        call.launch("forward", q, k, (query_segments, key_segments), v=v, sinks=sinks, out=out, lse=lse, **row_sums)
        ctx.save_for_backward(q, k, v, sinks, query_segments, key_segments, out, base2_lse, totals)
        ctx.call = call
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *cotangents):  # pyright: ignore[reportIncompatibleMethodOverride]
        dout, dlse = cotangents
        q, k, v, sinks, *segments, out, base2_lse, totals = ctx.saved_tensors
        dout = torch.zeros_like(out) if dout is None else dout.contiguous()
        dlse = None if dlse is None else dlse.contiguous()
        dq, dk, dv, delta = (torch.empty_like(x) for x in (q, k, v, base2_lse))
        shared = {"v": v, "dout": dout, "base2_lse": base2_lse, "totals": totals, "delta": delta}
        ctx.call.launch("dq", q, k, segments, **shared, out=out, dlse=dlse, dq=dq)
        ctx.call.launch("dkv", q, k, segments, **shared, dk=dk, dv=dv)
        dsinks = None
        if sinks is not None:
            weights = torch.exp2(sinks[:, None] / math.log(2) - base2_lse)
            dsinks = -((weights if totals is None else weights / totals) * delta).sum(dim=(0, 2))
        return None, dq, dk, dv, dsinks, None, None


def _ranges(segments: tuple, sizes: BlockSizes, over_keys: bool) -> torch.Tensor | None:
    query_segments, key_segments = segments
    if query_segments is None:
        return None
    if over_keys:
        return segment_ranges(key_segments, query_segments, sizes.keys, sizes.queries)
    return segment_ranges(query_segments, key_segments, sizes.queries, sizes.keys)


def _negated(bound: int | None) -> int | None:
    return None if bound is None else -bound
