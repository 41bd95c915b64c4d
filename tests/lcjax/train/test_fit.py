"""lcjax.plan.fit and allocators: a run gets settings that fit its GPU, or suggestions."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from lcjax.config import LoraConfig, MemorySettings, parse_memory
from lcjax.config.presets import PRESETS
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.memory import allocators, place_embeddings
from lcjax.parallel.placement import abstract_like
from lcjax.plan.choosing.budget import Budget, budget_here
from lcjax.plan.compiling.aot import abstract, gpu_sharding
from lcjax.plan.compiling.compile import compile_step, step_memory
from lcjax.plan.compiling.memory import Memory
from lcjax.plan.compiling.parameters import abstract_params
from lcjax.plan.compiling.run import Run
from lcjax.plan.fit import fit
from lcjax.plan.remedies import Estimated, remedies
from lcjax.plan.workload import Workload
from lcjax.step import with_request
from lcjax.train.arguments import RunArguments
from lcjax.train.devices import host_bytes_at_most
from tests.support.compiling import QUICK_TO_COMPILE, compile_with_known_kernels
from tests.support.jax_limits import HOST, SHARE, SHARE_OF_OLD, limits_at_start, limits_of_a_small_run
from tests.support.settings import model_settings
from tests.support.tiny_model import TINY, TOKENS

LORA = LoraConfig(8, 32)
pytestmark = pytest.mark.usefixtures("empty_cache")
SETTINGS = model_settings(TOKENS, lora=LORA, attention="pallas")
PLENTY, SMALL = Budget(2**40, 2**40), Budget(11 * 2**20, 2**40)


@pytest.fixture(scope="module")
def params():
    """The parameters of the tiny model, on an absent H100."""
    return abstract(abstract_params(TINY, LORA, None), gpu_sharding("h100-80gb"))


def never(lowered):
    """A compiler that must not be called."""
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")


compiled: dict[str, jax.stages.Compiled] = {}


def run_of(params, arguments=None, lora=LORA):
    return Run.here(TINY, params, arguments or TrainingArguments(), lora)


def compile_once(lowered):
    """Compiles a program that another test has not compiled before."""
    text = lowered.as_text()
    if text not in compiled:
        compiled[text] = compile_with_known_kernels(lowered)
    return compiled[text]


def fitted(params, settings, arguments, budget, compiler=compile_once):
    return fit(run_of(params, arguments, settings.lora), settings, budget, compiler=compiler)


def test_with_enough_memory_the_fastest_is_selected_at_once(params):
    found = fitted(params, SETTINGS, TrainingArguments(), PLENTY)
    assert found.settings.form.policy == "none"
    assert len(found.tuning.trials) == 1
    again = fitted(params, SETTINGS, TrainingArguments(), PLENTY, compiler=never)  # is not called
    assert again == found
    line = found.describe(PLENTY)
    assert line.startswith("memory: none none, loss chunk 1024 takes 0.")
    assert line.endswith("GiB of 1,024.0 GiB on the GPU (1 compiled)")


# What a small budget leaves, so that one test's program or kernels are those of the others.
BY_HAND = with_request(
    SETTINGS,
    use_gradient_checkpointing="offload",
    memory=parse_memory("tile=1024,head_groups=2,fetch_ahead=false"),
    loss_chunk=64,
)


def test_the_figures_are_the_plan_s(params):
    memory = step_memory(run_of(params), BY_HAND, compile_once)
    planned = compile_step(Workload("tiny", TINY, "h100-80gb", lora_r=8), BY_HAND).memory
    assert memory == planned
    assert memory.host_bytes == 3 * TOKENS * 128 * 2


@pytest.mark.slow
def test_micro_batches_need_the_host_memory_of_one(params):
    form = MemorySettings(1024, embeddings_on_host=True)
    settings = with_request(SETTINGS, use_gradient_checkpointing="offload", memory=form)
    memory = step_memory(
        run_of(params, TrainingArguments(gradient_accumulation_steps=3)), settings, compile_with_known_kernels
    )
    assert memory.host_bytes == 3 * TOKENS * 128 * 2 + 2 * 1000 * 128 * 2


@pytest.mark.slow
def test_with_less_memory_something_slower_is_selected(params):
    free = fitted(params, SETTINGS, TrainingArguments(), PLENTY).memory
    smallest = with_request(SETTINGS, use_gradient_checkpointing="full", memory=MemorySettings(1024))
    least = step_memory(run_of(params), smallest, compile_once)
    budget = Budget((free.device_bytes + least.device_bytes) // 2, 2**40)
    found = fitted(params, SETTINGS, TrainingArguments(), budget)
    assert least.device_bytes < free.device_bytes
    assert found.memory.device_bytes <= budget.device
    assert found.settings.form.policy != "none"


def test_what_does_not_fit_is_refused_with_three_remedies(params):
    with pytest.raises(InputError) as refused:
        fitted(params, SETTINGS, TrainingArguments(), SMALL)
    message = str(refused.value)
    assert re.match(
        r"a step of 2,048 tokens takes 0\.\d GiB of 0\.0 GiB on the GPU and .* "
        r"\(offload tile=1024,.*,embeddings_on_host=false, loss chunk 64\)",
        message,
    )
    assert "use --quantize nf4, or --max-seq-length 1024, or a GPU with 0.0 GiB free" in message
    assert "\n" not in message


def test_fewer_sequences_are_offered_first(params):
    two = run_of(params, TrainingArguments(per_device_train_batch_size=2))
    memory = Memory(2 * 2**20, 2**19, 2**20, 20 * 2**20, 0, 2**20)
    first, second, *_ = remedies(two, SETTINGS, Estimated(TOKENS, memory, SMALL))
    assert (first, second) == ("--per-device-train-batch-size 1", "--quantize nf4")


@pytest.mark.slow
def test_embeddings_stay_in_host_memory_where_the_loader_left_them(params):
    left = place_embeddings(params, on_host=True)
    with pytest.raises(InputError, match=r"\(offload tile=1024,.*,embeddings_on_host=true, loss chunk 64\)"):
        fitted(left, SETTINGS, TrainingArguments(), Budget(8 * 2**20, 2**40))


def test_explicit_settings_are_checked_and_used(params):
    assert fitted(params, BY_HAND, TrainingArguments(), PLENTY).settings == BY_HAND
    with pytest.raises(
        InputError, match=r"use --memory auto, or --max-seq-length \d+, or a host that can pin 0\.0 GiB"
    ):
        fitted(params, BY_HAND, TrainingArguments(), Budget(2**40, 2**20))


def test_on_a_cpu_nothing_changes_unless_requested():
    assert budget_here() is None
    own = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_params(TINY, LORA, None))
    settings = model_settings(1024, lora=LORA, attention="xla")
    run = run_of(place_embeddings(own, on_host=True))
    found = fit(run, settings, PLENTY, compiler=lambda lowered: lowered.compile(QUICK_TO_COMPILE))
    assert found.memory.device_bytes > 0


@pytest.mark.parametrize("place", [jax.memory.Space.Host, jax.memory.Space.Device])
def test_a_run_is_compiled_for_the_memory_that_its_arrays_are_in(place):
    """An abstract array on the same device would look as if it were in device memory."""
    weight = jax.device_put(jnp.ones((4, 4)), place)
    stands_for = abstract_like(weight)
    assert jax.typeof(stands_for).memory_space is jax.typeof(weight).memory_space is place
    assert stands_for.sharding.device_set == weight.sharding.device_set


def test_the_allocators_limits(monkeypatch):
    for name in (SHARE, SHARE_OF_OLD, HOST):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # twice, so that what is set below is undone
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert allocators.host_limit_bytes() == min(64 * 2**30, physical)
    allocators.raise_limits(2**31)
    assert os.environ[SHARE] == "0.97"
    assert allocators.host_limit_bytes() == min(10 * 2**30, physical)
    allocators.raise_limits(2**50)
    assert allocators.host_limit_bytes() == min(10 * 2**30, physical), "existing settings are not changed"
    monkeypatch.delenv(HOST)
    allocators.raise_limits(2**50)
    assert 0.8 * physical < allocators.host_limit_bytes() < physical
    monkeypatch.setenv(HOST, "7")
    allocators.raise_limits(0)
    assert allocators.host_limit_bytes() == 7 * 2**30
    monkeypatch.delenv(SHARE)
    monkeypatch.setenv(SHARE_OF_OLD, "0.5")
    allocators.raise_limits(0)
    assert SHARE not in os.environ  # JAX refuses to have both


def test_a_run_sets_the_limits_before_jax_starts_and_imports_no_torch(model_dir, data_dir, tmp_path):
    """PyTorch takes more than a second. transformers and tensorboardX would import it."""
    flags = ["--model", str(model_dir), "--data", str(data_dir), "--output-dir", str(tmp_path / "run")]
    program = f"""
import sys
from pathlib import Path
from lcjax.train.__main__ import main
from lcjax.train.reporting.tensorboard import EventFile
from lcjax.weights import load_tokenizer
load_tokenizer(Path({str(model_dir)!r}))  # a run starts JAX before it needs the tokenizer
try:
    main({flags})
finally:
    EventFile(Path({str(tmp_path)!r}), 0)
    assert {{"transformers", "tensorboardX"}} <= sys.modules.keys()
    assert "torch" not in sys.modules
    import torch
"""
    assert limits_at_start(program) == limits_of_a_small_run()


INPUTS = 32 * 349_184 * 4096 * 2  # of the 8B model's layers
EMBEDDINGS = 2 * 128_256 * 4096 * 2
ATTENDED = INPUTS + 32 * 32 * 349_184 * 4  # attention's outputs and log-sum-exps


@pytest.mark.parametrize(
    ("limit", "flags", "expected"),
    [
        (88 * 2**30, {}, INPUTS + EMBEDDINGS),
        (100 * 2**30, {}, INPUTS + EMBEDDINGS),
        (2**40, {}, INPUTS + ATTENDED + EMBEDDINGS),
        (60 * 2**30, {}, INPUTS // 2 + EMBEDDINGS),
        (2**40, {"memory": "tile=8192,save_every=4", "use_gradient_checkpointing": "offload"}, INPUTS // 4),
        (2**40, {"max_seq_length": 1024, "full_finetuning": True, "use_gradient_checkpointing": "full"}, 24 * 8_030_261_248),
        (2**10, {}, 0),
    ],
)  # fmt: skip
def test_the_pinned_memory_is_known_before_jax_starts(limit, flags, expected):
    arguments = RunArguments(**({"model": "m", "data": ("d",), "max_seq_length": 349_184} | flags))
    assert host_bytes_at_most(PRESETS["llama-3.1-8b"], arguments, limit) == expected


def test_the_query_does_not_start_jax():
    program = (
        "import jax\n"
        "from lcjax.config.presets import PRESETS\n"
        "from lcjax.train.arguments import RunArguments\n"
        "from lcjax.train.devices import host_bytes_at_most\n"
        "arguments = RunArguments(model='m', data=('d',), max_seq_length=65536)\n"
        "assert host_bytes_at_most(PRESETS['llama-3.1-8b'], arguments, 2**40) > 0\n"
        "assert not jax._src.xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_full_fine_tuning_can_be_fitted(params):
    whole = abstract(abstract_params(TINY, None, None), gpu_sharding("h100-80gb"))
    settings = dataclasses.replace(SETTINGS, lora=None)
    found = fitted(whole, settings, TrainingArguments(), PLENTY)
    weights = sum(leaf.size for leaf in jax.tree.leaves(whole))
    assert found.memory.host_bytes >= 12 * weights
    with pytest.raises(InputError, match=r"on the GPU and 0\.0 GiB .*; use a GPU with 0\.0 GiB free"):
        fitted(whole, settings, TrainingArguments(), Budget(2**21, 2**40))


def test_a_step_that_is_too_large_to_compile_does_not_fit(params):
    """On a GPU, XLA runs kernels while it compiles."""
    sizes = []

    def exhausted(lowered):
        sizes.append(lowered)
        if len(sizes) == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 20.00MiB")
        return compile_once(lowered)

    found = fitted(params, SETTINGS, TrainingArguments(), PLENTY, compiler=exhausted)
    assert found.tuning.trials[0].memory is None
    assert found.settings != found.tuning.trials[0].candidate.applied(SETTINGS)

    with pytest.raises(
        InputError, match=r"^a step of 2,048 tokens is too large for 1,024.0 GiB on the GPU even to be compiled"
    ):
        fitted(params, SETTINGS, TrainingArguments(max_grad_norm=2), PLENTY, compiler=never)
