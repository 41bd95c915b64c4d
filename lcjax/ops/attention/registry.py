"""Which implementation computes a call of attention, and why another one cannot.

| implementation | runs on | largest safe size |
| --- | --- | --- |
| xla | any device | 2^31 - 1 tokens per sequence |
| pallas | GPUs; CPUs (interpreted, slow) | 2^31 - 1 tokens per sequence, arrays of any size |
| mosaic | Hopper GPUs | 2^31 - 1 tokens per sequence, arrays of any size |
| cudnn | GPUs | 2^31 - 1 elements per array; larger is untested |
| fa3 | Hopper GPUs, with flash-attn3-jax | 2^31 - 1 elements per array; larger is untested |

"auto" is xla on a CPU. On a GPU it is the first of mosaic, pallas and xla that supports the call.
cuDNN and FlashAttention-3 are faster than pallas for the calls that they support. But two runs of
their backward passes need not give the same bits, so they are used only if the caller names them.
"""

from __future__ import annotations

import importlib

import jax

from lcjax.errors import InputError
from lcjax.ops.attention.backend import Backend
from lcjax.ops.attention.call import AttentionCall

BACKENDS: dict[str, str | Backend] = {
    "pallas": "lcjax.pallas.triton.backend",
    "mosaic": "lcjax.pallas.mosaic.backend",
    "cudnn": "lcjax.ops.attention.cudnn",
    "fa3": "lcjax.ops.attention.fa3",
    "xla": "lcjax.ops.attention.xla",
}
"""Each implementation by name: a `Backend`, or a module with a BACKEND, imported at first use."""

# The fastest first; the last one supports every call. Measured on an H200
# (docs/measured/h200-2026-11-30-mosaic.csv and h200-2026-12-01-steps-mosaic.csv).
_ON_GPUS, _ELSEWHERE = ("mosaic", "pallas", "xla"), ("xla",)


def implementations() -> tuple[str, ...]:
    """The names that `lcjax.ops.attention` accepts."""
    return ("auto", *BACKENDS)


def check_implementation(implementation: str) -> None:
    """Raises InputError for a name that `lcjax.ops.attention` does not accept."""
    if implementation not in implementations():
        raise InputError(f"attention={implementation!r} is unknown; use one of {', '.join(implementations())}")


def default_implementation(platform: str | None = None) -> str:
    """The implementation for most calls on a platform of JAX; None is the default platform."""
    return "pallas" if _on_gpu(platform) else "xla"


def _on_gpu(platform: str | None) -> bool:
    return (platform or jax.default_backend()) == "gpu"


def backend_of(implementation: str) -> Backend:
    """The backend of a name that `lcjax.ops.attention` accepts. Raises InputError if unknown."""
    check_implementation(implementation)
    found = BACKENDS[default_implementation() if implementation == "auto" else implementation]
    return importlib.import_module(found).BACKEND if isinstance(found, str) else found


def automatic_implementations(platform: str | None = None) -> tuple[str, ...]:
    """The implementations that "auto" may stand for, the fastest first.

    `platform` is as in `default_implementation`.
    """
    return _ON_GPUS if _on_gpu(platform) else _ELSEWHERE


def automatic_choices(call: AttentionCall, platform: str | None = None) -> tuple[str, ...]:
    """Those of `automatic_implementations` that compute a call."""
    names = automatic_implementations(platform)
    return tuple(name for name in names if reason_against(name, call) is None)


def reason_against(implementation: str, call: AttentionCall) -> str | None:
    """Why "auto" does not stand for an implementation in a call; None if it may."""
    backend = backend_of(implementation)
    refusal = backend.refusal(call)
    return backend.objection(call) if refusal is None else refusal


def choose_backend(implementation: str, call: AttentionCall, platform: str | None = None) -> Backend:
    """The backend that computes a call; `platform` is as in `default_implementation`.

    Raises:
      InputError: the implementation is unknown, or it was named and does not support the call; the
        message has the reason.
    """
    if implementation == "auto":
        return backend_of(automatic_choices(call, platform)[0])
    backend = backend_of(implementation)
    if (reason := backend.refusal(call)) is not None:
        raise InputError(f"attention={implementation!r} {reason}")
    return backend


def takes_segments(implementation: str) -> bool:
    """Whether an implementation of attention supports segment ids, which separate documents."""
    return backend_of(implementation).takes_segments
