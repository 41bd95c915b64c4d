"""What JAX's allocators may take, told to them before they start."""

from __future__ import annotations

import math
import os

_GPU_SHARE, _GPU_SHARE_OF_OLD = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"  # JAX refuses both at once
_HOST_GIB = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"  # it is multiplied by 2^30

# JAX would take 75% of the GPU; the rest of it is for the CUDA context.
_SHARE_OF_GPU = 0.97
# Of the host; the rest is for the operating system, the data and Python.
_SHARE_OF_HOST = 0.85
# What else is pinned: weights on their way to the GPU, embeddings that were left there until it had room, batches.
_STAGING_BYTES = 8 * 2**30


def raise_limits(host_bytes: int) -> None:
    """Lets JAX have nearly all of the GPU, and of the host what a run pins at most, where the user has not said otherwise.

    XLA would pin 64 GiB at most; and since it asks the system for twice as much each time, up to whatever it may, a limit far above
    what is needed would be taken as well. They are read when JAX starts its GPU, so this comes before the first array.
    """
    if _GPU_SHARE_OF_OLD not in os.environ:
        os.environ.setdefault(_GPU_SHARE, str(_SHARE_OF_GPU))
    limit = min(host_bytes + _STAGING_BYTES, pinnable_bytes())
    os.environ.setdefault(_HOST_GIB, str(math.ceil(limit / 2**30)))


def pinnable_bytes() -> int:
    """Bytes of this host's memory that a run may pin."""
    return int(_SHARE_OF_HOST * _physical_bytes())


def host_limit_bytes() -> int:
    """Bytes of host memory that XLA may pin: what it was told, or 64 GiB; never more than there are."""
    return min(int(os.environ.get(_HOST_GIB, 64)) * 2**30, _physical_bytes())


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
