"""What programs are compiled with and for: the software and the processor of a run."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from lcjax.parallel.placement import this_device

_SOFTWARE = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt", "jax-cuda12-plugin", "jax-cuda12-pjrt")


def builder() -> dict[str, str]:
    """Names and versions on which the bits of a compiled program depend; starts JAX's devices."""
    device = this_device()
    kind = _processor() if device.platform == "cpu" else device.device_kind
    software = {name: found for name in _SOFTWARE if (found := _version(name))}
    return {
        "device": kind,
        "driver": " ".join(device.client.platform_version.split()),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **software,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Name and vector instructions of the CPU, for which machine code is generated."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
    except (OSError, ValueError):
        return platform.machine()
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    vectors = sorted(flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "amx", "fma")))
    return " ".join([facts.get("model name", platform.machine()), *vectors])
