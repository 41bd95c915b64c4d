"""lcjax.plan.choosing: the fastest settings that fit, found by few compilations, cached on disk."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from lcjax.config import MemorySettings, parse_memory
from lcjax.config.parallel.mesh import MeshShape
from lcjax.config.presets import PRESETS
from lcjax.plan.choosing.budget import Budget
from lcjax.plan.choosing.candidates import Candidate, candidates
from lcjax.plan.choosing.cost import step_seconds
from lcjax.plan.choosing.settings import requested_settings
from lcjax.plan.choosing.tuner import least_memory, tune
from lcjax.plan.compiling import compile_cache
from lcjax.plan.compiling.compile import compile_step
from lcjax.plan.compiling.memory import Memory
from lcjax.plan.compiling.offload import host_arrays
from lcjax.plan.planner import Planner
from lcjax.plan.workload import Workload
from lcjax.step import with_request
from lcjax.step.resolve import with_mesh
from tests.support.settings import model_settings
from tests.support.thin import thinned
from tests.support.tiny_model import TINY, TOKENS

LLAMA_8B = PRESETS["llama-3.1-8b"]
SETTINGS = model_settings(131_072, attention="pallas")
CANDIDATES = candidates(LLAMA_8B, SETTINGS, embeddings_may_be_on_host=True)
SMALL = Workload("tiny", TINY, "h100-80gb", lora_r=4)


def seconds(candidate: Candidate) -> float:
    return step_seconds(LLAMA_8B, candidate.applied(SETTINGS), lora_r=32, quantized=True)


def device_bytes(candidate: Candidate) -> int:
    """A model of a candidate's memory in which every setting matters."""
    policy, plain, minus_groups, embeddings, ahead, tile, chunk = candidate.device_memory()
    own = (
        400 * plain + 20 * (8 + minus_groups) + 100 * embeddings + 40 * ahead + min(tile, 8192) / 1024 * 10 + chunk / 64
    )
    return int(100 * policy + own)


def tuned(limit: int):
    compilations: list[Candidate] = []

    def compiled(candidate: Candidate) -> tuple[Memory, bool]:
        compilations.append(candidate)
        size = device_bytes(candidate)
        return Memory(0, 0, size, 0, 0, 0), size <= limit

    return tune(CANDIDATES, seconds, compiled), compilations


@pytest.mark.parametrize("limit", [20, 40, 75, 90, 150, 200, 310, 500, 700])
def test_the_fastest_candidate_that_fits_against_brute_force(limit):
    tuning, compilations = tuned(limit)
    fitting = [c for c in CANDIDATES if device_bytes(c) <= limit]
    assert tuning.chosen == min(fitting, key=lambda c: (seconds(c), str(c)))
    assert len(compilations) == len(set(compilations)) <= 22
    assert tuning == tuned(limit)[0]


def test_two_compilations_show_that_nothing_fits():
    tuning, compilations = tuned(5)
    assert tuning.chosen == least_memory(CANDIDATES)
    assert len(compilations) == 2
    assert not any(trial.fits for trial in tuning.trials)


def test_a_candidate_is_ruled_out_by_a_failure_that_needs_no_more():
    tuning, compilations = tuned(150)
    ruled_out = [trial for trial in tuning.trials if trial.memory is None]
    assert ruled_out
    for trial in ruled_out:
        assert trial.candidate not in compilations
        assert trial.ruled_out_by in compilations
        assert device_bytes(trial.candidate) > 150


def test_the_candidates_of_a_length():
    long, short = (
        candidates(LLAMA_8B, SETTINGS),
        candidates(LLAMA_8B, dataclasses.replace(SETTINGS, max_seq_length=8192)),
    )
    assert {c.policy for c in long} == {"offload", "offload_attn"}
    assert {c.policy for c in short} == {"none", "full", "offload", "offload_attn"}
    assert {c.memory.head_groups for c in long if c.memory} == {1, 2, 4, 8}
    odd = candidates(LLAMA_8B, dataclasses.replace(SETTINGS, max_seq_length=40_001))
    assert all(c.memory is None for c in odd)
    requested = candidates(LLAMA_8B, with_request(SETTINGS, use_gradient_checkpointing="unsloth"))
    assert {c.policy for c in requested} == {"offload"}
    hidden = candidates(LLAMA_8B, model_settings(131_072, attention="cudnn"))
    assert {c.form for c in hidden} == {("offload", None)}  # it does not return its log-sum-exp
    assert {str(c) for c in hidden} == {f"offload none, loss chunk {chunk}" for chunk in (1024, 256, 64)}
    for candidate in (*long, *short):
        settings = candidate.applied(dataclasses.replace(SETTINGS, max_seq_length=8192))
        assert parse_memory(str(settings.requested.memory)) == settings.requested.memory


def test_groups_of_heads_have_equal_parts_on_all_devices():
    """Of eight groups, each has four query heads, too few for eight devices."""
    for heads, expected in ((1, {1, 2, 4, 8}), (4, {1, 2, 4, 8}), (8, {1, 2, 4}), (32, {1})):
        settings = with_mesh(SETTINGS, MeshShape(heads=heads))
        found = candidates(LLAMA_8B, settings, embeddings_may_be_on_host=True)
        assert {candidate.memory.head_groups for candidate in found if candidate.memory} == expected


def test_chunks_of_the_loss():
    """Each form is tried with every size, unless one is given.

    Larger ones take less time and more memory.
    """
    assert {c.loss_chunk for c in CANDIDATES} == {1024, 256, 64}
    assert len({c.form for c in CANDIDATES}) * 3 == len(CANDIDATES)
    given = candidates(LLAMA_8B, with_request(SETTINGS, loss_chunk=100), embeddings_may_be_on_host=True)
    assert {c.loss_chunk for c in given} == {100}
    assert {c.form for c in given} == {c.form for c in CANDIDATES}
    short = candidates(LLAMA_8B, dataclasses.replace(SETTINGS, max_seq_length=512))
    assert {c.loss_chunk for c in short} == {256, 64}
    for candidate in CANDIDATES:
        if candidate.loss_chunk != 64:
            twin = dataclasses.replace(candidate, loss_chunk=64)
            assert seconds(twin) > seconds(candidate)
            assert candidate.needs_at_least(twin)
            assert not twin.needs_at_least(candidate)
        assert candidate.applied(SETTINGS).execution.loss_chunk == candidate.loss_chunk


@pytest.mark.parametrize("chunk", thinned([128, 512], lambda chunk: chunk == 128))
def test_the_loss_has_the_chunk_that_is_planned(chunk):
    # With the rank of other tests, the kernels are theirs.
    workload = dataclasses.replace(SMALL, lora_r=8)
    step = compile_step(workload, with_request(requested_settings(workload, TOKENS), loss_chunk=chunk))
    arrays = {array for instruction in step.program.instructions.values() for array in instruction.arrays}
    logits = [re.fullmatch(rf"f32\[(\d+),{TINY.vocab_size}\]", shape) for shape, _ in arrays]
    assert max(int(found[1]) for found in logits if found) == chunk


def test_embeddings_are_on_the_host_if_that_is_requested():
    """Only with policies that use host memory. It costs the time of two copies of 1 GiB."""
    on_host = [c for c in CANDIDATES if c.memory and c.memory.embeddings_on_host]
    assert {c.policy for c in on_host} == {"offload", "offload_attn"}
    assert not any(c.memory and c.memory.embeddings_on_host for c in candidates(LLAMA_8B, SETTINGS))
    for candidate in on_host:
        assert candidate.memory is not None
        memory = dataclasses.replace(candidate.memory, embeddings_on_host=False)
        twin = dataclasses.replace(candidate, memory=memory)
        assert twin in CANDIDATES
        assert twin.needs_at_least(candidate)
        assert seconds(candidate) - seconds(twin) == pytest.approx(2 * 128_256 * 4096 * 2 / 5.0e10)


def test_as_many_inputs_are_saved_as_the_host_can_hold():
    def bytes_of(settings) -> int:
        return sum(array.bytes for array in host_arrays(LLAMA_8B, settings, "bfloat16"))

    for gib, every in ((32, 1), (31, 2), (8, 4), (1, 32), (0.5, 32)):
        found = candidates(LLAMA_8B, SETTINGS, lambda settings, gib=gib: bytes_of(settings) <= gib * 2**30)
        saved = {c.memory.save_every for c in found if c.memory and c.policy == "offload"}
        assert saved == {every}
        # XLA of JAX 0.10.2 cannot compile offload_attn with groups of layers.
        assert {c.memory.save_every for c in found if c.memory and c.policy == "offload_attn"} == {1}


def test_costs_are_in_the_order_that_was_measured():
    """Seconds of a step of 8B in NF4 (docs/measured/h200-2026-11-24-steps.csv).

    Estimates are within 10%.
    """
    measured = {
        (16_384, "none", "none"): 1.51,
        (16_384, "full", "none"): 1.88,
        (32_768, "offload_attn", "none"): 5.12,
        (32_768, "full", "none"): 5.23,
        (32_768, "offload", "none"): 5.44,
        (32_768, "offload", "tile=8192"): 5.63,
        (32_768, "offload", "tile=2048"): 6.01,
        (32_768, "offload", "tile=8192,head_groups=8"): 7.26,
        (32_768, "offload", "tile=2048,head_groups=8,fetch_ahead=false"): 8.17,
        (65_536, "offload_attn", "none"): 14.82,
        (65_536, "offload", "tile=8192"): 16.75,
    }
    for (tokens, policy, memory), took in measured.items():
        settings = model_settings(
            tokens, LLAMA_8B, use_gradient_checkpointing=policy, memory=parse_memory(memory), attention="pallas"
        )
        estimate = step_seconds(LLAMA_8B, settings, lora_r=32, quantized=True, gpu="h200")
        assert 0.9 < estimate / took < 1.1, (tokens, policy, memory)


def test_figures_are_compiled_once_and_cached(compilations):
    first = Planner(SMALL).plan(2048)
    count = len(compilations)
    again = Planner(SMALL).plan(2048)
    assert len(compilations) == count > 0
    assert again == first
    [file, *_] = compile_cache.cache_folder().glob("*.json")
    for broken in ("", "{}", json.dumps({"memory": {}, "buffers": [], "kernels": {}})):
        file.write_text(broken)
        assert Planner(SMALL).plan(2048) == first
    assert len(compilations) == count + 3


@pytest.mark.parametrize(
    "change", [{"gpu": "h200"}, {"lora_r": 8}, {"quantize": "nf4"}, {"attention": "xla"}, {"memory": "tile=1024"}]
)
def test_a_changed_workload_is_compiled_again(compilations, change):
    Planner(SMALL).plan(2048)
    count = len(compilations)
    Planner(dataclasses.replace(SMALL, **change)).plan(2048)
    assert len(compilations) > count


def test_a_changed_source_is_compiled_again(compilations, monkeypatch):
    Planner(SMALL).plan(2048)
    count = len(compilations)
    monkeypatch.setattr(compile_cache, "source_digest", lambda: "another")
    Planner(SMALL).plan(2048)
    assert len(compilations) > count


@pytest.mark.slow
def test_the_real_compiler_chooses_for_a_small_gpu():
    """The limit lies between the least and the most memory of the tiny model.

    The chosen settings fit; every faster trial does not.
    """
    free = Planner(dataclasses.replace(SMALL, memory="none", use_gradient_checkpointing="none")).plan(8192)
    smallest = Planner(dataclasses.replace(SMALL, memory=str(MemorySettings(1024)), use_gradient_checkpointing="full"))
    planner = Planner(SMALL)
    planner.budget = Budget((free.memory.device_bytes + smallest.plan(8192).memory.device_bytes) // 2)
    plan = planner.plan(8192)
    assert plan.fits
    assert plan.tuning is not None
    trials = plan.tuning.trials
    faster = [trial for trial in trials if trial.seconds < trials[-1].seconds and not trial.fits]
    assert faster
    assert all(t.memory is None or t.memory.device_bytes > planner.budget.device for t in faster)
