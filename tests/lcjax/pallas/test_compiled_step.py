"""The training step, compiled for an H100: it has the kernels, each as often as necessary."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from lcjax.config.presets import PRESETS
from lcjax.plan.choosing.settings import requested_settings
from lcjax.plan.compiling.compile import compile_step
from lcjax.plan.workload import Workload
from tests.support.thin import thinned

TOKENS = 131_072
# A plan of test_plan_command.py counts the kernels of the step with `offload_attn` in tiles.
CONFIG, RANK = PRESETS["llama-3.1-8b"], 32


# The backward pass recomputes the layer, except what the policy saves. RoPE also runs in its own
# backward pass.
RECOMPUTED = {"attention_forward": 2, "attention_dq": 1, "attention_dkv": 1, "rope": 3}


@pytest.mark.parametrize(
    ("policy", "memory", "attention", "expected"),
    thinned(
        [
            ("offload", "none", "pallas", RECOMPUTED),
            ("offload", "auto", "pallas", RECOMPUTED),
            ("offload_attn", "none", "pallas", RECOMPUTED | {"attention_forward": 1}),
            ("offload_attn", "auto", "pallas", RECOMPUTED | {"attention_forward": 1}),
            ("offload", "none", "xla", {}),
        ],
        lambda case: case[:2] == ("offload", "auto"),
    ),
)
def test_the_step_contains_the_kernels(policy, memory, attention, expected):
    workload = Workload(
        "8b", CONFIG, "h100-80gb", RANK, use_gradient_checkpointing=policy, memory=memory, attention=attention
    )
    assert compile_step(workload, requested_settings(workload, TOKENS)).program.kernels() == expected


def of_experts(adapted: int) -> dict[str, int]:
    """The kernels of gate, up and down: the weights of all experts, and both factors of an adapter.

    They run in the forward pass and again in the recomputed layer; the backward pass has as many
    for inputs, and one for each factor's gradient.
    """
    return {"grouped_product": 3 * (3 + 2 * adapted), "grouped_outer_product": 2 * adapted}


# XLA compiles every call of a kernel, so fewer adapters take half of the time.
@pytest.mark.parametrize(("modules", "adapted"), thinned([(None, 3), (("down_proj",), 1)], lambda case: case[1] == 1))
def test_the_step_with_experts_dequantizes_one_layer_at_a_time(modules, adapted):
    config = dataclasses.replace(PRESETS["qwen3-30b-a3b"], num_hidden_layers=3)
    workload = Workload("30b", config, "h100-80gb", lora_r=8, quantize="nf4", use_gradient_checkpointing="offload")
    workload = workload if modules is None else dataclasses.replace(workload, target_modules=modules)
    step = compile_step(workload, requested_settings(dataclasses.replace(workload, memory="none"), 4096))
    assert step.program.kernels() == RECOMPUTED | of_experts(adapted)
    one_map = config.experts.count * config.experts.width * config.hidden_size
    vocabulary = config.vocab_size * config.hidden_size
    large = {}
    for instruction in step.program.instructions.values():
        for dtype, axes in re.findall(r"(\w+)\[([\d,]+)\]", " ".join(shape for shape, _ in instruction.arrays)):
            size = math.prod(map(int, axes.split(",")))
            if size >= one_map and size != vocabulary and "fused" not in instruction.computation:
                large.setdefault(dtype, set()).add(size)
    assert large.pop("u8") == {3 * one_map // 2}, "the codes of all layers"
    assert large == {"bf16": {one_map}}, "the weights of one map of one layer"
