"""The kernels of this package as an implementation of attention."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from lcjax.ops.attention.backend import Backend, Gradients, Result
from lcjax.ops.attention.call import AttentionCall
from lcjax.pallas.triton.block_sizes import is_traced_for_gpu, traced_gpu

OLDEST_JAX = (0, 10, 2)
# The oldest JAX with which the values were compared with float64 on a GPU.
OLDEST_VERIFIED_JAX = (0, 11, 2)
HEAD_DIMS = (64, 128)
# Where whole steps on an H200 were faster than with the Triton kernels. At 64 they took 1% less in
# gpt-oss-20b and 8% more in a 1B (docs/measured/h200-2026-12-01-steps-mosaic.csv).
FASTER_HEAD_DIM = 128

_INSTEAD = "use attention='pallas' or attention='xla'"
_DTYPES = (jnp.bfloat16, jnp.float16)
_UNSUPPORTED = ("mask_mod", "score_mod", "soft_cap")


def _refusal(call: AttentionCall) -> str | None:
    head_dim, dtype = call.q_BTHD.shape[-1], call.q_BTHD.dtype
    if jax.__version_info__ < OLDEST_JAX:
        return f"needs JAX {_version(OLDEST_JAX)} or later, and this is {jax.__version__}; {_INSTEAD}"
    if not (_is_for_gpu() and traced_gpu().is_hopper):
        return f"runs on Hopper GPUs (H100, H200) only; {_INSTEAD}"
    if dtype not in _DTYPES:
        return f"does not support dtype {dtype}; use bfloat16 or float16, or attention='pallas' or attention='xla'"
    if head_dim not in HEAD_DIMS:
        sizes = " or ".join(map(str, HEAD_DIMS))
        return f"does not support head_dim={head_dim}; use {sizes}, or attention='pallas' or attention='xla'"
    if found := [name for name in _UNSUPPORTED if name in call.extras]:
        return f"does not support {', '.join(found)}; {_INSTEAD}"
    return None


def _objection(call: AttentionCall) -> str | None:
    if jax.__version_info__ < OLDEST_VERIFIED_JAX:
        verified = _version(OLDEST_VERIFIED_JAX)
        return f"was verified on GPUs with JAX {verified} and later, and this is {jax.__version__}; {_INSTEAD}"
    if (head_dim := call.q_BTHD.shape[-1]) != FASTER_HEAD_DIM:
        return f"was not faster for head_dim={head_dim}; {_INSTEAD}"
    return None


def _version(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _is_for_gpu() -> bool:
    """Whether a GPU is here, or is compiled for without being here; then JAX need not start."""
    if is_traced_for_gpu():
        return True
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() == "gpu" if device is None else device.platform == "gpu"


def _kernels() -> ModuleType:
    """The operation, which older versions of JAX cannot import."""
    from lcjax.pallas.mosaic import attention

    return attention


def _run(call: AttentionCall) -> Result:
    return _kernels().flash_attention(call.scale, *_arrays(call), call.mask)


def _forward(call: AttentionCall) -> tuple[jax.Array, Any]:
    return _kernels().forward(call.scale, *_arrays(call), call.mask, in_place=True)


def _backward(call: AttentionCall, lse: Any, dout_BTHD: jax.Array, delta_BHT: jax.Array) -> Gradients:
    return _kernels().gradients(call.scale, *_arrays(call), call.mask, lse, dout_BTHD, delta_BHT)


def _arrays(call: AttentionCall) -> tuple[jax.Array | None, ...]:
    return call.q_BTHD, call.k_BSKD, call.v_BSKD, call.sinks_H


BACKEND = Backend(
    name="mosaic",
    refusal=_refusal,
    run=_run,
    objection=_objection,
    takes_segments=True,
    needs_gpu=True,
    forward=_forward,
    backward=_backward,
    kernel_pattern="mosaic_attention_(forward|backward)",
)
