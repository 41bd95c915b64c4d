"""Loads models onto several CPU devices, in processes of their own.

JAX fixes the number of CPU devices when it starts, and other tests run on one device. Usage:
`python -m tests.support.loading_runs OUT DEVICES MODEL...` in one process, or with
`--process ADDRESS COUNT NUMBER` before OUT in several. What was found is written to OUT as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from lcjax import weights
from lcjax.config.parallel.mesh import MeshShape
from lcjax.errors import InputError
from lcjax.parallel.devices import Devices
from lcjax.parallel.loading import Destination
from lcjax.parallel.processes import together
from lcjax.train.checkpoints.fingerprint import fingerprint
from tests.support.processes import DEADLINE_S
from tests.support.several_processes import free_port

MESHES = {
    "cut over 8": MeshShape(1, 1, 8, ("heads",)),
    "cut over 2 x 2": MeshShape(2, 2, 2, ("ring", "heads")),
    "cut over 2": MeshShape(4, 1, 2, ("heads",)),
    "whole on each": MeshShape(1, 8, 1),
}


def loaded_on_8(folder: Path, models: Sequence[Path]) -> list[dict[str, Any]]:
    """A dictionary for every model, mesh and kind of quantization; see `_loads`."""
    process = _start(folder / "found.json", 8, [], models)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output[-3000:]
    return json.loads((folder / "found.json").read_text())


def loaded_by_2(folder: Path, models: Sequence[Path]) -> list[list[dict[str, Any]]]:
    """What each of two processes found, which have two devices each."""
    address = f"127.0.0.1:{free_port()}"
    names = [folder / f"found-{number}.json" for number in range(2)]
    processes = [_start(name, 2, ["--process", address, "2", str(i)], models) for i, name in enumerate(names)]
    for process in processes:
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, output[-3000:]
    return [json.loads(name.read_text()) for name in names]


def _start(out: Path, devices: int, process: list[str], models: Sequence[Path]) -> subprocess.Popen[str]:
    flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "tests.support.loading_runs", *process, out, *models]
    return subprocess.Popen(
        list(map(str, command)),
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def main(arguments: list[str]) -> None:
    meshes = MESHES
    if arguments[0] == "--process":
        address, count, number = arguments[1:4]
        arguments = arguments[4:]
        jax.distributed.initialize(address, int(count), int(number))
        meshes = {"cut over 4": MeshShape(1, 1, 4, ("heads",)), "cut over 2": MeshShape(2, 1, 2, ("heads",))}
    out, *models = map(Path, arguments)
    jax.numpy.zeros(1).block_until_ready()
    found = [
        _loads(model, name, mesh, kind) for model in models for name, mesh in meshes.items() for kind in _kinds(model)
    ]
    out.write_text(json.dumps(found))


def _kinds(model: Path) -> list[str | None]:
    return [None] if "bnb" in model.name else [None, "nf4"]


def _loads(model: Path, mesh: str, shape: MeshShape, kind: str | None) -> dict[str, Any]:
    """Loads a model onto a mesh and onto one device.

    Returns:
      `model`, `mesh` and `kind`; `error`, or: `read`, the bytes that were read from files, and
      `read_alone`, those for one device; `peak`, the most bytes on the first device at once, `own`,
      the bytes of its parts of all leaves, and `whole`, those of all leaves; `differing`, the
      leaves that differ from those on one device; `same_digest`, whether the fingerprints agree.
    """
    found: dict[str, Any] = {"model": model.name, "mesh": mesh, "kind": kind}
    checkpoint, devices = weights.open_model_files(model), Devices.of(shape)
    before = _bytes_read()
    try:
        with _watched() as peaks:
            params = together(lambda: checkpoint.load("bfloat16", kind, devices=devices))
    except InputError as error:
        return found | {"error": str(error)}
    found["read"] = _bytes_read() - before
    found["peak"] = max(peaks)
    own = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(params)]
    found["own"] = sum(part.nbytes for part in own)
    before = _bytes_read()
    expected = checkpoint.load("bfloat16", kind)
    found["read_alone"] = _bytes_read() - before
    found["whole"] = sum(leaf.nbytes for leaf in jax.tree.leaves(expected))
    pairs = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(expected), strict=True)
    found["differing"] = [jax.tree_util.keystr(path) for (path, leaf), whole in pairs if not _is_same(leaf, whole)]
    found["same_digest"] = fingerprint(params) == fingerprint(expected)
    return found


def _is_same(leaf: jax.Array, whole: jax.Array) -> bool:
    """Whether all parts of this process are, bit for bit, those of the whole array."""
    values = np.asarray(whole)
    return leaf.dtype == whole.dtype and all(
        np.asarray(shard.data).tobytes() == values[shard.index].tobytes() for shard in leaf.addressable_shards
    )


def _bytes_read() -> int:
    """Bytes that this process has read from files, by all system calls."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


@contextlib.contextmanager
def _watched() -> Iterator[list[int]]:
    """Measures the bytes on the first device after each array that is put on devices."""
    peaks, put = [], Destination.put

    def measured(self, parts):
        array = put(self, parts)
        peaks.append(_bytes_on_the_first_device())
        return array

    with mock.patch.object(Destination, "put", measured):
        yield peaks


def _bytes_on_the_first_device() -> int:
    first = jax.local_devices()[0]
    parts = (shard.data for array in jax.live_arrays() for shard in array.addressable_shards if shard.device == first)
    return sum({part.unsafe_buffer_pointer(): part.nbytes for part in parts}.values())


if __name__ == "__main__":
    main(sys.argv[1:])
