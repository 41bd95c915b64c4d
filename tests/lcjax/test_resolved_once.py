"""Open choices are made once, in `lcjax.step`; what computes never sees the word "auto"."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import lcjax
from lcjax.config import Execution, ExecutionRequest, MemorySettings
from lcjax.config.execution import LayerForm, layer_forms
from lcjax.config.parallel.mesh import ONE_DEVICE, MeshShape
from lcjax.config.presets import resolve_config
from lcjax.errors import InputError
from lcjax.model import ModelSettings
from lcjax.pallas.mosaic import backend as mosaic
from lcjax.step import resolve, resolved_settings, with_mesh, with_request
from tests.support.settings import model_settings
from tests.support.tiny_model import TINY

PACKAGE = Path(lcjax.__file__).parent
COMPUTING = ("model", "memory", "optim", "pallas", "parallel", "step", "ops")
# The functions of lcjax.ops are public too, and have an edge of their own.
EDGES = (
    "step/attention.py",
    "step/program.py",  # where the optimizer's state is
    "ops/attention/api.py",
    "ops/attention/registry.py",
    "ops/rope/api.py",
)


def words(path: Path) -> Iterator[str]:
    """The strings of a file that are a word each."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def sees_auto(path: Path) -> bool:
    return "auto" in words(path)


def test_what_computes_does_not_see_the_word():
    files = {
        str(path.relative_to(PACKAGE)): path for package in COMPUTING for path in (PACKAGE / package).rglob("*.py")
    }
    assert [name for name, path in files.items() if sees_auto(path) and name not in EDGES] == []
    assert [name for name in EDGES if not sees_auto(files[name])] == []


def test_the_platform_decides_where_nothing_is_requested():
    on_cpu, on_gpu = (resolve(ExecutionRequest(), TINY, jnp.bfloat16, name) for name in ("cpu", "gpu"))
    assert (on_cpu.attention, on_cpu.rope) == ("xla", "xla")
    assert (on_gpu.attention, on_gpu.rope) == ("pallas", "pallas")
    assert on_cpu.forms == on_gpu.forms


def test_attention_that_the_kernels_do_not_support_is_xla_s_from_the_start():
    wide = dataclasses.replace(TINY, head_dim=512)
    assert resolve(ExecutionRequest(), wide, jnp.bfloat16, "gpu") == Execution(
        "xla", "pallas", layer_forms(ExecutionRequest(), attention_has_passes=True)
    )


def test_forms_by_length():
    execution = resolve(ExecutionRequest(), TINY, jnp.float32, "gpu")
    found = {tokens: execution.form(tokens) for tokens in (1, 4096, 4097, 32_768, 32_769, 33_792, 131_072)}
    policies = {tokens: form.policy for tokens, form in found.items()}
    assert list(policies.values()) == ["none", "none", "full", "full", "offload", "offload", "offload"]
    assert [tokens for tokens, form in found.items() if form.memory is not None] == [33_792, 131_072]
    cudnn = resolve(ExecutionRequest("cudnn"), TINY, jnp.bfloat16, "gpu")
    assert cudnn.form(131_072) == LayerForm("offload")


def test_layers_in_tiles_are_always_recomputed():
    execution = resolve(ExecutionRequest(memory=MemorySettings(tile=64)), TINY, jnp.float32, "cpu")
    assert [execution.form(tokens).policy for tokens in (128, 32_768, 32_769)] == ["full", "full", "offload"]
    assert execution.form(128).memory == MemorySettings(tile=64)


def test_another_request_resolves_the_rest_again():
    settings = model_settings(65_536, use_gradient_checkpointing="offload")
    again = with_request(settings, use_gradient_checkpointing="offload_attn")
    assert (settings.form.policy, again.form.policy) == ("offload", "offload_attn")
    assert settings.form.memory == again.form.memory == MemorySettings()
    plain = with_request(settings, memory="none", loss_chunk=64)
    assert plain.form.memory is None
    assert (plain.execution.loss_chunk, plain.requested.loss_chunk) == (64, 64)
    with pytest.raises(InputError, match="use_gradient_checkpointing='full' at 65,536 tokens"):
        with_request(settings, use_gradient_checkpointing="full")


def test_settings_without_a_request_run_anywhere():
    assert ModelSettings(64).execution == Execution("xla", "xla")
    with pytest.raises(InputError, match="use_gradient_checkpointing='none' at 40,000 tokens"):
        resolved_settings(
            ExecutionRequest(use_gradient_checkpointing="none"), TINY, jnp.float32, 64, "cpu"
        ).execution.form(40_000)


def test_a_policy_is_judged_by_the_tokens_of_a_device():
    request = ExecutionRequest(use_gradient_checkpointing="none")
    settings = resolved_settings(request, TINY, jnp.float32, 65_536, "cpu", mesh=MeshShape(1, 1, 8))
    assert settings.form.policy == "none"
    assert with_request(settings, use_gradient_checkpointing="full").form.policy == "full"
    for mesh in (ONE_DEVICE, MeshShape(8, 1, 1)):  # whose devices have other sequences
        unknown = resolved_settings(request, TINY, jnp.float32, 65_536, "cpu", mesh=None)
        with pytest.raises(InputError, match="use_gradient_checkpointing='none' at 65,536 tokens on a device"):
            with_mesh(unknown, mesh)
        with pytest.raises(InputError, match="use_gradient_checkpointing='none' at 65,536 tokens on a device"):
            resolved_settings(request, TINY, jnp.float32, 65_536, "cpu", mesh=mesh)


def test_attention_that_a_layer_needs_is_refused_before_the_weights_are_read():
    config = resolve_config("gemma-2-27b")
    with pytest.raises(InputError, match="attention='cudnn' does not support soft_cap"):
        resolve(ExecutionRequest("cudnn"), config, jnp.bfloat16, "gpu")
    for name in ("xla", "pallas"):
        assert resolve(ExecutionRequest(name), config, jnp.bfloat16, "gpu").attention == name
    without = resolve_config("llama-3.1-8b")
    assert resolve(ExecutionRequest("cudnn"), without, jnp.bfloat16, "gpu").attention == "cudnn"


def test_attention_is_refused_for_the_size_of_heads_without_starting_jax(monkeypatch):
    monkeypatch.setattr(mosaic, "OLDEST_JAX", (0,))
    with pytest.raises(InputError, match="attention='mosaic' runs on Hopper GPUs"):
        resolve(ExecutionRequest("mosaic"), resolve_config("llama-3.1-8b"), jnp.bfloat16, "cpu")
    monkeypatch.setattr(jax, "default_backend", lambda: pytest.fail("JAX has started"))
    narrow = dataclasses.replace(TINY, head_dim=16)
    with pytest.raises(InputError, match="attention='mosaic' does not support head_dim=16; use 64 or 128"):
        resolve(ExecutionRequest("mosaic"), narrow, jnp.bfloat16, "gpu")
    found = resolve(ExecutionRequest("mosaic"), resolve_config("llama-3.1-8b"), jnp.bfloat16, "gpu")
    assert found.attention == "mosaic"
