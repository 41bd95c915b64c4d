"""Compares the loss by position with explicit sums, and with the training loss."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from lcjax import step
from lcjax.config.rope import LONGEST
from lcjax.evaluate import LossByPosition, loss_by_position
from lcjax.ops.cross_entropy import IGNORE
from tests.support.oracles import make_batch, make_oracle
from tests.support.shapes import MODEL_COMMON, MODELS

VOCABULARY, TOKENS = MODEL_COMMON["vocab_size"], 100


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_oracle(tmp_path_factory.mktemp("model"), **MODELS["untied gqa 3, odd head_dim"]).model()


def by_hand(losses, labels, positions) -> dict[int, list[float]]:
    """Groups the losses by the largest power of two up to the position, or 0 below 16."""
    found: dict[int, list[float]] = {}
    for loss, label, position in zip(losses.flat, labels.flat, positions.flat, strict=True):
        if label != IGNORE:
            start = 1 << (int(position).bit_length() - 1) if position >= 16 else 0
            found.setdefault(start, []).append(float(loss))
    return found


def test_the_buckets_by_hand():
    rng = np.random.default_rng(0)
    positions = np.concatenate([np.arange(300), [2**20 - 1, 2**20, 2**30, LONGEST - 1]])[None]
    labels = np.where(rng.random(positions.shape) < 0.2, IGNORE, 5)
    labels[0, -3:] = 7
    losses = rng.random(positions.shape).astype(np.float32)
    found, expected = LossByPosition.of(losses, labels, positions), by_hand(losses, labels, positions)
    assert [b.start for b in found.buckets()] == sorted(expected)
    for bucket in found.buckets():
        assert bucket.tokens == len(expected[bucket.start])
        np.testing.assert_allclose(bucket.loss, np.mean(expected[bucket.start]), rtol=1e-12)
        assert bucket.stop == (2 * bucket.start or 16)
    assert found.tokens == (labels != IGNORE).sum()
    np.testing.assert_allclose(found.total, losses[labels != IGNORE].sum(dtype=np.float64), rtol=1e-12)
    far = (positions >= 128) & (labels != IGNORE)
    np.testing.assert_allclose(found.beyond(128), losses[far].mean(dtype=np.float64), rtol=1e-12)
    assert np.isnan(LossByPosition.none().mean)


def test_batches_add_up_to_the_losses_of_the_logits(model):
    batches = [make_batch(VOCABULARY, 1, TOKENS, documents=3, seed=seed) for seed in range(2)]
    found = loss_by_position(model, batches)
    by_logits = 0.0
    for batch in batches:
        logits = model(batch["tokens"], batch["positions"], batch["segment_ids"])
        counted = batch["labels"] != IGNORE
        by_logits -= np.asarray(jax.nn.log_softmax(logits))[counted, batch["labels"][counted]].sum(dtype=np.float64)
    assert found.tokens == sum((batch["labels"] != IGNORE).sum() for batch in batches)
    np.testing.assert_allclose(found.total, by_logits, rtol=1e-6)


def test_a_packed_document_counts_from_its_own_start(model):
    """Documents have the same losses in the same buckets, alone and in one row."""
    batch = make_batch(VOCABULARY, 1, TOKENS, documents=4)
    segments = batch["segment_ids"][0]
    packed = loss_by_position(model, [batch])
    apart = loss_by_position(model, (_alone(batch, segments == segment) for segment in np.unique(segments)))
    np.testing.assert_array_equal(packed.counts_N, apart.counts_N)
    np.testing.assert_allclose(packed.sums_N, apart.sums_N, rtol=1e-6)
    losses = step.jit_token_scores()(model, batch).losses
    along_the_row = LossByPosition.of(losses, batch["labels"], np.arange(TOKENS)[None])
    assert (along_the_row.counts_N != packed.counts_N).any()


def _alone(batch, chosen):
    """Returns the chosen tokens at the start of a row, padded with a document without labels."""
    row = {"tokens": 0, "labels": IGNORE, "positions": 0, "segment_ids": 99}
    arrays = {name: np.full((1, TOKENS), value, np.int32) for name, value in row.items()}
    for name, array in arrays.items():
        array[0, : chosen.sum()] = batch[name][0, chosen]
    return arrays
