"""The training step, compiled for an H100: it has the kernels, each as often as necessary."""

from __future__ import annotations

import dataclasses

import pytest

from lcjax.config.presets import PRESETS
from lcjax.plan.choosing.settings import requested_settings
from lcjax.plan.compiling.compile import compile_step
from lcjax.plan.workload import Workload
from tests.support.thin import thinned

TOKENS = 131_072
# The depth changes only the length of the scan, not the program.
CONFIG = dataclasses.replace(PRESETS["llama-3.1-8b"], num_hidden_layers=2)


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
            ("offload", "none", "xla", {}),
        ],
        lambda case: case[1] == "auto" or case[0] == "offload_attn",
    ),
)
def test_the_step_contains_the_kernels(policy, memory, attention, expected):
    workload = Workload(
        "8b", CONFIG, "h100-80gb", lora_r=8, use_gradient_checkpointing=policy, memory=memory, attention=attention
    )
    assert compile_step(workload, requested_settings(workload, TOKENS)).program.kernels() == expected
