"""Generation with a small random model, compared with a full forward pass for every token."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from lcjax.errors import InputError
from lcjax.generate import Generator, Sampling, generator
from lcjax.model import Llama, ModelSettings
from lcjax.weights import load_model_files
from tests.support.oracles import QUICK_TO_COMPILE, make_oracle
from tests.support.shapes import MODEL_COMMON, MODELS

PROMPT = np.random.default_rng(3).integers(0, MODEL_COMMON["vocab_size"], 53).tolist()
GREEDY = Sampling()
# A single capacity, so that all tests run the same programs.
CAPACITY = 70


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with an adapter."""
    return make_oracle(tmp_path_factory.mktemp("model"), **MODELS["untied gqa 3, odd head_dim"]).model()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(generator, "CHUNKS", (16, 4))


@functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
def likeliest(model, tokens_BT):
    return model(tokens_BT).argmax(axis=-1)


def uncached(model, prompt: list[int], count: int) -> list[int]:
    """Returns greedy tokens from full forward passes. Padding has no effect with causality."""
    ids = list(prompt)
    for _ in range(count):
        row = np.zeros((1, CAPACITY), np.int32)
        row[0, : len(ids)] = ids
        ids.append(int(likeliest(model, row)[0, len(ids) - 1]))
    return ids[len(prompt) :]


@pytest.mark.parametrize("length", [1, 16, 53])
def test_greedy_tokens_are_those_of_the_uncached_model(model, length):
    prompt = PROMPT[:length]
    expected = uncached(model, prompt, 12)
    assert len(set(expected)) > 2
    assert list(Generator(model, CAPACITY).generate(prompt, GREEDY, max_new_tokens=12)) == expected


def test_four_bits(tmp_path):
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    oracle = make_oracle(tmp_path, adapter=False, **shape)
    config, params, _ = load_model_files(oracle.directory, "float32", quantize="nf4")
    model = Llama(config, params, ModelSettings(max_seq_length=CAPACITY))
    expected = uncached(model, PROMPT[:20], 5)
    assert list(Generator(model, CAPACITY).generate(PROMPT[:20], GREEDY, max_new_tokens=5)) == expected


def test_three_programs_serve_prompts_of_any_length(model):
    found = Generator(model, CAPACITY)

    def programs(*lengths):
        for length in lengths:
            assert len(list(found.generate(PROMPT[:length], GREEDY, max_new_tokens=2))) == 2
        return generator.read_chunk._cache_size(), generator.decode_token._cache_size()

    # 53 tokens are three chunks of 16, one of 4, and a padded one of 4.
    assert programs(53) == programs(1, 3, 4, 15, 16, 17, 40, 53)


def test_a_longer_prompt_costs_only_its_new_tokens(model):
    progress, found = [], Generator(model, CAPACITY)
    first = list(found.generate(PROMPT[:30], GREEDY, max_new_tokens=5))
    longer = [*PROMPT[:30], *first, *PROMPT[30:40]]
    again = list(found.generate(longer, GREEDY, max_new_tokens=5, on_prefill=progress.append))
    assert progress == [39, 43, 45]  # 35 tokens were cached: chunks of 4, 4 and 2
    assert again == list(Generator(model, CAPACITY).generate(longer, GREEDY, max_new_tokens=5))
    # A prompt that differs from some token on: the cached tokens after that must not be visible.
    forked = [*longer[:20], *PROMPT[40:50]]
    parted = list(found.generate(forked, GREEDY, max_new_tokens=5))
    assert parted == list(Generator(model, CAPACITY).generate(forked, GREEDY, max_new_tokens=5))
    assert list(found.generate(forked, GREEDY, max_new_tokens=5)) == parted


def test_where_it_ends(model):
    found = Generator(model, CAPACITY)

    def tokens(**options):
        return list(found.generate(PROMPT[:9], GREEDY, max_new_tokens=20, **options))

    whole = tokens()
    assert len(whole) == 20
    stop = whole[6]
    assert tokens(stop={stop}) == whole[: whole.index(stop) + 1]
    for capacity in (12, 9):
        found.capacity = capacity
        assert tokens() == whole[: capacity - 9]


def test_a_seed_determines_the_tokens(model):
    def drawn(seed):
        sampling = Sampling(temperature=1.5, top_p=0.95)
        return list(Generator(model, CAPACITY).generate(PROMPT[:9], sampling, max_new_tokens=20, seed=seed))

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(3)}) == 3


def test_what_does_not_fit_is_refused(model):
    found = Generator(model, CAPACITY)
    for prompt, message in (
        ([], "the prompt is empty"),
        ([1] * 71, "71 tokens does not fit into the 70 of --max-seq-length"),
    ):
        with pytest.raises(InputError, match=message):
            next(found.generate(prompt, GREEDY, max_new_tokens=1))
