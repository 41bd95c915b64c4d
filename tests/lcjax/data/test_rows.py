import dataclasses

import numpy as np
import pytest

import lcjax.ops.cross_entropy
from lcjax.data import IGNORE, NO_ROW, PAD_ID, PackingPlan, TokenizedCorpus, documents_of, is_learned, lay_out, pack


def corpus_of(lengths, tokens=None):
    """Returns documents with tokens 1, 2, 3, ..., so that each token identifies its place."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(1, offsets[-1] + 1, dtype=np.int32) if tokens is None else tokens
    return TokenizedCorpus(tokens, offsets, [f"d{i}" for i in range(len(lengths))])


def test_the_loss_ignores_the_same_label():
    assert IGNORE == lcjax.ops.cross_entropy.IGNORE


def test_a_small_batch_in_full():
    corpus = corpus_of([3, 6, 2])  # tokens 1-3, 4-9, 10-11
    plan = pack(corpus.lengths, 5)
    batch = lay_out(corpus, plan, np.array([[0, 1], [2, NO_ROW]]))
    x = IGNORE
    assert batch["tokens"].tolist() == [[[4, 5, 6, 7, 8], [1, 2, 3, 10, 11]], [[9, 0, 0, 0, 0], [0] * 5]]
    assert batch["labels"].tolist() == [[[5, 6, 7, 8, 9], [2, 3, x, 11, x]], [[x] * 5, [x] * 5]]
    assert batch["positions"].tolist() == [[[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]], [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]]
    assert batch["segment_ids"].tolist() == [[[1] * 5, [1, 1, 1, 2, 2]], [[1, 0, 0, 0, 0], [0] * 5]]
    assert batch["rows"].tolist() == [[0, 1], [2, NO_ROW]]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    assert documents_of(batch, corpus, plan) == ["d1", "d0", "d2"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_seq_length", [1, 2, 7, 64])
def test_every_transition_within_a_document_is_predicted_once(seed, max_seq_length):
    rng = np.random.default_rng(seed)
    corpus = corpus_of(rng.integers(1, 3 * max_seq_length + 2, 50))
    plan = pack(corpus.lengths, max_seq_length)
    batch = lay_out(corpus, plan, np.arange(len(plan)))
    tokens, labels, segments = batch["tokens"], batch["labels"], batch["segment_ids"]
    assert np.array_equal(np.sort(tokens[segments > 0]), corpus.tokens)
    assert np.all(tokens[segments == 0] == PAD_ID)
    assert np.all(labels[segments == 0] == IGNORE)
    counted = labels != IGNORE
    assert np.array_equal(labels[counted], tokens[counted] + 1)
    first_tokens = corpus.tokens[corpus.offsets[:-1]]
    assert np.array_equal(np.sort(labels[counted]), np.setdiff1d(corpus.tokens, first_tokens))
    # Positions count from 0 in each segment, and segments are numbered from 1 without a gap.
    starts = np.diff(segments, axis=1, prepend=-1) != 0
    assert np.array_equal(batch["positions"] == 0, starts)
    assert np.all(np.diff(batch["positions"], axis=1)[~starts[:, 1:]] == 1)
    assert np.all(segments[:, 0] == 1)
    assert np.all(np.isin(np.diff(segments, axis=1)[segments[:, 1:] > 0], [0, 1]))


def test_a_memory_mapped_corpus_gives_the_same_batch(tmp_path):
    corpus = corpus_of([30, 5, 12])
    corpus.tokens.tofile(tmp_path / "tokens")
    mapped = corpus_of([30, 5, 12], np.memmap(tmp_path / "tokens", dtype=np.int32, mode="r"))
    plan = pack(corpus.lengths, 8)
    rows = np.arange(len(plan))
    for ours, theirs in zip(lay_out(corpus, plan, rows).values(), lay_out(mapped, plan, rows).values(), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("max_seq_length", [2, 5, 16])
@pytest.mark.parametrize("with_mask", [False, True])
def test_a_piece_is_learned_if_it_gets_a_label(max_seq_length, with_mask):
    rng = np.random.default_rng(max_seq_length)
    corpus = corpus_of(rng.integers(1, 3 * max_seq_length, 60))
    if with_mask:
        # Long stretches without a loss, as in long prompts.
        mask = np.repeat(rng.integers(0, 2, len(corpus.tokens)).astype(bool), 7)[: len(corpus.tokens)]
        corpus = dataclasses.replace(corpus, learned=mask)
    pieces = pack(corpus.lengths, max_seq_length).pieces
    alone = PackingPlan(max_seq_length, np.arange(len(pieces) + 1), pieces)
    labels = lay_out(corpus, alone, np.arange(len(pieces)))["labels"]
    expected = (labels != IGNORE).any(axis=1)
    assert np.array_equal(is_learned(corpus, pieces), expected)
    assert 0 < expected.sum() < len(expected)
