"""The training step for an H100 has both kernels, each as often as its policy requires.

The plan counts them by name, and the memory that they need.
"""

from __future__ import annotations

import dataclasses
import re

import pytest

from lcjax.config.presets import PRESETS
from lcjax.ops.attention.registry import backend_of
from lcjax.plan.choosing.settings import requested_settings
from lcjax.plan.compiling.compile import CompiledStep, compile_step
from lcjax.plan.workload import Workload
from tests.support.thin import thinned

TOKENS = 131_072
# Depth does not change the program, only the scan's length. One adapter needs fewer other kernels.
CONFIG = dataclasses.replace(PRESETS["llama-3.1-8b"], num_hidden_layers=2)


@pytest.mark.parametrize(
    ("policy", "memory", "forward_passes"),
    thinned([("offload_attn", "none", 1), ("offload", "none", 2), ("offload", "auto", 2)], lambda case: case[2] == 1),
)
def test_the_step_contains_the_kernels(policy, memory, forward_passes):
    workload = Workload("8b", CONFIG, "h100-80gb", lora_r=8, target_modules=("q_proj",), attention="mosaic")
    workload = dataclasses.replace(workload, use_gradient_checkpointing=policy, memory=memory)
    step = compile_step(workload, requested_settings(workload, TOKENS))
    kernels = {name: count for name, count in step.program.kernels().items() if name != "rope"}
    assert kernels == {"mosaic_attention_forward": forward_passes, "mosaic_attention_backward": 1}
    pattern = re.compile(backend_of("mosaic").kernel_pattern)
    assert all(pattern.fullmatch(name) for name in kernels)
    check_sum_of_dq(step)


def check_sum_of_dq(step: CompiledStep) -> None:
    """The float32 sum of dq is a result of the kernel, for which XLA allocates memory."""
    [arrays] = [
        {shape for shape, _ in call.arrays}
        for call in step.program.instructions.values()
        if call.is_mosaic_kernel and "mosaic_attention_backward" in call.op_name
    ]
    heads, head_dim = CONFIG.num_attention_heads, CONFIG.head_dim
    assert f"f32[1,{TOKENS},{heads},{head_dim}]" in arrays
    assert step.memory.temp_bytes > 4 * TOKENS * heads * head_dim
