"""lcjax.plan.choosing.flops: the FLOPs of a step."""

from __future__ import annotations

import pytest

from lcjax.config.presets import PRESETS
from lcjax.plan.choosing.flops import PEAK_BF16_TFLOPS, UTILIZATION, step_flops
from lcjax.plan.compiling.aot import gpu_names


def test_every_gpu_has_a_peak():
    assert sorted(PEAK_BF16_TFLOPS) == list(gpu_names())


def test_products_take_six_flops_per_weight_and_token_and_four_if_it_is_frozen():
    # 8,030,261,248 without the embedding, which is only looked up, and 65 norms of 4,096.
    weights = 8_030_261_248 - 128_256 * 4096 - 65 * 4096
    full, frozen = (step_flops(PRESETS["llama-3.1-8b"], 1000, rank) for rank in (0, 32))
    assert full.linear + full.head == 6 * 1000 * weights
    assert frozen.linear + frozen.head == 4 * 1000 * weights
    # PEFT counts 83,886,080 parameters for this model at rank 32.
    assert (full.adapter, frozen.adapter) == (0, 6 * 1000 * 83_886_080)


@pytest.mark.parametrize(("tokens", "seconds"), [(16_384, 1.0), (131_072, 64.0)])
def test_attention_agrees_with_the_usual_count(tokens, seconds):
    """14 T^2 H d / 2 FLOPs per layer, for 32 layers with 32 heads of size 128."""
    assert step_flops(PRESETS["llama-3.1-8b"], tokens, 32).attention == 7 * 32 * 16_384**2 * 32 * 128 * seconds


def test_time_at_the_measured_utilisation():
    """An H100 took 477 s for a QLoRA step of 344,064 tokens, 249 TFLOP/s of useful work."""
    flops = step_flops(PRESETS["llama-3.1-8b"], 344_064, 32)
    assert flops.total / 477 / 1e12 == pytest.approx(249, rel=0.01)
    assert flops.seconds("h100-80gb") == pytest.approx(477, rel=0.02)
    assert flops.seconds("h100-80gb", 1.0) == flops.seconds("h100-80gb") * UTILIZATION
