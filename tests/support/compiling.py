"""How tests compile: quickly where only the numbers matter, and for GPUs as users do."""

from __future__ import annotations

import functools
import tempfile
from importlib.metadata import version
from typing import Any

import jax

from lcjax.plan.compiling.aot import compile_lowered

# A third of the time of the default level 3, and the same matrix products of libraries.
QUICK_TO_COMPILE: dict[str, Any] = {"xla_backend_optimization_level": 0}

# Half of the time of QUICK_TO_COMPILE, for numbers that are compared within a tolerance. Without
# the fusion emitters, two programs that are equal bit for bit may differ in the last bits. From
# 0.11 on, jaxlib always has the emitters and does not know the option.
QUICKEST_TO_COMPILE = QUICK_TO_COMPILE | (
    {"xla_cpu_use_fusion_emitters": False} if version("jaxlib").startswith(("0.9.", "0.10.")) else {}
)

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
