import numpy as np
import pytest

from lcjax.data import TokenizedCorpus, pack
from lcjax.tokens.figures import Bucket, histogram, short, token_figures, windows


def corpus_of(lengths, learned=None):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TokenizedCorpus(np.zeros(offsets[-1], np.int32), offsets, [f"d{i}" for i in range(len(lengths))], learned)


def test_a_small_corpus_in_full():
    figures = token_figures(corpus_of([3, 10, 5, 0, 1]), 4, longest=2)
    assert (figures.documents, figures.tokens, figures.learned, figures.median) == (5, 19, 19, 3)
    assert figures.longest == (("d1", 10), ("d2", 5))
    assert figures.histogram == (Bucket(1, 2, 2, 1), Bucket(2, 4, 1, 3), Bucket(4, 8, 1, 5), Bucket(8, 16, 1, 10))
    # Rows of 4: d1 | d1 | d2 | d0 and the rest of d2 | the rest of d1 and d4.
    assert figures.windows.count == 5
    assert figures.windows.packed_share == 7 / 19
    assert figures.windows.cut_share == 15 / 19
    assert figures.windows.padded_share == pytest.approx(1 / 20)
    assert figures.windows.documents_per_window == 7 / 5


def test_learned_tokens_are_counted():
    assert token_figures(corpus_of([2, 2], np.array([True, False, True, True])), 8).learned == 3


@pytest.mark.parametrize("seed", range(3))
def test_shares_equal_those_of_the_rows(seed):
    lengths = np.random.default_rng(seed).integers(1, 200, 300)
    plan, found = pack(lengths, 64), windows(lengths, 64)
    rows = [plan.row(r) for r in range(len(plan))]
    packed = sum(piece.stop - piece.start for row in rows if len(row) > 1 for piece in row)
    assert found.packed_share == packed / lengths.sum()
    assert found.cut_share == sum(length for length in lengths if length > 64) / lengths.sum()
    assert found.documents_per_window == sum(map(len, rows)) / len(rows)


def test_buckets_have_every_document_once():
    lengths = np.array([1, 2, 3, 4, 7, 8, 1023, 1024, 1025, 2**20])
    buckets = histogram(lengths)
    assert sum(bucket.documents for bucket in buckets) == len(lengths)
    assert sum(bucket.tokens for bucket in buckets) == lengths.sum()
    assert [b.documents for b in buckets if b.start in (1, 4, 8, 512, 1024, 2**20)] == [1, 2, 1, 1, 2, 1]


def test_round_numbers():
    assert [short(n) for n in (512, 1024, 1536, 32768, 2**20, 349184)] == ["512", "1K", "1.5K", "32K", "1M", "341K"]
