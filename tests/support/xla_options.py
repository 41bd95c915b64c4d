"""XLA's options with which tests compile for the CPU. This module must not import JAX."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

# A third of the time of the default level 3, and the same matrix products of libraries.
QUICK_TO_COMPILE: dict[str, Any] = {"xla_backend_optimization_level": 0}

# A quarter of the time of QUICK_TO_COMPILE. Without the fusion emitters, which operations share a
# kernel differs more between programs, and a product and a sum in one kernel may become one
# instruction that rounds once. Two programs that ought to be equal bit for bit then differ in the
# last bits. AVX does not have this instruction. From 0.11 on, jaxlib always has the emitters and
# does not know the option; an option that XLA does not know ends the process.
QUICKEST_TO_COMPILE = (
    QUICK_TO_COMPILE
    | {"xla_cpu_parallel_codegen_split_count": 1}
    | ({"xla_cpu_max_isa": "AVX"} if platform.machine() in ("x86_64", "AMD64") else {})
    | ({"xla_cpu_use_fusion_emitters": False} if version("jaxlib").startswith(("0.9.", "0.10.")) else {})
)


def as_flags(options: dict[str, Any]) -> str:
    """The options as a value of XLA_FLAGS."""
    return " ".join(f"--{name}={'false' if value is False else value}" for name, value in options.items())
