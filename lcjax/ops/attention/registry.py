"""Which implementation computes a call of attention, and why another one cannot.

| implementation | runs on | largest safe size |
| --- | --- | --- |
| xla | any device | 2^31 - 1 tokens per sequence |
| pallas | GPUs; CPUs (interpreted, slow) | 2^31 - 1 tokens per sequence, arrays of any size |
| mosaic | Hopper GPUs | 2^31 - 1 tokens per sequence, arrays of any size |
| cudnn | GPUs | 2^31 - 1 elements per array; larger is untested |
| fa3 | Hopper GPUs, with flash-attn3-jax | 2^31 - 1 elements per array; larger is untested |

"auto" is pallas on a GPU and xla elsewhere. mosaic is used only if the caller names it. cuDNN and
FlashAttention-3 are faster than pallas for the calls that they support. But two runs of their
backward passes need not give the same bits, so they are used only if the caller names them.
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


def implementations() -> tuple[str, ...]:
    """The names that `lcjax.ops.attention` accepts."""
    return ("auto", *BACKENDS)


def check_implementation(implementation: str) -> None:
    """Raises InputError for a name that `lcjax.ops.attention` does not accept."""
    if implementation not in implementations():
        raise InputError(f"attention={implementation!r} is unknown; use one of {', '.join(implementations())}")


def default_implementation(platform: str | None = None) -> str:
    """The implementation that "auto" stands for on a platform of JAX; None is the default one."""
    return "pallas" if (platform or jax.default_backend()) == "gpu" else "xla"


def backend_of(implementation: str) -> Backend:
    """The backend of a name that `lcjax.ops.attention` accepts. Raises InputError if unknown."""
    check_implementation(implementation)
    found = BACKENDS[default_implementation() if implementation == "auto" else implementation]
    return importlib.import_module(found).BACKEND if isinstance(found, str) else found


def choose_backend(implementation: str, call: AttentionCall, platform: str | None = None) -> Backend:
    """The backend that computes a call; `platform` is as in `default_implementation`.

    Raises:
      InputError: the implementation is unknown, or it was named and does not support the call; the
        message has the reason.
    """
    if implementation == "auto":
        backend = backend_of(default_implementation(platform))
        return backend if backend.refusal(call) is None else backend_of("xla")
    backend = backend_of(implementation)
    if (reason := backend.refusal(call)) is not None:
        raise InputError(f"attention={implementation!r} {reason}")
    return backend


def takes_segments(implementation: str) -> bool:
    """Whether an implementation of attention supports segment ids, which separate documents."""
    return backend_of(implementation).takes_segments
