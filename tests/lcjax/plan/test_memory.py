"""lcjax.plan.compiling.memory: the compiler's figures equal sums by hand; the memory of a GPU."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lcjax.config.presets import resolve_config
from lcjax.errors import InputError
from lcjax.plan.compiling.memory import attention_scratch_bytes, device_limit_bytes
from tests.support.settings import model_settings
from tests.support.tiny_model import TINY, TOKENS, compiled

MEASURED = Path(__file__).parents[3] / "docs" / "measured"

# Elements per layer: four linear maps of attention and three of the MLP; two norms.
LINEAR = 128 * (256 + 128 + 128) + 256 * 128 + 3 * 384 * 128
NORMS = 2 * 128
OUTSIDE = 2 * 1000 * 128 + 128
ADAPTER = 8 * ((256 + 128) + 2 * (128 + 128) + (128 + 256) + 3 * (384 + 128))
SCALARS = 4 + 8 + 8  # the step, the counts of AdamW and the schedule, the random key of dropout
BATCH = 4 * 4 * TOKENS


def test_arguments_of_lora():
    memory = compiled("offload").memory
    assert memory.weights_bytes == 2 * (3 * (LINEAR + NORMS) + OUTSIDE)
    assert memory.state_bytes == 3 * 4 * 3 * ADAPTER + SCALARS
    assert memory.argument_bytes == memory.weights_bytes + memory.state_bytes + BATCH


def test_arguments_of_nf4():
    """Half a byte per weight, a byte per block of 64 weights, and four bytes per 256 blocks.

    Each linear map has four bytes more.
    """
    memory = compiled("offload", quantize="nf4").memory
    shapes = TINY.linear_shapes().values()
    blocks = [out_features * in_features // 64 for out_features, in_features in shapes]
    quantized = sum(32 * n + n + 4 * -(-n // 256) + 4 for n in blocks)
    assert memory.weights_bytes == 3 * quantized + 2 * (3 * NORMS + OUTSIDE)
    assert memory.argument_bytes == memory.weights_bytes + memory.state_bytes + BATCH


def test_arguments_of_full_fine_tuning():
    """The device has the weights in bfloat16.

    Host memory has their float32 copies and moments, and buffers for the update.
    """
    memory = compiled("full", lora_r=0).memory
    weights = 3 * (LINEAR + NORMS) + OUTSIDE
    assert memory.weights_bytes == 0
    assert memory.state_bytes == 2 * weights + SCALARS - 4  # there is one AdamW count less
    assert memory.argument_bytes == memory.state_bytes + BATCH
    assert 3 * 4 * weights <= memory.host_bytes <= 2 * 3 * 4 * weights


@pytest.mark.parametrize(
    ("policy", "a_token"),
    [("full", 0), ("offload", 2 * 128), ("offload_attn", 2 * 128 + 2 * 4 * 64 + 4 * 4)],
)
def test_host_bytes_are_what_the_policy_saves(policy, a_token):
    """Layer inputs in bfloat16; with `offload_attn` also attention's output and log-sum-exp.

    The log-sum-exp is one float32 per token and head.
    """
    assert compiled(policy).memory.host_bytes == 3 * TOKENS * a_token


def test_the_limit_leaves_a_margin():
    assert device_limit_bytes("h100-80gb") == 84_978_434_048 - 2**30
    # The driver of a GPU sold with 12 GB reports 2% less.
    assert device_limit_bytes("h100-80gb", 12) == int(12 * 2**30 * 0.98) - 2**30
    assert device_limit_bytes("rtx4090", 24) == device_limit_bytes("rtx4090") == 25_250_627_584 - 2**30
    assert device_limit_bytes("rtx4090", 80) == device_limit_bytes("rtx4090")
    with pytest.raises(InputError, match=r"--vram-gb 1 leaves no memory after the margin of 1.0 GiB"):
        device_limit_bytes("rtx4090", 1)


def test_memory_that_flash_attention_3_allocates_itself():
    """With this scratch memory, the plan is within 2% of each peak measured on an H100."""
    config = resolve_config("llama-3.1-8b")
    with (MEASURED / "h100-2026-11-26-step-matrix.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["attention"] == "fa3"]
    assert {int(row["tokens"]) for row in rows} == {16_384, 32_768, 65_536, 131_072}
    for row in rows:
        settings = model_settings(int(row["tokens"]), attention="fa3", use_gradient_checkpointing=row["policy"])
        compilers, peak = int(row["planned_bytes"]), int(row["peak_bytes"])
        assert compilers + attention_scratch_bytes(config, settings) == pytest.approx(peak, rel=0.02)
        assert compilers != pytest.approx(peak, rel=0.017)
    assert attention_scratch_bytes(config, model_settings(131_072, attention="pallas")) == 0
