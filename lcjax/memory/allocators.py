"""How much memory JAX's allocators may use; it has to be set before they start."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import jax

from lcjax.config.memory import PINNABLE_SHARE

# JAX rejects both at once.
_GPU_SHARE, _GPU_SHARE_OF_OLD = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
_HOST_GIB = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"  # it is multiplied by 2^30

# JAX's default is 75% of the GPU. The remaining 3% is for the CUDA context.
_SHARE_OF_GPU = 0.97
# Of NVIDIA's driver, of Windows' Linux, and of the GPUs that share memory with the CPU.
_GPU_FILES = "nvidia[0-9]*", "dxg", "nvhost-gpu"
DEVICE_FILES = Path("/dev")
# For everything else that is pinned: weights during their transfer to the GPU, embeddings that wait
# for free memory on the GPU, and batches.
_STAGING_BYTES = 8 * 2**30


def raise_limits(host_bytes: int) -> None:
    """Raises JAX's limits to nearly all of the GPU, and to what a run pins of the host's memory.

    Limits that the user has set in the environment are unchanged. XLA's default limit for pinned
    memory is 64 GiB. XLA doubles each allocation of pinned memory up to the limit, so a limit far
    above the need would be allocated too. JAX reads the limits when it starts its GPU backend, so
    call this before the first array exists.

    Args:
      host_bytes: the most host memory that the run pins.
    """
    if _GPU_SHARE_OF_OLD not in os.environ:
        os.environ.setdefault(_GPU_SHARE, str(_SHARE_OF_GPU))
    limit = min(host_bytes + _STAGING_BYTES, pinnable_bytes())
    os.environ.setdefault(_HOST_GIB, str(math.ceil(limit / 2**30)))


def pinnable_bytes() -> int:
    """Bytes of this host's memory that this process may pin.

    torchrun starts several processes on a host, which have equal parts of it.
    """
    return int(PINNABLE_SHARE * _physical_bytes()) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def visible_gpus() -> int:
    """The number of GPUs that JAX will find, without starting it; 1 if that is unknown."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return max(1, len([word for word in chosen.split(",") if word.strip()]))
    return max(1, len([path for path in DEVICE_FILES.glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]))


def may_have_gpu() -> bool:
    """Whether JAX may find a GPU, without starting it; false only if it certainly finds none."""
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if platforms and not {"cuda", "gpu", "rocm"} & set(platforms.split(",")):
        return False
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(path for pattern in _GPU_FILES for path in DEVICE_FILES.glob(pattern))


def visible_devices() -> int:
    """At most so many devices JAX will find, without starting it: GPUs, or parts of the CPU."""
    return max(visible_gpus(), cpu_devices())


def cpu_devices() -> int:
    """The number of devices that JAX makes of the CPU, without starting it."""
    parts = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return max(jax.config.jax_num_cpu_devices, *map(int, parts[-1:]), 1)  # pyright: ignore[reportAttributeAccessIssue]


def host_limit_bytes() -> int:
    """Bytes of host memory that XLA may pin: the configured limit or 64 GiB, if so much exists."""
    return min(int(os.environ.get(_HOST_GIB, 64)) * 2**30, _physical_bytes())


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
