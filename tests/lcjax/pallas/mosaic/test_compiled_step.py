"""The training step for an H100 has both kernels, each as often as its policy requires."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest

from lcjax.config.presets import PRESETS
from lcjax.ops.attention.registry import backend_of
from lcjax.plan.choosing.settings import requested_settings
from lcjax.plan.compiling.compile import compile_step
from lcjax.plan.workload import Workload
from tests.support.thin import thinned

TOKENS = 131_072
# Depth does not change the program, only the scan's length.
CONFIG = dataclasses.replace(PRESETS["llama-3.1-8b"], num_hidden_layers=2)


@pytest.mark.parametrize(
    ("policy", "memory", "forward_passes"),
    thinned([("offload_attn", "none", 1), ("offload", "none", 2), ("offload", "auto", 2)], lambda case: case[2] == 1),
)
def test_the_step_contains_the_kernels(policy, memory, forward_passes):
    workload = Workload(
        "8b", CONFIG, "h100-80gb", lora_r=8, use_gradient_checkpointing=policy, memory=memory, attention="mosaic"
    )
    program = compile_step(workload, requested_settings(workload, TOKENS)).program
    pattern = f"/({backend_of('mosaic').kernel_pattern})/"
    calls = [
        i for i in program.instructions.values() if "mosaic_gpu" in (i.attribute(r'custom_call_target="(\w+)"') or "")
    ]
    names = Counter(match.group(1) for call in calls if (match := re.search(pattern, call.op_name)))
    assert names == {"mosaic_attention_forward": forward_passes, "mosaic_attention_backward": 1}
    assert len(calls) == names.total()
