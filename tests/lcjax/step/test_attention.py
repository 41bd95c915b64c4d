"""lcjax.step.attention: which implementation is chosen, what replaces it, and why."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from lcjax.config import ExecutionRequest, LoraConfig
from lcjax.config.parallel.mesh import MeshShape
from lcjax.config.presets import PRESETS
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.pallas.mosaic import backend as mosaic
from lcjax.pallas.triton.block_sizes import traced_with
from lcjax.plan.choosing.budget import Budget
from lcjax.plan.compiling.aot import abstract, gpu_sharding, kernels_of
from lcjax.plan.compiling.parameters import abstract_params
from lcjax.plan.compiling.run import Run
from lcjax.plan.fit import fit
from lcjax.step import resolve, resolved_settings, why_attention, with_attention, with_mesh
from lcjax.train.compiled.execution import SavedExecution
from tests.support.tiny_model import TINY

LLAMA = PRESETS["llama-3.1-8b"]


@pytest.fixture
def verified(monkeypatch):
    """As if Mosaic's kernels were verified with the JAX that runs the tests."""
    monkeypatch.setattr(mosaic, "OLDEST_VERIFIED_JAX", mosaic.OLDEST_JAX)


def chosen(gpu: str, config=LLAMA, dtype=jnp.bfloat16, request: ExecutionRequest | None = None) -> tuple[str, ...]:
    with kernels_of(gpu):
        execution = resolve(request or ExecutionRequest(), config, dtype, "gpu")
    return execution.attention, *execution.slower_attention


@pytest.mark.usefixtures("verified")
@pytest.mark.parametrize("gpu", ["h100-80gb", "h200"])
def test_hopper_gpus_use_mosaic_where_it_supports_every_layer(gpu):
    assert chosen(gpu) == ("mosaic", "pallas")
    assert chosen(gpu, PRESETS["mistral-7b-v0.1"]) == ("mosaic", "pallas")  # windows
    assert chosen(gpu, PRESETS["gpt-oss-20b"]) == ("pallas",)  # heads of 64
    assert chosen(gpu, PRESETS["gemma-2-27b"]) == ("pallas",)  # a soft cap
    assert chosen(gpu, dataclasses.replace(LLAMA, head_dim=96)) == ("pallas",)
    assert chosen(gpu, dtype=jnp.float32) == ("pallas",)
    assert chosen(gpu, dataclasses.replace(LLAMA, head_dim=512)) == ("xla",)
    assert chosen(gpu, request=ExecutionRequest("pallas")) == ("pallas",)


@pytest.mark.usefixtures("verified")
@pytest.mark.parametrize("gpu", ["a100-80gb", "b200", "rtx4090"])
def test_other_gpus_use_pallas(gpu):
    assert chosen(gpu) == ("pallas",)


def test_without_a_gpu_it_is_xla():
    execution = resolve(ExecutionRequest(), LLAMA, jnp.bfloat16, "cpu")
    assert (execution.attention, execution.slower_attention) == ("xla", ())


def test_jax_in_which_mosaic_was_not_verified_uses_pallas(monkeypatch):
    monkeypatch.setattr(mosaic, "OLDEST_VERIFIED_JAX", (99, 0))
    assert chosen("h100-80gb") == ("pallas",)
    with kernels_of("h100-80gb"):
        assert resolve(ExecutionRequest("mosaic"), LLAMA, jnp.bfloat16, "gpu").attention == "mosaic"


def settings(attention: str = "auto", **request):
    with kernels_of("h100-80gb"):
        return resolved_settings(ExecutionRequest(attention, **request), LLAMA, jnp.bfloat16, 65_536, "gpu")


@pytest.mark.usefixtures("verified")
def test_a_ring_uses_what_can_join_the_results_of_several_devices():
    ring = with_mesh(settings(), MeshShape(1, 2, 4)).execution
    assert (ring.attention, ring.slower_attention) == ("pallas", ())
    heads = with_mesh(settings(), MeshShape(1, 1, 8)).execution
    assert (heads.attention, heads.slower_attention) == ("mosaic", ("pallas",))


@pytest.mark.usefixtures("verified")
def test_a_resumed_run_uses_the_implementation_that_it_began_with():
    began = SavedExecution("id", {}, "offload", "none", None, "pallas")
    assert began.applied(settings()).execution.attention == "pallas"
    assert dataclasses.replace(began, attention="mosaic").applied(settings()).execution.attention == "mosaic"
    assert dataclasses.replace(began, attention=None).applied(settings()).execution.attention == "mosaic"
    assert began.applied(settings("mosaic")).execution.attention == "mosaic"


@pytest.mark.usefixtures("verified")
def test_the_reason(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def reason(settings, config=LLAMA, dtype=jnp.bfloat16):
        with traced_with():
            return why_attention(settings, config, dtype)

    assert reason(settings()) == "the fastest on this GPU"
    assert reason(settings("pallas")) == ""
    assert reason(with_attention(settings(), "pallas")) == "mosaic needs more memory"
    assert reason(with_mesh(settings(), MeshShape(1, 2, 1))) == "mosaic does not support a ring"
    float32 = dataclasses.replace(settings(), execution=resolve(ExecutionRequest(), LLAMA, jnp.float32, "gpu"))
    assert reason(float32, dtype=jnp.float32) == "mosaic does not support dtype float32"
    monkeypatch.setattr(mosaic, "OLDEST_VERIFIED_JAX", (99, 0))
    assert reason(with_attention(settings("pallas"), "pallas")) == ""
    assert reason(settings()) == f"mosaic was verified on GPUs with JAX 99.0 and later, and this is {jax.__version__}"


@pytest.mark.usefixtures("verified", "empty_cache")
def test_a_step_that_does_not_fit_is_tried_with_the_slower_implementation():
    config, lora = dataclasses.replace(TINY, head_dim=128, num_hidden_layers=1), LoraConfig(8, 32)
    params = abstract(abstract_params(config, lora, None), gpu_sharding("h100-80gb"))
    run, tried = Run.here(config, params, TrainingArguments(), lora), []

    def compiler(lowered):
        tried.append("mosaic" if "mosaic_gpu" in lowered.as_text() else "pallas")
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    for attention, expected in (("auto", ["mosaic", "pallas"]), ("mosaic", ["mosaic"])):
        request = ExecutionRequest(attention, use_gradient_checkpointing="none", memory="none")
        requested = resolved_settings(request, config, jnp.bfloat16, 256, "gpu", lora=lora)
        with pytest.raises(InputError, match="too large"):
            fit(run, requested, Budget(2**40, 2**40), compiler=compiler)
        assert tried == expected
        tried.clear()
