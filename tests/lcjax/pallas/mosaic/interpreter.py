"""JAX's interpreter of Mosaic GPU kernels, as a GPU that is not here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from lcjax.pallas.mosaic import launch

# Its model of the few instructions that the kernels insert themselves has this name.
_PARAMETERS = {"inline_mgpu": "_hack_model_inline_mgpu_tokamax"}


def interpreted(function: Callable[..., Any], *arguments: Any, **parameters: Any) -> Any:
    """`function(*arguments)` with its Mosaic kernels interpreted; `parameters` are the interpreter's."""
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", platform="gpu", num_cores=132)
    interpreter = plgpu.InterpretGPUParams(**_PARAMETERS, **parameters)
    with (
        use_abstract_mesh(AbstractMesh((), (), abstract_device=device)),
        plgpu.force_gpu_interpret_mode(interpreter),
        launch.interpreted(),
    ):
        return jax.block_until_ready(function(*arguments))
