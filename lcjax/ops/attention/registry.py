"""Which implementation computes attention, and why another one cannot.

| implementation | runs on | largest safe size |
| --- | --- | --- |
| xla | anything | 2^31 - 1 tokens a sequence |
| pallas | GPUs; CPUs interpreted, slowly | 2^31 - 1 tokens a sequence, arrays of any number of elements |
| cudnn | GPUs | 2^31 - 1 elements an array, beyond which nothing is known |
| fa3 | Hopper GPUs, with flash-attn3-jax | 2^31 - 1 elements an array, beyond which nothing is known |

"auto" is pallas on a GPU and xla elsewhere. cuDNN and FlashAttention-3 are faster where they can do the job, but their backward
passes need not give the same bits twice, so they are used where they are named.
"""

from __future__ import annotations

import importlib

import jax

from lcjax.errors import InputError
from lcjax.ops.attention.backend import Backend
from lcjax.ops.attention.call import AttentionCall

BACKENDS: dict[str, str | Backend] = {
    "pallas": "lcjax.pallas.triton.backend",
    "cudnn": "lcjax.ops.attention.cudnn",
    "fa3": "lcjax.ops.attention.fa3",
    "xla": "lcjax.ops.attention.xla",
}
"""Each implementation by name: a `Backend`, or the module whose BACKEND is one, imported where it is first used."""


def implementations() -> tuple[str, ...]:
    """The names that `lcjax.ops.attention` takes."""
    return ("auto", *BACKENDS)


def resolve_implementation(implementation: str) -> str:
    """What computes attention when `implementation` is asked for and the call is one that it supports.

    Raises:
      InputError: an unknown name.
    """
    if implementation not in implementations():
        raise InputError(f"attention={implementation!r} is unknown; use one of {', '.join(implementations())}")
    if implementation == "auto":
        return "pallas" if jax.default_backend() == "gpu" else "xla"
    return implementation


def backend_of(implementation: str) -> Backend:
    """The backend of a name that `lcjax.ops.attention` takes. Raises InputError for an unknown one."""
    found = BACKENDS[resolve_implementation(implementation)]
    return importlib.import_module(found).BACKEND if isinstance(found, str) else found


def choose_backend(implementation: str, call: AttentionCall) -> Backend:
    """The backend that computes a call.

    Raises:
      InputError: an unknown implementation, or one that was named and does not support the call, with the reason.
    """
    backend = backend_of(implementation)
    reason = backend.refusal(call)
    if reason is not None and implementation == "auto":
        return backend_of("xla")
    if reason is not None:
        raise InputError(f"attention={implementation!r} {reason}")
    return backend


def takes_segments(implementation: str) -> bool:
    """Whether an implementation of attention can keep the documents of a row apart."""
    return backend_of(implementation).takes_segments
