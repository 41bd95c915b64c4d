"""lcjax.plan.planner: plans, and the search for the longest context."""

from __future__ import annotations

import dataclasses

import pytest

from lcjax.config.rope import LONGEST
from lcjax.errors import InputError
from lcjax.pallas.mosaic import backend as mosaic
from lcjax.plan.choosing.settings import policy_lengths, requested_settings
from lcjax.plan.compiling import figures
from lcjax.plan.compiling.memory import GIB
from lcjax.plan.planner import Planner
from lcjax.plan.workload import Workload
from lcjax.step import program
from lcjax.train.running import computation
from tests.support.tiny_model import TINY

LIMIT = 84_978_434_048 - GIB
BIG = Workload("big", TINY, "h100-80gb", use_gradient_checkpointing="offload", memory="none")


def test_the_trainer_and_the_planner_build_one_program():
    assert computation.build_program is program.build_program


@pytest.mark.slow
def test_the_longest_context_against_brute_force_of_the_real_compiler():
    """The limit of memory lies between 2,048 and 3,072 tokens of the tiny model."""
    workload = dataclasses.replace(BIG, lora_r=8)
    free = Planner(workload)
    sizes = {tokens: free.plan(tokens).memory.device_bytes for tokens in range(1024, 4097, 1024)}
    capped = Planner(workload, vram_gb=(GIB + (sizes[2048] + sizes[3072]) // 2) / GIB / 0.98)
    brute_force = max(tokens for tokens, size in sizes.items() if size <= capped.budget.device)
    longest = capped.longest(below=4097)
    assert longest is not None
    assert longest.max_seq_length == brute_force == 2048


def test_the_longest_context_takes_few_compilations(compilations):
    longest = Planner(BIG).longest()
    assert longest is not None
    assert longest.fits
    assert longest.max_seq_length == (LIMIT - 16_000_000_000) // 200_000 // 1024 * 1024
    assert ("h100-80gb", longest.max_seq_length + 1024) in compilations
    assert len(compilations) == len(set(compilations)) <= 6


def test_attention_that_needs_less_memory_where_the_fastest_does_not_fit(compilations, monkeypatch):
    """As if Mosaic's kernels needed 8 GB more, and were verified with this JAX."""
    monkeypatch.setattr(mosaic, "OLDEST_VERIFIED_JAX", mosaic.OLDEST_JAX)
    compile_line = figures.compile_step

    def compile_more(workload, settings):
        step = compile_line(workload, settings)
        more = 8_000_000_000 if settings.execution.attention == "mosaic" else 0
        memory = dataclasses.replace(step.memory, temp_bytes=step.memory.temp_bytes + more)
        return dataclasses.replace(step, memory=memory)

    monkeypatch.setattr(figures, "compile_step", compile_more)
    workload = dataclasses.replace(BIG, config=dataclasses.replace(TINY, head_dim=128))
    planner = Planner(workload)
    longest = planner.longest()
    assert longest is not None
    assert longest.max_seq_length == (LIMIT - 16_000_000_000) // 200_000 // 1024 * 1024
    assert longest.attention == planner.plan(longest.max_seq_length).attention == "pallas"
    assert planner.plan(65_536).attention == "mosaic"
    named = Planner(dataclasses.replace(workload, attention="mosaic")).plan(longest.max_seq_length)
    assert (named.attention, named.fits) == ("mosaic", False)


def test_host_memory_is_a_limit_too(compilations):
    longest = Planner(BIG, host_gb=16).longest()
    assert longest is not None
    assert longest.max_seq_length == 65_536
    assert longest.memory.host_bytes == 16 * GIB
    short = Planner(BIG, host_gb=16).plan(65_537)
    assert (short.fits, short.device_load < 1, short.host_load > 1) == (False, True, True)


def test_auto_prefers_the_longest_lengths(compilations):
    """If 33,792 tokens fit, shorter lengths with other policies are not tried."""
    auto = dataclasses.replace(BIG, use_gradient_checkpointing="auto")
    longest, shorter = Planner(auto).longest(), Planner(auto, vram_gb=23).longest()
    assert longest is not None
    assert longest.policy == "offload"
    assert min(tokens for _, tokens in compilations) > 4096
    assert shorter is not None
    assert (shorter.policy, shorter.max_seq_length % 1024) == ("offload", 0)
    shortest = Planner(auto, vram_gb=20).longest()
    assert shortest is not None
    assert shortest.policy == "full"


def test_saving_fewer_inputs_does_not_stop_the_search(compilations, monkeypatch):
    """The host's load rises to 1 and drops again when fewer layers save their input."""
    planner = Planner(dataclasses.replace(BIG, memory="auto"), host_gb=16)
    some, lengths = Planner(BIG, host_gb=16).plan(1024), []

    def of_least_memory(tokens):
        lengths.append(tokens)
        saved = 262_144 * tokens
        host_bytes = saved // -(-saved // (16 * GIB))
        memory = dataclasses.replace(some.memory, temp_bytes=200_000 * tokens, host_bytes=host_bytes)
        return dataclasses.replace(
            some, memory=memory, settings=dataclasses.replace(some.settings, max_seq_length=tokens)
        )

    monkeypatch.setattr(planner, "_of_least_memory", of_least_memory)
    longest = planner.longest(guess=65_536)
    assert longest is not None
    assert longest.max_seq_length == (LIMIT - 16_000_000_000) // 200_000 // 1024 * 1024
    assert len(lengths) <= 7


def test_nothing_fits(compilations):
    assert Planner(BIG, vram_gb=12).longest() is None
    assert compilations == [("h100-80gb", 1024)]


@pytest.mark.parametrize(
    ("policy", "ranges"),
    [
        ("auto", [(32_769, LONGEST), (4097, 32_768), (1, 4096)]),
        ("full", [(1, 32_768)]),
        ("unsloth", [(1, LONGEST)]),
    ],
)
def test_one_policy_holds_over_each_range(policy, ranges):
    workload = dataclasses.replace(BIG, use_gradient_checkpointing=policy)
    assert policy_lengths(workload, LONGEST) == ranges
    for first, last in ranges:
        policies = {requested_settings(workload, n).form.policy for n in (first, last)}
        assert len(policies) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_r": -1}, "--lora-r -1 is out of range"),
        ({"quantize": "fp4"}, "quantize='fp4' is not supported; use nf4"),
        ({"quantize": "nf4", "lora_r": 0}, "quantized weights cannot be trained"),
        ({"gpus": 0}, "--gpus 0 and --hosts 1 must both be at least 1"),
        ({"attention": "flash"}, "attention='flash' is unknown"),
    ],
)
def test_a_workload_is_checked(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(BIG, **change)
