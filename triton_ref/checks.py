"""Argument checks of `attention` and `rope`. Each error names the value and the remedy."""

from __future__ import annotations

import math

import torch

from triton_ref.block_sizes import KERNELS
from triton_ref.blocks import INTERPRETED

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_HEAD_DIM = 256


def check_attention(
    q, k, v, query_segments, key_segments, query_offset, window, soft_cap, sinks, scale, block_sizes
) -> None:
    """Raises ValueError for the first invalid argument; the arguments are those of `attention`."""
    shapes = f"q {_shape(q)}, k {_shape(k)}, v {_shape(v)}"
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"attention: {shapes} do not fit; expected [B, T, H, D], [B, S, K, D], [B, S, K, D]")
    if not k.shape[2] or not q.shape[2] or q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {q.shape[2]} query heads are not a multiple of {k.shape[2]} key/value heads")
    if not 1 <= q.shape[3] <= MAX_HEAD_DIM:
        raise ValueError(f"attention: head_dim={q.shape[3]} is not supported; use 1 to {MAX_HEAD_DIM}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention: dtypes {q.dtype}, {k.dtype}, {v.dtype} differ; cast q, k and v to one")
    if q.dtype not in DTYPES:
        raise ValueError(f"attention: dtype {q.dtype} is not supported; cast to one of {', '.join(map(str, DTYPES))}")
    if q.shape[1] + k.shape[1] >= 2**31:
        raise ValueError(
            f"attention: {q.shape[1]} + {k.shape[1]} tokens; queries and keys must stay below 2^31 together"
        )
    _check_segments(query_segments, key_segments, q, k)
    if query_offset is not None and not isinstance(query_offset, int):
        raise ValueError(f"attention: query_offset={query_offset!r} is not an int; use the key index of query 0")
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(f"attention: window={window!r} lets a query see nothing; use 1 or more tokens, or None")
    if soft_cap is not None and not 0 < soft_cap < math.inf:
        raise ValueError(f"attention: soft_cap={soft_cap!r} must be positive and finite, or None for no cap")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"attention: scale={scale!r} must be positive and finite; for a negative one negate q")
    if sinks is not None and (sinks.shape != q.shape[2:3] or sinks.dtype != torch.float32):
        raise ValueError(
            f"attention: sinks {_shape(sinks)} {sinks.dtype} do not fit {shapes}; expected float32 [{q.shape[2]}]"
        )
    unknown = sorted(set(block_sizes or {}) - set(KERNELS))
    if unknown:
        raise ValueError(f"attention: block_sizes for {unknown[0]!r}, which is not a kernel; use {', '.join(KERNELS)}")
    _check_devices("attention", q, k, v, query_segments, key_segments, sinks)


def _check_segments(query_segments, key_segments, q, k) -> None:
    if (query_segments is None) != (key_segments is None):
        raise ValueError("attention: give segment ids for both queries and keys, or for neither")
    if query_segments is None:
        return
    if query_segments.shape != q.shape[:2] or key_segments.shape != k.shape[:2]:
        raise ValueError(
            f"attention: segment ids {_shape(query_segments)} and {_shape(key_segments)} do not fit q {_shape(q)}, "
            f"k {_shape(k)}; expected [B, T] and [B, S]"
        )
    if not query_segments.dtype == key_segments.dtype == torch.int32:
        raise ValueError(
            f"attention: segment ids of dtype {query_segments.dtype} and {key_segments.dtype}; cast both to torch.int32"
        )


def check_rope(q, k, positions, inverse_frequencies) -> None:
    """Raises ValueError for the first invalid argument; the arguments are those of `rope`."""
    if q.ndim != 4 or k.ndim != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"rope: q {_shape(q)}, k {_shape(k)} do not fit; expected [B, T, H, D] and [B, T, K, D]")
    if positions.shape != q.shape[:2] or positions.dtype != torch.int32:
        raise ValueError(
            f"rope: positions {_shape(positions)} {positions.dtype} do not fit q {_shape(q)}; expected torch.int32 [B, T]"
        )
    if inverse_frequencies.ndim != 1 or inverse_frequencies.dtype != torch.float32:
        raise ValueError(
            f"rope: inverse_frequencies {_shape(inverse_frequencies)} {inverse_frequencies.dtype}; expected float32 [F]"
        )
    if not 1 <= inverse_frequencies.shape[0] <= q.shape[3] // 2:
        raise ValueError(
            f"rope: {inverse_frequencies.shape[0]} frequencies do not fit head_dim={q.shape[3]}; use 1 to D / 2 of them"
        )
    for name, x in (("q", q), ("k", k)):
        if x.dtype not in DTYPES:
            raise ValueError(f"rope: dtype {x.dtype} of {name} is not supported; use {', '.join(map(str, DTYPES))}")
        if not x.is_contiguous():
            raise ValueError(
                f"rope: {name} {_shape(x)} is not contiguous and rope works in place; pass {name}.contiguous()"
            )
        if x.is_leaf and x.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"rope: {name} is a leaf that requires grad and rope works in place; pass {name}.clone()")
    _check_devices("rope", q, k, positions, inverse_frequencies)


def _check_devices(operation: str, *tensors: torch.Tensor | None) -> None:
    devices = sorted({str(x.device) for x in tensors if x is not None})
    if len(devices) > 1:
        raise ValueError(f"{operation}: tensors on {', '.join(devices)}; move them to one device")
    if devices == ["cpu"] and not INTERPRETED.value:
        raise ValueError(
            f"{operation}: tensors on cpu; move them to a GPU, or set TRITON_INTERPRET=1 before importing triton"
        )


def _shape(x: torch.Tensor) -> str:
    return str(list(x.shape))
