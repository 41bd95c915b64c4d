"""The precision of the base weights: a dtype, or 4 bits under an adapter."""

from __future__ import annotations

from lcjax.errors import InputError

DTYPES = ("float32", "bfloat16")
QUANTIZATIONS = ("nf4",)


def check_dtype(name: str | None) -> None:
    """Raises InputError for an unsupported dtype; "auto" and None leave it to the device."""
    if name not in (None, "auto", *DTYPES):
        raise InputError(f"dtype={name!r} is not supported; use float32 or bfloat16")


def check_quantize(quantize: str | None) -> None:
    """Raises InputError for an unknown kind of quantization; None means no quantization."""
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise InputError(f"quantize={quantize!r} is not supported; use {', '.join(QUANTIZATIONS)}, or leave it out")
