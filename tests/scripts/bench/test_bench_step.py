"""scripts/bench_step.py: the timed step runs as in lcjax.train."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lcjax.config.presets import PRESETS
from lcjax.errors import InputError
from lcjax_scripts.bench.steps.lcjax_side import trace_step
from lcjax_scripts.bench.steps.shape import Shape
from tests.support.jax_limits import HOST, SHARE, SHARE_OF_OLD, limits_at_start, limits_of_a_small_run

SMALL = dataclasses.replace(PRESETS["smollm2-135m"], num_hidden_layers=2, vocab_size=100)


@pytest.fixture
def shape(tmp_path, monkeypatch) -> Shape:
    for name in (SHARE, SHARE_OF_OLD, HOST):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # twice, so that what a step sets is undone
    (tmp_path / "config.json").write_text(json.dumps(SMALL.to_dict()))
    return Shape(str(tmp_path), quantize="none", attention="auto", lora_r=4)


@pytest.mark.parametrize("lora_r", [4, 0])
def test_jax_has_the_memory_limits_of_training(shape, lora_r):
    """By default, JAX would use 75% of the GPU."""
    of_rank = dataclasses.replace(shape, lora_r=lora_r)
    program = f"""
from lcjax_scripts.bench.steps.lcjax_side import trace_step
from lcjax_scripts.bench.steps.shape import Shape
trace_step({of_rank!r}, 64, "offload", "none")
"""
    assert limits_at_start(program) == limits_of_a_small_run()


def test_what_training_refuses_is_not_timed(shape):
    """cuDNN cannot save what `offload_attn` saves, and would be timed as `offload`."""
    with pytest.raises(
        InputError, match="'offload_attn' saves attention's log-sum-exp, which attention='cudnn' does not"
    ):
        trace_step(dataclasses.replace(shape, attention="cudnn"), 64, "offload_attn", "none")
