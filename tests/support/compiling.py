"""How tests compile: quickly where only the numbers matter, and for GPUs as users do."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from lcjax.plan.compiling.aot import compile_lowered
from tests.support.xla_options import QUICK_TO_COMPILE, QUICKEST_TO_COMPILE

__all__ = [
    "KERNELS",
    "QUICKEST_TO_COMPILE",
    "QUICK_TO_COMPILE",
    "compile_optimized",
    "compile_with_known_kernels",
    "known_kernels",
]

KERNELS = "LCJAX_TEST_KERNELS"
"""Environment variable with the folder of the kernels that XLA has compiled for GPUs."""

_UNREADABLE = "kernel_reuse_cache"
"""What XLA's error has if it cannot read the file of kernels."""

_compile = jax.stages.Lowered.compile


def compile_optimized(lowered: jax.stages.Lowered, compiler_options: dict[str, Any] | None = None, **others: Any):
    """`Lowered.compile` with XLA's default optimization, whatever XLA_FLAGS says."""
    return _compile(lowered, {"xla_backend_optimization_level": 3} | (compiler_options or {}), **others)


def compile_with_known_kernels(lowered: jax.stages.Lowered, options: dict[str, Any] | None = None):
    """`compile_lowered`, which takes a seventh of the time if XLA compiled the same kernels before.

    Only for those who look at the program and its memory. A kernel that XLA finds in its cache may
    be for another GPU, and its PTX is not dumped.
    """
    try:
        with known_kernels() as path:
            return compile_lowered(lowered, {"xla_gpu_kernel_cache_file": str(path)} | (options or {}))
    except jax.errors.JaxRuntimeError as error:
        if _UNREADABLE not in str(error):
            raise
        _shared().unlink(missing_ok=True)
        for path in Path((options or {}).get("xla_dump_to", os.devnull)).glob("*gpu_after_optimizations*"):
            path.unlink()
        return compile_lowered(lowered, options)


@contextlib.contextmanager
def known_kernels() -> Iterator[Path]:
    """A file with the kernels that all processes of the tests have compiled, for one compilation.

    XLA writes it in place, so it is a copy, which then replaces the shared file. What another
    process has added meanwhile is appended: two files in sequence are the map of both. If both have
    the same kernel under different names, XLA cannot read it.
    """
    shared = _shared()
    mine = shared.with_name(f"{shared.name}.{os.getpid()}")
    before = shared.read_bytes() if shared.exists() else b""
    if before:
        mine.write_bytes(before)
    try:
        yield mine
        now = shared.read_bytes() if shared.exists() else b""
        if now != before:
            with mine.open("ab") as file:
                file.write(now)
        if mine.exists():
            mine.replace(shared)
    finally:
        mine.unlink(missing_ok=True)


def _shared() -> Path:
    return Path(os.environ.get(KERNELS) or _folder().name) / f"kernels-{jax.__version__}"


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of this process, which is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="kernels-")
