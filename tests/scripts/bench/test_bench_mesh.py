"""scripts/bench_mesh.py: attention on a mesh has the results of one device."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lcjax.config.parallel.mesh import MeshShape
from lcjax.errors import InputError
from lcjax_scripts.bench.steps.shape import Shape, mesh_of
from lcjax_scripts.pages.measured_tables import rows_of
from lcjax_scripts.paths import TREE, python_path


def test_results_are_compared_with_one_device(tmp_path):
    """The inputs are bfloat16. A ring rounds partial results in another order."""
    sizes = "--lengths 256 --heads 4 --kv-heads 2 --head-dim 16 --seconds 0.01"
    command = [sys.executable, TREE / "scripts" / "bench_mesh.py", *sizes.split(), "--implementations", "xla"]
    command += ["--meshes", "1x1x2", "1x2x1", "--csv", tmp_path / "mesh.csv"]
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": python_path()}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = rows_of(tmp_path / "mesh.csv")
    assert [(row["pass"], row["mesh"]) for row in rows] == [
        (name, mesh) for name in ("forward", "both") for mesh in ("1x1x1", "1x1x2", "1x2x1")
    ]
    assert all(float(row["difference"]) <= 2**-6 for row in rows)
    assert all(float(row["milliseconds"]) > 0 for row in rows)


def test_a_mesh_is_three_numbers():
    assert mesh_of("2x1x4") == MeshShape(2, 1, 4)
    request = Shape(mesh="2x1x4", shard_weights="layers").mesh_request
    assert (request.data_parallel_size, request.context, request.shard_weights) == (2, 4, "layers")
    with pytest.raises(InputError, match="'2x4' is not data x ring x heads; write it as 1x2x4"):
        mesh_of("2x4")
