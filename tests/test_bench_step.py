"""scripts/bench_step.py: the step that is timed is run as lcjax.train would run it."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from lcjax.config import LlamaConfig
from lcjax.errors import InputError
from steps.lcjax_side import trace_step
from steps.shape import Shape

TINY = LlamaConfig(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
SHARE, SHARE_OF_OLD, HOST = (
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB",
)


@pytest.fixture
def shape(tmp_path, monkeypatch) -> Shape:
    for name in (SHARE, SHARE_OF_OLD, HOST):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # twice, so that whatever a step sets is undone
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_dict()))
    return Shape(str(tmp_path), quantize="none", attention="xla", lora_r=4)


@pytest.mark.parametrize("lora_r", [4, 0])
def test_jax_may_have_the_memory_that_it_has_in_training(shape, lora_r):
    """Left to itself it would have three quarters of the GPU."""
    trace_step(dataclasses.replace(shape, lora_r=lora_r), 64, "offload", "none")
    assert os.environ[SHARE] == "0.97"
    assert os.environ[HOST] == "9"  # a step of some kilobytes, and 8 GiB for weights on their way


def test_what_training_refuses_is_not_timed(shape):
    """cuDNN does not keep what `offload_attn` is to keep, and would be timed as `offload`."""
    with pytest.raises(
        InputError, match="'offload_attn' keeps attention's log-sum-exp, which attention='cudnn' does not"
    ):
        trace_step(dataclasses.replace(shape, attention="cudnn"), 64, "offload_attn", "none")
