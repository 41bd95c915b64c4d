"""The step of the memory engine, compiled for an H100: its buffers on the device and the host."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from lcjax.config import MemorySettings
from lcjax.config.presets import PRESETS
from lcjax.plan.choosing.settings import requested_settings
from lcjax.plan.compiling.compile import CompiledStep, compile_step
from lcjax.plan.compiling.memory import device_limit_bytes
from lcjax.plan.workload import Workload
from lcjax.step import with_request
from tests.support.thin import thinned

LAYERS = 2
# Llama-3.1-8B with fewer layers. The depth changes only the length of the scan and of the arrays on
# the host, not the program.
CONFIG = dataclasses.replace(PRESETS["llama-3.1-8b"], num_hidden_layers=LAYERS)
TOKENS = 131_072
FORMS = {"tiles": MemorySettings(fetch_ahead=False), "head groups": MemorySettings(head_groups=8, fetch_ahead=False)}
ON_HOST = dataclasses.replace(FORMS["tiles"], embeddings_on_host=True)
SLOPES = Path(__file__).with_name("bytes_a_token.json")
INPUT_BYTES = 2 * CONFIG.hidden_size


@functools.cache
def compiled(settings: MemorySettings | str, tokens: int = TOKENS, policy: str = "offload") -> CompiledStep:
    workload = Workload("8b", CONFIG, "h100-80gb", 32, "nf4", policy)
    return compile_step(workload, with_request(requested_settings(workload, tokens), memory=settings))


@pytest.mark.slow
@pytest.mark.parametrize(("form", "times"), [("tiles", (0.5, 0.75, 1, 1.5)), ("head groups", (0.5, 1))])
def test_device_bytes_are_linear_in_the_length_with_at_most_the_recorded_slope(form, times):
    lengths = np.array(times) * TOKENS
    device = np.array([compiled(FORMS[form], int(tokens)).memory.temp_bytes for tokens in lengths])
    slope, start = np.polyfit(lengths, device, 1)
    # Within 1%, because the buffers of a tile and of a chunk of the loss fit between the large ones
    # at some lengths only.
    assert np.abs(device - (start + slope * lengths)).max() < device.max() / 100, device
    assert slope <= json.loads(SLOPES.read_text())[form] * 1.005


@pytest.mark.slow
def test_tiles_need_a_third_of_the_plain_form():
    assert compiled(FORMS["tiles"]).memory.temp_bytes < compiled("none").memory.temp_bytes / 3


@pytest.mark.parametrize("settings", thinned(["none", FORMS["tiles"]], lambda settings: settings != "none"))
def test_no_buffer_is_quadratic_or_holds_all_logits(settings):
    shapes = {
        tuple(map(int, shape[shape.index("[") + 1 : -1].split(",")))
        for instruction in compiled(settings).program.instructions.values()
        for shape, _ in instruction.arrays
        if not shape.endswith("[]")
    }
    assert (1, TOKENS, CONFIG.hidden_size) in shapes
    # The stack of inputs, which is on the host, or the activations of the MLP.
    widest = max(LAYERS * CONFIG.hidden_size, CONFIG.intermediate_size)
    assert max(math.prod(shape) for shape in shapes) <= TOKENS * widest
    for shape in shapes:
        assert sum(TOKENS % size == 0 and size >= 8192 for size in shape) <= 1, shape
        assert not (CONFIG.vocab_size in shape and math.prod(shape) >= CONFIG.vocab_size * 8192), shape


@pytest.mark.parametrize(
    "settings",
    thinned([FORMS["tiles"], MemorySettings(save_every=2), FORMS["head groups"]], lambda form: form == FORMS["tiles"]),
)
def test_host_bytes_are_those_of_the_saved_inputs(settings):
    assert compiled(settings).memory.host_bytes == LAYERS // settings.save_every * TOKENS * INPUT_BYTES


def kernels_during_copies(step: CompiledStep) -> list[set[str]]:
    """Returns the kernels scheduled during each copy of the layers' inputs to or from the host."""
    stack = f"bf16[{LAYERS},1,{TOKENS},{CONFIG.hidden_size}]"
    scheduled = list(step.program.instructions.items())
    found = []
    for number, (name, start) in enumerate(scheduled):
        if start.opcode == "async-start" and start.arrays[0][0] == stack:
            rest = [instruction for _, instruction in scheduled[number + 1 :]]
            end = next(n for n, instruction in enumerate(rest) if name in instruction.operands)
            assert rest[end].opcode == "async-done"
            kernels = {instruction.attribute(r'triton".*?name = "(attention_\w+)"') for instruction in rest[:end]}
            found.append(kernels - {None})
    return found


def test_copies_overlap_with_the_layers():
    forward, backward = {"attention_forward"}, {"attention_forward", "attention_dkv", "attention_dq"}
    # The first fetch is before all layers, and overlaps with the loss.
    assert sorted(kernels_during_copies(compiled(MemorySettings())), key=len) == [set(), forward, backward]
    without = kernels_during_copies(compiled(FORMS["tiles"]))
    assert sorted(without, key=len) == [set(), forward]


@pytest.mark.slow
def test_embeddings_on_the_host_are_on_the_device_only_for_their_use():
    on_device, on_host = (compiled(settings).memory for settings in (FORMS["tiles"], ON_HOST))
    size = 2 * 2 * CONFIG.vocab_size * CONFIG.hidden_size
    assert on_host.host_weights_bytes == on_host.host_bytes - on_device.host_bytes == size
    assert on_device.argument_bytes - on_host.argument_bytes == on_device.weights_bytes - on_host.weights_bytes == size
    # Each is on the device only while it is used, when the buffers of the layers do not exist.
    assert on_host.temp_bytes == pytest.approx(on_device.temp_bytes, rel=1e-6)


@pytest.mark.slow
def test_offloaded_attention_runs_forward_once():
    step = compiled(MemorySettings(), policy="offload_attn")
    log_sum_exp = 4 * CONFIG.num_attention_heads
    assert step.memory.host_bytes == LAYERS * TOKENS * (2 * INPUT_BYTES + log_sum_exp)
    expected = {"attention_forward": 1, "attention_dq": 1, "attention_dkv": 1}
    assert {name: step.program.kernels()[name] for name in expected} == expected
    assert compiled(FORMS["tiles"]).program.kernels()["attention_forward"] == 2


@pytest.mark.parametrize(
    ("model", "tokens"),
    thinned([("llama-3.1-8b", 2_097_152), ("llama-3.1-70b", 524_288)], lambda case: case[0] == "llama-3.1-8b"),
)
def test_more_than_2_to_the_31_elements_fit_an_h100(model, tokens):
    """The residual stream has that many elements, so offsets into it must have 64 bits."""
    config = PRESETS[model]
    workload = Workload(model, config, "h100-80gb", 32, "nf4", "offload", optimizer_memory="host")
    settings = with_request(requested_settings(workload, tokens), memory=FORMS["head groups"])
    step = compile_step(workload, settings)
    assert tokens * config.hidden_size > 2**31
    assert f"bf16[1,{tokens},{config.hidden_size}]" in {
        shape for instruction in step.program.instructions.values() for shape, _ in instruction.arrays
    }
    assert step.memory.device_bytes <= device_limit_bytes("h100-80gb")
    inputs = config.num_hidden_layers * tokens * 2 * config.hidden_size
    assert inputs <= step.memory.host_bytes <= inputs * 1.02
