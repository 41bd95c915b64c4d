"""The step of several GPUs, compiled without them: what each holds, and how they communicate."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from lcjax.config.parallel.mesh import MeshRequest, MeshShape
from lcjax.errors import InputError
from lcjax.plan.choosing.settings import requested_settings
from lcjax.plan.compiling.collectives import collectives
from lcjax.plan.compiling.compile import CompiledStep, compile_step
from lcjax.plan.compiling.parameters import abstract_params, tree_bytes
from lcjax.plan.workload import Workload
from tests.support.thin import thinned
from tests.support.tiny_model import TINY

# Eight GPUs have the kernels of test_plan_command.py.
TOKENS, LAYERS, WIDTH = 16_384, 3, 128
ONE = Workload("tiny", TINY, "h100-80gb", 8, None, "offload", memory="tile=1024")
WORKLOADS = {
    "heads": dataclasses.replace(ONE, gpus=2),
    "ring": dataclasses.replace(ONE, gpus=2, mesh=MeshRequest(ring_degree=2)),
    "ring and heads": dataclasses.replace(ONE, gpus=8),
    "every weight": dataclasses.replace(ONE, gpus=2, lora_r=0),
}


@functools.cache
def compiled(name: str) -> CompiledStep:
    return compile_step(WORKLOADS[name], requested_settings(WORKLOADS[name], TOKENS))


def with_both_in_every_run(*names: str) -> list[str]:
    """The names; only a step with a ring and heads runs always: it has everything of the others."""
    return thinned([*names, "ring and heads"], lambda name: name == "ring and heads")


@pytest.mark.parametrize("name", with_both_in_every_run("heads", "ring"))
def test_each_gpu_offloads_its_own_tokens(name):
    assert compiled(name).memory.host_bytes == LAYERS * TOKENS // WORKLOADS[name].gpus * WIDTH * 2


@pytest.mark.parametrize("name", with_both_in_every_run("heads"))
def test_the_gpus_exchange_tokens_for_heads(name):
    found = {row.kind: row for row in collectives(compiled(name).program)}
    assert found.keys() - {"collective-permute"} == {"all-to-all", "all-gather", "all-reduce"}
    assert ("collective-permute" in found) == ("ring" in name)
    # Forward: q, k, v and the output. Backward: these again, delta, and the four gradients.
    assert found["all-to-all"].calls == 4 + 9


@pytest.mark.parametrize("name", with_both_in_every_run("ring"))
def test_keys_travel_while_kernels_run(name):
    found = {row.kind: row for row in collectives(compiled(name).program)}
    assert found.keys() - {"all-to-all", "all-gather"} == {"collective-permute", "all-reduce"}
    assert ("all-to-all" in found) == ("heads" in name)
    # Keys and values of three passes, and the sums of their gradients; the last hop is alone.
    assert (found["collective-permute"].calls, found["collective-permute"].overlapped) == (4, 3)


def test_every_weight_is_cut():
    settings, memory = requested_settings(WORKLOADS["every weight"], TOKENS), compiled("every weight").memory
    assert settings.execution.mesh == MeshShape(1, 1, 2, shard_axes=("heads",))
    whole = tree_bytes(abstract_params(TINY, None, None))
    norms = 2 * WIDTH * (2 * LAYERS + 1)
    assert memory.state_bytes == pytest.approx((whole - norms) / 2 + norms, abs=64)
    # Masters and moments: 12 bytes for each of a GPU's weights.
    assert memory.host_state_bytes == pytest.approx(6 * ((whole - norms) / 2 + norms), rel=1e-6)
    kinds = {row.kind for row in collectives(compiled("every weight").program)}
    assert {"all-gather", "reduce-scatter"} <= kinds


def test_lengths_and_requests_that_do_not_divide():
    with pytest.raises(InputError, match=r"sequences of 1,001 tokens do not divide into 2 equal parts .* 1002$"):
        requested_settings(WORKLOADS["heads"], 1001)
    with pytest.raises(InputError, match="cannot have equal parts of a matrix with 128 rows"):
        requested_settings(dataclasses.replace(ONE, gpus=3, mesh=MeshRequest(shard_weights="layers")), 3 * 1024 * 2)
    assert WORKLOADS["ring"].length_step == 4 * 1024
