"""How tests compile: quickly where only the numbers matter, and for GPUs as users do."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import jax

from lcjax.plan.compiling.aot import compile_lowered
from tests.support.xla_options import QUICK_TO_COMPILE, QUICKEST_TO_COMPILE

__all__ = ["QUICKEST_TO_COMPILE", "QUICK_TO_COMPILE", "compile_optimized", "compile_with_known_kernels"]

_compile = jax.stages.Lowered.compile


def compile_optimized(lowered: jax.stages.Lowered, compiler_options: dict[str, Any] | None = None, **others: Any):
    """`Lowered.compile` with XLA's default optimization, whatever XLA_FLAGS says."""
    return _compile(lowered, {"xla_backend_optimization_level": 3} | (compiler_options or {}), **others)


def compile_with_known_kernels(lowered: jax.stages.Lowered, options: dict[str, Any] | None = None):
    """`compile_lowered`, which takes a seventh of the time if XLA compiled the same kernels before.

    Only for those who look at the program and its memory. A kernel that XLA finds in its cache may
    be for another GPU, and its PTX is not dumped.
    """
    return compile_lowered(lowered, {"xla_gpu_kernel_cache_file": f"{_folder().name}/kernels"} | (options or {}))


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of this process, which is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="kernels-")
