"""The steps of docs/many-gpus.md, compiled for eight and for thirty-two H100."""

from __future__ import annotations

import math

import pytest

from lcjax.config.parallel.mesh import MeshRequest
from lcjax.config.presets import resolve_config
from lcjax.plan.choosing.settings import requested_settings
from lcjax.plan.compiling.collectives import collectives
from lcjax.plan.compiling.compile import compile_step
from lcjax.plan.compiling.memory import GIB
from lcjax.plan.workload import Workload

pytestmark = pytest.mark.slow

CUT = MeshRequest(shard_weights="layers")
# (model, rank, quantization, hosts, tokens, mesh, GiB on each GPU, GiB of pinned memory for each)
STEPS = {
    "8B at 4,194,304 on 8": ("llama-3.1-8b", 32, "nf4", 1, 2**22, MeshRequest(), 31.5, 128),
    "8B at 16,777,216 on 4 x 8": ("llama-3.1-8b", 32, "nf4", 4, 2**24, MeshRequest(), 50.0, 128),
    "70B at 1,048,576 on 8": ("llama-3.1-70b", 32, "nf4", 1, 2**20, CUT, 24.5, 160),
    "every weight of 8B at 4,194,304 on 8": ("llama-3.1-8b", 0, None, 1, 2**22, MeshRequest(), 41.5, None),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_many_gpus(name):
    model, rank, quantize, hosts, tokens, mesh, budget, pinned = STEPS[name]
    workload = Workload(
        model,
        resolve_config(model),
        "h100-80gb",
        rank,
        quantize,
        "offload",
        "tile=8192",
        gpus=8,
        hosts=hosts,
        mesh=mesh,
    )
    step = compile_step(workload, requested_settings(workload, tokens))
    assert step.memory.device_bytes < budget * GIB
    if pinned is not None:
        assert step.memory.host_bytes == pinned * GIB
    else:  # the inputs of the layers; masters and moments, once or twice
        inputs = 32 * (tokens // 8) * 4096 * 2
        assert inputs < step.memory.host_bytes <= inputs + 2 * step.memory.host_state_bytes
        assert math.isclose(step.memory.host_state_bytes, 12 * 8.03e9 / 8, rel_tol=0.01)
    # With 13 permutes a layer, XLA of JAX 0.10.2 leaves 5 that run alone, and compiled for two GPUs
    # only the last hop; see test_several_gpus.py.
    permutes = [row for row in collectives(step.program) if row.kind == "collective-permute"]
    assert all(row.overlapped >= row.calls - 5 for row in permutes)


def test_a_step_of_more_than_2_to_the_24_tokens():
    """float32 does not represent every position of such a sequence."""
    config, tokens = resolve_config("llama-3.1-8b"), 25_165_824
    workload = Workload("8b", config, "h100-80gb", 32, "nf4", "offload", "tile=8192", gpus=8, hosts=4)
    step = compile_step(workload, requested_settings(workload, tokens))
    assert step.memory.device_bytes < 65 * GIB
    assert step.memory.host_bytes == 192 * GIB
