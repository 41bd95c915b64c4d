"""Computes gradients on meshes of eight CPU devices, in a process of its own.

JAX fixes the number of CPU devices when it starts, and other tests run on one device.
`gradients_in` writes the inputs to a folder and starts this module, which writes the results there.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import lcjax
from lcjax import step, weights
from lcjax.config.families import FAMILIES
from lcjax.config.parallel.mesh import MeshShape
from lcjax.model import Llama, lora
from lcjax.ops.attention.parallel.ring import Ring
from lcjax.ops.parts import part_of
from lcjax.parallel.devices import STEP, WHOLE, Devices
from lcjax.parallel.weights import specs_of
from tests.support.compiling import QUICK_TO_COMPILE
from tests.support.dense_gpt_oss import DENSE
from tests.support.settings import model_settings

DEVICES = 8
_RING_FORWARD = Ring.forward


@dataclasses.dataclass(frozen=True)
class Case:
    """One computation.

    Attributes:
      mesh: the sizes (data, ring, heads).
      batch: the name of a batch.
      requested: arguments of `tests.support.settings.model_settings`.
      shard_axes: the axes along which devices share the weights.
      quantize: as in `lcjax.weights.load_model_files`.
      broken: a fault of `MUTANTS` to plant.
      folder: that of another model and its adapter, written by `tests.support.oracles.make_oracle`.
      router_aux_loss_coef: as in `lcjax.step.Objective`.
    """

    mesh: tuple[int, int, int]
    batch: str = "packed"
    requested: dict[str, str] = dataclasses.field(default_factory=dict)
    quantize: str | None = None
    shard_axes: tuple[str, ...] = ()
    broken: str | None = None
    folder: str | None = None
    router_aux_loss_coef: float = 0.0


MUTANTS = {
    "tokens in the order of the sequence": ("lcjax.parallel.devices.token_order", lambda shape, tokens: None),
    "copies of other heads": (
        "lcjax.ops.attention.parallel.by_heads.jnp.repeat",
        lambda x, copies, axis: jnp.concatenate([x] * copies, axis=axis),
    ),
    "sinks of other heads": (
        "lcjax.ops.attention.parallel.by_heads.part_of",
        lambda x, part, parts, axis: part_of(x, parts - 1 - part, parts, axis),
    ),
    "a ring without sinks": (
        "lcjax.ops.attention.parallel.ring.Ring.forward",
        lambda self, q, k, v, sinks, *others: _RING_FORWARD(self, q, k, v, None, *others),
    ),
    "experts counted on one device alone": ("lcjax.step.objective.sum_over_context", lambda mesh, tree: tree),
    "one device's tokens alone": ("lcjax.step.objective.sum_over", lambda mesh, tree: tree),
}


def gradients_in(
    folder: Path, cases: dict[str, Case], batches: dict[str, dict[str, np.ndarray]], model: Path, adapter: Path | None
) -> dict[str, tuple[float, dict[str, np.ndarray]]]:
    """(mean loss, gradients by path) of every case; each row of a batch [B, T] is a micro-batch."""
    for name, arrays in batches.items():
        np.savez(folder / f"batch-{name}.npz", **arrays)
    described = {name: dataclasses.asdict(case) for name, case in cases.items()}
    (folder / "cases.json").write_text(json.dumps(described))
    flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={DEVICES}"
    command = [sys.executable, "-m", "tests.support.mesh_runs", folder, model, *([adapter] if adapter else [])]
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = {}
    for number, name in enumerate(cases):
        arrays = dict(np.load(folder / f"result-{number}.npz"))
        results[name] = (float(arrays.pop("loss")), arrays)
    return results


def main(arguments: Sequence[str]) -> None:
    gc.set_threshold(50_000, 10, 10)  # as in conftest.py
    folder, *own = map(Path, arguments)
    FAMILIES[DENSE.model_type] = DENSE
    for number, fields in enumerate(json.loads((folder / "cases.json").read_text()).values()):
        case = Case(**fields | {name: tuple(fields[name]) for name in ("mesh", "shard_axes")})
        batch = dict(np.load(folder / f"batch-{case.batch}.npz"))
        model = own if case.folder is None else [Path(case.folder) / name for name in ("model", "adapter")]
        loss, gradients = _gradients(case, batch, *model)
        arrays = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(gradients)}
        np.savez(folder / f"result-{number}.npz", loss=loss, **arrays)


def _gradients(case: Case, batch: dict[str, np.ndarray], directory: Path, adapter: Path | None = None) -> Any:
    config, params, _ = weights.load_model_files(directory, jnp.float32, case.quantize)
    tokens = batch["tokens"].shape[1]
    shape = MeshShape(*case.mesh, shard_axes=case.shard_axes)
    settings = step.with_mesh(model_settings(tokens, config, **case.requested), shape)
    model = Llama(config, params, settings)
    if adapter is not None:
        model = lcjax.load_adapter(model, adapter)
    trains = lora.everything if adapter is None else lora.adapters_only
    trainable, frozen = lora.partition(model.params, lora.trainable_mask(model.params, trains))
    objective = step.Objective(config, model.settings, case.router_aux_loss_coef)
    devices = Devices.of(model.settings.execution.mesh)

    def compute(trainable, frozen, batches):
        loss, *_, gradients = step.gradients(objective, trainable, frozen, batches, None)
        return loss, gradients

    trainable, frozen = devices.distribute(trainable), devices.distribute(frozen)
    parts = specs_of(devices.shape, (trainable, frozen))
    with mock.patch(*MUTANTS[case.broken]) if case.broken else mock.patch.dict({}):
        compute = devices.over(compute, (*parts, STEP), (WHOLE, parts[0]))
        batches = devices.divide_step({name: x[:, None] for name, x in batch.items()})
        return jax.jit(compute, compiler_options=QUICK_TO_COMPILE)(trainable, frozen, batches)


if __name__ == "__main__":
    main(sys.argv[1:])
