"""lcjax.plan.compiling.offload: the exact bytes in host memory, and the error if they differ."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from lcjax.config import MemorySettings, parse_memory
from lcjax.config.presets import PRESETS
from lcjax.errors import InputError
from lcjax.memory import stack as memory_stack
from lcjax.plan.choosing.settings import requested_settings
from lcjax.plan.compiling.compile import CompiledStep, compile_step
from lcjax.plan.compiling.offload import host_arrays
from lcjax.plan.workload import Workload
from lcjax.step import program
from tests.support.settings import model_settings
from tests.support.thin import thinned
from tests.support.tiny_model import TINY, TOKENS, compiled

LLAMA_8B = PRESETS["llama-3.1-8b"]


def host_bytes(policy: str, memory: str = "none", dtype: str = "bfloat16", tokens: int = 131_072) -> int:
    settings = model_settings(
        tokens, LLAMA_8B, use_gradient_checkpointing=policy, memory=parse_memory(memory), attention="pallas"
    )
    return sum(array.bytes for array in host_arrays(LLAMA_8B, settings, dtype))


def test_the_bytes_by_hand():
    inputs, log_sums = 32 * 131_072 * 4096 * 2, 32 * 131_072 * 32 * 4
    assert host_bytes("none", tokens=1024) == host_bytes("full", tokens=1024) == 0
    assert host_bytes("offload") == host_bytes("auto", "tile=8192,head_groups=8") == inputs
    assert host_bytes("offload", "tile=8192,save_every=4") == inputs // 4
    assert host_bytes("offload_attn") == 2 * inputs + log_sums
    assert host_bytes("offload", "tile=8192,embeddings_on_host=true") == inputs + 2 * 128_256 * 4096 * 2
    assert host_bytes("offload_attn", "tile=8192,save_every=2") == inputs // 2 + inputs + log_sums
    assert host_bytes("offload_attn", dtype="float32") == 4 * inputs + 2 * log_sums


@pytest.mark.parametrize(
    "policy", thinned(["none", "full", "offload", "offload_attn"], lambda policy: policy in ("full", "offload_attn"))
)
def test_a_compiled_step_has_exactly_these_bytes(policy):
    """`compile_step` raises an error if they differ."""
    settings = model_settings(TOKENS, use_gradient_checkpointing=policy, memory="none", attention="pallas")
    expected = sum(array.bytes for array in host_arrays(TINY, settings, "bfloat16"))
    assert compiled(policy).memory.host_bytes == expected
    assert (expected > 0) == policy.startswith("offload")


def weights_at_known_offsets(step: CompiledStep) -> set[str]:
    """Shapes of the weights that XLA slices out of their stack at offsets it knows.

    XLA may copy such slices with the copy engine.
    """
    slices = [x for x in step.program.instructions.values() if x.attribute(r'"dynamic_slice_config":\{"(\w+)"')]
    weights = {f"bf16[1,{out_features},{in_features}]" for out_features, in_features in TINY.linear_shapes().values()}
    return weights & {shape for x in slices for shape, _ in x.arrays}


@pytest.mark.parametrize(
    ("policy", "memory"),
    thinned([("offload", "none"), ("offload_attn", "none"), ("offload", "tile=1024")], lambda case: "tile" in case[1]),
)
def test_weights_do_not_wait_behind_copies_from_the_host(policy, memory):
    workload = Workload("tiny", TINY, "h100-80gb", 8, None, policy, memory)
    assert not weights_at_known_offsets(compile_step(workload, requested_settings(workload, TOKENS)))


def test_without_offload_the_offsets_are_known():
    assert weights_at_known_offsets(compiled("full"))


def test_what_stayed_on_the_device_is_named(monkeypatch):
    """Mutant: a stack that does not move its inputs to the host."""
    monkeypatch.setattr(memory_stack.jax, "device_put", lambda tree, *args, **kwargs: tree)
    settings = model_settings(
        TOKENS, lora=None, use_gradient_checkpointing="offload", memory=MemorySettings(1024), attention="pallas"
    )
    workload = Workload("tiny", TINY, "h100-80gb", lora_r=8)
    settings = dataclasses.replace(settings, lora=workload.lora)
    size = 3 * TOKENS * 128 * 2
    message = (
        rf"^offload: 0 bytes are in host memory instead of {size:,}: "
        rf"the layers' inputs bf16\[3,1,{TOKENS},128\] \({size:,} bytes\) stayed on the device, made by \w+ in lcjax/[\w/]+\.py:\d+"
    )
    with pytest.raises(InputError, match=message):
        compile_step(workload, settings)


def test_a_table_that_is_embedding_and_head_is_fetched_for_each():
    """Fetched only once for both, it would be on the device during all layers."""
    config = dataclasses.replace(TINY, tie_word_embeddings=True)
    workload = Workload("tiny", config, "h100-80gb", 8, None, "offload", "tile=1024,embeddings_on_host=true")
    program = compile_step(workload, requested_settings(workload, TOKENS)).program
    fetches = [
        x for x in program.instructions.values() if x.opcode == "copy-start" and x.arrays[0][0] == "bf16[1000,128]"
    ]
    assert len(fetches) == 2


def test_embeddings_that_stayed_on_the_device_are_named(monkeypatch):
    """Mutant: a program that does not place them."""
    monkeypatch.setattr(program, "place_embeddings", lambda params, on_host: params)
    workload = Workload("tiny", TINY, "h100-80gb", 8, None, "offload", "tile=1024,embeddings_on_host=true")
    message = (
        r"^offload: [\d,]+ bytes are in host memory instead of [\d,]+: "
        r"model.embed_tokens.weight bf16\[1000,128\] \(256,000 bytes\) stayed on the device, an argument of the step"
    )
    with pytest.raises(InputError, match=message):
        compile_step(workload, requested_settings(workload, TOKENS))


def test_attention_that_hides_its_log_sum_exp_is_refused():
    settings = model_settings(131_072, use_gradient_checkpointing="offload_attn", memory="none", attention="cudnn")
    with pytest.raises(InputError, match="saves attention's log-sum-exp, which attention='cudnn' does not return"):
        host_arrays(LLAMA_8B, settings, jnp.bfloat16)
    assert jax.default_backend() == "cpu"
