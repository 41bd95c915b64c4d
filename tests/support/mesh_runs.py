"""Computes gradients on meshes of eight CPU devices, in a process of its own.

JAX fixes the number of CPU devices when it starts, and other tests run on one device. Usage: python
-m tests.support.mesh_runs FOLDER. The folder holds cases.json, a list of (name, sizes of the mesh,
requests, batch), and the arrays of every batch. It receives one file of arrays per case.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lcjax import step
from lcjax.config.mesh import MeshShape
from lcjax.model import Llama, lora
from lcjax.parallel.devices import STEP, WHOLE, Devices
from tests.support.compiling import QUICK_TO_COMPILE

DEVICES = 8


def run_in_child(folder: Path) -> None:
    """Runs this module in a process with eight CPU devices."""
    flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={DEVICES}"
    command = [sys.executable, "-m", "tests.support.mesh_runs", str(folder)]
    done = subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def gradients(model: Llama, shape: MeshShape, batch: dict[str, np.ndarray], count: int) -> tuple[Any, Any]:
    """(mean loss, gradients of the trainable parameters) of [B, T] in `count` micro-batches."""
    execution = dataclasses.replace(model.settings.execution, mesh=shape)
    objective = step.Objective(model.config, dataclasses.replace(model.settings, execution=execution))
    mask = lora.trainable_mask(model.params, lora.everything if model.settings.lora is None else lora.adapters_only)
    trainable, frozen = lora.partition(model.params, mask)
    devices = Devices.of(shape)

    def compute(trainable, frozen, batches):
        loss, _, grads = step.gradients(objective, trainable, frozen, batches, None)
        return loss, grads

    compute = devices.over(compute, (WHOLE, WHOLE, STEP), (WHOLE, WHOLE))
    batches = {name: value.reshape(count, -1, value.shape[-1]) for name, value in batch.items()}
    compiled = jax.jit(compute, compiler_options=QUICK_TO_COMPILE)
    return compiled(trainable, frozen, devices.divide_step(batches))
