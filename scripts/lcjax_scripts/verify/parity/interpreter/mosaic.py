"""JAX's interpreter of Mosaic GPU kernels, which simulates an absent GPU."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, use_abstract_mesh

OLDEST_JAX = (0, 11, 2)

THREADS = {"NPROC": "16"}
"""Environment variable, to be set before JAX starts.

The interpreter's threads wait for each other. With fewer threads than a program has, it hangs.
"""

# The name of its model of the few instructions that the kernels insert directly.
_PARAMETERS = {"inline_mgpu": "_hack_model_inline_mgpu_tokamax"}


def missing() -> str | None:
    """Returns why attention's "mosaic" can neither run nor be interpreted here, or None.

    Which GPUs it runs on is for its own refusal to say.
    """
    if jax.default_backend() == "gpu" or jax.__version_info__ >= OLDEST_JAX:
        return None
    oldest = ".".join(map(str, OLDEST_JAX))
    return f"needs a Hopper GPU, or the interpreter of JAX {oldest} or later; this is {jax.__version__}"


@contextlib.contextmanager
def interpreting(**parameters: Any) -> Iterator[None]:
    """A context in which Mosaic kernels are interpreted; `parameters` are the interpreter's."""
    from jax.sharding import AbstractDevice  # not in the oldest supported versions

    from lcjax.pallas.mosaic import launch

    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", platform="gpu", num_cores=132)
    plgpu: Any = importlib.import_module("jax.experimental.pallas.mosaic_gpu")
    interpreter = plgpu.InterpretGPUParams(**_PARAMETERS, **parameters)
    with (
        use_abstract_mesh(AbstractMesh((), (), abstract_device=device)),
        plgpu.force_gpu_interpret_mode(interpreter),
        launch.interpreted(),
    ):
        yield


def interpreted(function: Callable[..., Any], *arguments: Any, **parameters: Any) -> Any:
    """Returns `function(*arguments)` with interpreted Mosaic kernels."""
    with interpreting(**parameters):
        return jax.block_until_ready(function(*arguments))
