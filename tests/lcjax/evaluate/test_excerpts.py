"""Excerpts have the same scores packed and alone, and the evaluations use the right excerpts."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from lcjax.evaluate import context
from lcjax.evaluate.context import loss_by_context
from lcjax.evaluate.excerpts import Excerpt, Scores, rows_of, score
from lcjax.evaluate.lengths import contexts_up_to
from lcjax.step import BATCH_KEYS
from tests.support.oracles import QUICK_TO_COMPILE, make_oracle
from tests.support.shapes import MODEL_COMMON, MODELS

VOCABULARY, ROW = MODEL_COMMON["vocab_size"], 64


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_oracle(tmp_path_factory.mktemp("model"), **MODELS["tied gqa 1"]).model()


@pytest.fixture(scope="module")
def excerpts() -> list[Excerpt]:
    """Excerpts of all lengths up to that of a row, where all or some tokens are targets."""
    rng = np.random.default_rng(0)
    sizes = [(64, 3), (1, 1), (30, 30), (17, 5), (33, 1), (12, 2)]
    return [Excerpt(rng.integers(0, VOCABULARY, n), rng.integers(0, VOCABULARY, s)) for n, s in sizes]


@functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
def logits_of(model, tokens_BT):
    return model(tokens_BT)


def alone(model, excerpt: Excerpt) -> tuple[float, int]:
    """Returns (nats, hits) from the logits of the excerpt in a separate row."""
    tokens = np.zeros((1, ROW), np.int32)
    tokens[0, : len(excerpt.tokens)] = excerpt.tokens
    first = len(excerpt.tokens) - len(excerpt.targets)
    logits = np.asarray(logits_of(model, tokens))[0, first : len(excerpt.tokens)]
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))
    picked = log_probabilities[np.arange(len(excerpt.targets)), excerpt.targets]
    return -picked.sum(dtype=np.float64), int((logits.argmax(axis=1) == excerpt.targets).sum())


def test_packed_scores_are_those_of_each_alone(model, excerpts):
    # Make one target that the model predicts correctly, so that there is a hit.
    row = np.pad(excerpts[3].tokens, (0, ROW - 17))[None].astype(np.int32)
    likeliest = np.asarray(logits_of(model, row))[0, 12:17].argmax(axis=1)
    excerpts = [*excerpts, Excerpt(excerpts[3].tokens, likeliest)]
    shares = []
    found = score(model, excerpts, ROW, shares.append)
    expected = [alone(model, excerpt) for excerpt in excerpts]
    np.testing.assert_allclose(found.losses_N, [loss for loss, _ in expected], rtol=1e-5)
    np.testing.assert_array_equal(found.hits_N, [hits for _, hits in expected])
    assert found.hits_N[-1] == 5
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_rows_hold_every_excerpt_once(excerpts):
    seen = []
    for batch, excerpt_1T in rows_of(excerpts, ROW):
        assert batch.keys() == set(BATCH_KEYS)
        segments = batch["segment_ids"][0]
        assert (np.diff(segments) >= 0).all()
        for segment in np.unique(segments[segments <= len(excerpts)]):
            inside = segments == segment
            number = int(excerpt_1T[0, inside][0])
            excerpt = excerpts[number]
            np.testing.assert_array_equal(batch["tokens"][0, inside], excerpt.tokens)
            np.testing.assert_array_equal(batch["labels"][0, inside][-len(excerpt.targets) :], excerpt.targets)
            assert (batch["labels"][0, inside][: -len(excerpt.targets)] < 0).all()
            np.testing.assert_array_equal(batch["positions"][0, inside], np.arange(inside.sum()))
            seen.append(number)
        assert (batch["labels"][0, segments > len(excerpts)] < 0).all()
    assert sorted(seen) == list(range(len(excerpts)))


def test_every_context_scores_the_same_targets(monkeypatch):
    """Uses documents whose tokens are their positions."""
    cut = []

    def record(model, excerpts, max_seq_length, on_row):
        cut.extend(excerpts)
        return Scores(np.array([len(e.targets) for e in excerpts], float), np.zeros(len(excerpts), int))

    monkeypatch.setattr(context, "score", record)
    documents = [np.arange(1300), np.arange(2000, 3100)]
    found = loss_by_context(None, documents, 1100)
    assert [row.context for row in found] == contexts_up_to(1100) == [16, 32, 64, 128, 256, 512, 1024]
    assert [row.loss for row in found] == [1.0] * 7
    wanted = np.concatenate([document[1024 - 256 + 1 : 1025] for document in documents])
    for length in contexts_up_to(1100):
        own = [excerpt for excerpt in cut if len(excerpt.tokens) == length]
        np.testing.assert_array_equal(np.concatenate([excerpt.targets for excerpt in own]), wanted)
        for excerpt in own:
            assert excerpt.targets[-1] == excerpt.tokens[-1] + 1
            assert length - len(excerpt.targets) + 1 >= 3 / 4 * length
            np.testing.assert_array_equal(np.diff(excerpt.tokens), 1)
    assert all(row.tokens == 512 for row in found)
