"""What JAX's allocators may take, told to them before they start."""

from __future__ import annotations

import os

_GPU_SHARE, _GPU_SHARE_OF_OLD = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"  # JAX refuses both at once
_HOST_GB = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"

# JAX would take 75% of the GPU; the rest of it is for the CUDA context.
_SHARE_OF_GPU = 0.97
# XLA would pin 64 GB at most, whatever the host has. The rest of it is for the operating system, the data and Python.
_SHARE_OF_HOST = 0.85


def raise_limits() -> None:
    """Lets JAX have nearly all of the GPU and of the host's memory, where the user has not said otherwise.

    Both are limits, nothing is taken by them. They are read when JAX starts its GPU, so this comes before the first array.
    """
    if _GPU_SHARE_OF_OLD not in os.environ:
        os.environ.setdefault(_GPU_SHARE, str(_SHARE_OF_GPU))
    os.environ.setdefault(_HOST_GB, str(int(_SHARE_OF_HOST * _physical_bytes() / 1e9)))


def host_limit_bytes() -> int:
    """Bytes of host memory that XLA may pin: what it was told, or 64 GB; never more than there are."""
    return min(int(os.environ.get(_HOST_GB, 64)) * 10**9, _physical_bytes())


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
