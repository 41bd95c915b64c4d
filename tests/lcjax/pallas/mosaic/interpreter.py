"""JAX's interpreter of Mosaic GPU kernels, which simulates an absent GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from lcjax.pallas.mosaic import launch

# The name of its model of the few instructions that the kernels insert directly.
_PARAMETERS = {"inline_mgpu": "_hack_model_inline_mgpu_tokamax"}


def interpreted(function: Callable[..., Any], *arguments: Any, **parameters: Any) -> Any:
    """Returns `function(*arguments)` with interpreted Mosaic kernels.

    `parameters` are those of the interpreter.
    """
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", platform="gpu", num_cores=132)
    interpreter = plgpu.InterpretGPUParams(**_PARAMETERS, **parameters)
    with (
        use_abstract_mesh(AbstractMesh((), (), abstract_device=device)),
        plgpu.force_gpu_interpret_mode(interpreter),
        launch.interpreted(),
    ):
        return jax.block_until_ready(function(*arguments))
