"""Needles in real text: their places, and that SmolLM2 finds exactly those that are present."""

from __future__ import annotations

import argparse
import inspect

import numpy as np
import pytest

import lcjax
from lcjax.errors import InputError
from lcjax.evaluate import needle
from lcjax.evaluate.excerpts import Excerpt, score


@pytest.fixture(scope="module")
def loaded(smollm2):
    return lcjax.from_pretrained(smollm2, max_seq_length=1024, dtype="float32")


@pytest.fixture(scope="module")
def haystack(loaded):
    """The source of argparse, from a random place on."""
    ids = np.array(loaded[1](inspect.getsource(argparse), verbose=False)["input_ids"], np.int32)

    def drawn(tokens: int, rng: np.random.Generator) -> np.ndarray:
        start = int(rng.integers(len(ids) - tokens))
        return ids[start : start + tokens]

    return drawn


def excerpt(loaded, haystack, task: str, length: int, depth: float, seed: int = 0) -> Excerpt:
    return needle.excerpt_of(loaded[1], haystack, task, length, depth, np.random.default_rng(seed))


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("task", needle.TASKS)
def test_where_the_needle_is(loaded, haystack, task, depth):
    found = excerpt(loaded, haystack, task, 600, depth)
    assert len(found.tokens) == 600
    text, answer = loaded[1].decode(found.tokens), loaded[1].decode(found.targets).strip()
    assert answer.isdecimal()
    needle_text = f"pass key is {answer}" if task == "passkey" else f" is {answer}.\n"
    assert text.count(needle_text) == 1
    # In characters, because tokens of code have about the same length everywhere.
    assert abs(text.index(needle_text) / len(text) - depth) < 0.25
    if task == "key-value":
        key = text[: text.index(needle_text)].split()[-1]
        assert text.rstrip().endswith(f"The value of {key} is" + " " + answer[:-1])
        assert text.count("The value of") == 5
    np.testing.assert_array_equal(found.tokens, excerpt(loaded, haystack, task, 600, depth).tokens)
    assert (found.tokens != excerpt(loaded, haystack, task, 600, depth, seed=1).tokens).any()


def test_smollm2_finds_a_needle_that_is_present(loaded, haystack):
    """Runs with the needle, and with another number in its place."""
    model, tokenizer = loaded
    cells = needle.needles(model, tokenizer, haystack, [256], [0.5], samples=1, seed=0)
    assert [(cell.task, cell.length, cell.depth, cell.samples) for cell in cells] == [
        ("passkey", 256, 0.5, 1),
        ("key-value", 256, 0.5, 1),
    ]
    assert [cell.retrieved for cell in cells] == [1.0, 1.0]
    there = excerpt(loaded, haystack, "passkey", 256, 0.5)
    hidden, answer = there.tokens[: -len(there.targets)], loaded[1].decode(there.targets)
    other = tokenizer(tokenizer.decode(hidden).replace(answer, " 13579"), add_special_tokens=False)["input_ids"]
    swapped = Excerpt(np.array([*other, *there.tokens[-len(there.targets) :]], np.int32)[-256:], there.targets)
    scores = score(model, [there, swapped], 256)
    assert scores.hits_N[0] == len(there.targets) > scores.hits_N[1]
    assert scores.losses_N[0] < 1 < scores.losses_N[1]


def test_a_length_too_short_for_the_needles(loaded, haystack):
    with pytest.raises(InputError, match=r"needles and question take .* tokens of 32; raise --max-seq-length"):
        needle.needles(*loaded, haystack, [32], [0.5], samples=1, seed=0)
