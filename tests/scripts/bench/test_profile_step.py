"""The time of a step by kind of work, from a trace of the GPU."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest

import profile_step
from lcjax.config.presets import resolve_config
from lcjax_scripts.bench.steps import ideal, trace
from lcjax_scripts.bench.steps.shape import Shape
from lcjax_scripts.bench.steps.trace import ELEMENTWISE, EXPOSED, IDLE, Event

SECOND = 1e9


def event(name: str, start: float, stop: float) -> Event:
    return Event(name, start * SECOND, stop * SECOND)


# From 0 to 10: attention, a product that overlaps with it, two copies (the second one does not
# overlap), a pause, and a norm.
EVENTS = [
    event("attention_forward", 0, 3),
    event("MemcpyD2H", 0.5, 2),
    event("nvjet_tst_128x256", 2, 5),
    event("MemcpyH2D", 4, 7),
    event("input_reduce_fusion_4", 8, 10),
]


def test_every_instant_counts_once():
    seconds = trace.seconds_by_kind(EVENTS)
    assert seconds == {"attention forward": 3, "products": 2, EXPOSED: 2, IDLE: 1, ELEMENTWISE: 2}
    assert sum(seconds.values()) == 10


def test_copies_that_overlap_kernels_are_not_exposed():
    hidden = [event("nvjet", 0, 10), event("MemcpyH2D", 1, 9), event("MemcpyD2H", 2, 9)]
    assert trace.seconds_by_kind(hidden) == {"products": 10, EXPOSED: 0, IDLE: 0}


def test_simultaneous_copies_count_once():
    events = [event("nvjet", 0, 1), event("MemcpyH2D", 1, 3), event("MemcpyD2H", 2, 5), event("nvjet", 6, 7)]
    assert trace.seconds_by_kind(events) == {"products": 2, EXPOSED: 4, IDLE: 1}


def test_kernels_are_summed_by_name_the_longest_first():
    assert next(iter(trace.seconds_by_name([*EVENTS, event("nvjet_tst_128x256", 10, 11)]).items())) == (
        "nvjet_tst_128x256",
        (2, 4.0),
    )


def test_the_ideal_of_attention_counts_each_run_of_a_kernel():
    config, tokens = resolve_config("llama-3.1-8b"), 1024
    kernels = [("attention_forward", (64, 0.0)), ("attention_dq", (32, 0.0)), ("nvjet", (7, 0.0))]
    found = ideal.seconds(config, Shape(), tokens, kernels, ceiling=1.0)
    product = tokens * tokens * 32 * 128 / 1e12
    assert found["attention forward"] == pytest.approx(64 * 2 * product)
    assert found["attention dq"] == pytest.approx(32 * 3 * product)
    once = ideal.seconds(config, Shape(), tokens, [("attention_forward", (32, 0.0))], ceiling=1.0)
    assert once["products"] < found["products"] < 1.5 * once["products"]


def test_a_trace_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \*.xplane.pb"):
        trace.read(tmp_path)
    with jax.profiler.trace(str(tmp_path)):
        jnp.ones(3).block_until_ready()
    with pytest.raises(ValueError, match="has no /device:GPU:0"):
        trace.read(tmp_path)


def test_a_profile_is_drawn_anywhere(tmp_path, capsys):
    result = {
        **{"device": "a GPU", "model": "m", "quantize": "nf4", "tokens": 8, "policy": "offload", "memory": "none"},
        "seconds": trace.seconds_by_kind(EVENTS),
        "ideal_seconds": {"attention forward": 1.0},
        "copies_seconds": {"copies to the host": 1.5},
        "kernels": [{"name": "attention_forward", "count": 1, "seconds": 3.0}],
    }
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(result))
    assert profile_step.main(["--draw", str(path)]) == 0
    assert (tmp_path / "profile.png").stat().st_size > 10_000
    lines = capsys.readouterr().out.splitlines()
    first = next(line for line in lines if "attention forward" in line)
    assert "30.0%" in first
