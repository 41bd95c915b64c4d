"""Generation with SmolLM2's weights: the same text as with transformers."""

from __future__ import annotations

import pytest
import torch
import transformers

import lcjax
from lcjax.generate import Generator, Sampling, TextStream

PROMPT = "Once upon a time, in a small village by the sea,"
TOKENS = 200


@pytest.fixture(scope="module")
def loaded(smollm2):
    return lcjax.from_pretrained(smollm2, max_seq_length=1024, dtype="float32")


@pytest.mark.slow
def test_200_greedy_tokens_are_those_of_transformers(loaded, tmp_path):
    """In one forward pass of transformers, each token is the most likely one after its prefix.

    Its greedy decoding therefore gives the same tokens.
    """
    model, tokenizer = loaded
    prompt = tokenizer(PROMPT)["input_ids"]
    actual = list(Generator(model, 300).generate(prompt, Sampling(), max_new_tokens=TOKENS))
    lcjax.save_merged(model, tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = reference(torch.tensor([prompt + actual])).logits[0]
    assert len(set(actual)) > 80  # the text is not a repeated line
    assert actual == logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()


@pytest.mark.parametrize("text", ["naïve 🦙 日本語 — “x”", "plain", "👩‍👩‍👧‍👦!"])
def test_a_stream_gives_whole_characters(loaded, text):
    tokenizer = loaded[1]
    ids = tokenizer(text)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    one_by_one = [tokenizer.decode([token]) for token in ids]
    if len(ids) > 5:
        # Decoding token by token.
        assert any("\N{REPLACEMENT CHARACTER}" in piece for piece in one_by_one)
