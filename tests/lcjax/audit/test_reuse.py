"""The measure of long-range reuse: equal to its definition, high if planted, zero if shuffled."""

import itertools
import math

import numpy as np
import pytest

from lcjax.audit import reuse
from lcjax.audit.reuse import bounds, ngram_hashes, reuse_by_distance
from lcjax.data import read_documents, stdlib_sources, tokenize
from lcjax.weights import load_tokenizer
from tests.support.corpora import corpus_of, planted, shuffled


def by_definition(documents, edges, length, n):
    """Returns (tokens, observed, expected) of each bucket, computed with loops."""
    total = sum(len(document) for document in documents)
    grams = [[tuple(document[i - n + 1 : i + 1]) for i in range(n - 1, len(document))] for document in documents]
    buckets = []
    for start, stop in itertools.pairwise(edges):
        tokens, observed, expected = 0, 0, 0.0
        for d, document in enumerate(documents):
            others = [gram for e, own in enumerate(grams) if e != d for gram in own]
            for i in range(len(document)):
                tokens += i >= start
                if i < max(start, n - 1):
                    continue
                rate = others.count(grams[d][i - n + 1]) / max(1, total - len(document))
                earlier = [j for j in range(n - 1, i) if grams[d][j - n + 1] == grams[d][i - n + 1]]
                nearest = i - max(earlier) if earlier else math.inf
                if rate * length >= 1 or nearest < start:
                    continue
                observed += nearest < stop
                expected += 1 - math.exp(-rate * (min(i, stop - 1) - start + 1))
        buckets.append((tokens, observed, expected))
    return buckets


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [1, 2, 3])
def test_it_equals_the_definition(monkeypatch, seed, n):
    monkeypatch.setattr(reuse, "NEAREST", 4)
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, 12, length).tolist() for length in (1, 2, 40, 25, 60)]
    edges = bounds(28)
    assert edges == [4, 8, 16, 28]
    found = reuse_by_distance(corpus_of(documents), 28, n)
    expected = by_definition(documents, edges, 28, n)
    assert [(bucket.tokens, bucket.observed) for bucket in found] == [bucket[:2] for bucket in expected]
    assert [bucket.expected for bucket in found] == pytest.approx([bucket[2] for bucket in expected], rel=1e-12)
    assert sum(bucket.observed for bucket in found) > 0


def test_planted_reuse_scores_at_its_distance_and_shuffled_text_does_not():
    corpus = planted(distance=6_000)
    buckets = {bucket.start: bucket for bucket in reuse_by_distance(corpus, 16_384)}
    grams = 20 * 10 * (64 - reuse.NGRAM + 1)
    assert buckets[4096].observed == grams
    assert buckets[4096].share == pytest.approx(grams / buckets[4096].tokens, rel=1e-3)
    assert buckets[4096].share > 0.04
    assert all(abs(bucket.share) < 1e-4 for start, bucket in buckets.items() if start != 4096)
    assert all(abs(bucket.share) < 1e-3 for bucket in reuse_by_distance(shuffled(corpus), 16_384))


def test_the_bucket_is_that_of_the_distance():
    for distance, start in [(1024, 1024), (2047, 1024), (2048, 2048), (8191, 4096)]:
        shares = {bucket.start: bucket.share for bucket in reuse_by_distance(planted(4, distance=distance), 8192)}
        assert max(shares, key=shares.__getitem__) == start
        assert shares[start] > 0.03


def test_chance_is_subtracted():
    """Independent words with the frequencies of a language are repeated only by chance."""
    rng = np.random.default_rng(0)
    words = np.minimum(rng.zipf(1.2, (200, 16_384)), 10**6)
    buckets = reuse_by_distance(corpus_of(list(words)), 16_384, n=1)
    for bucket in buckets:
        assert bucket.observed > 4000
        # Four standard deviations of the count.
        assert abs(bucket.excess) < 4 * bucket.observed**0.5


def test_real_text_has_reuse_and_shuffled_text_hardly(smollm2):
    sources = [path for path in stdlib_sources() if path.stat().st_size > 60_000]
    corpus = tokenize(read_documents(sources), load_tokenizer(smollm2))
    real, dealt = (reuse_by_distance(each, 16_384) for each in (corpus, shuffled(corpus)))
    for bucket, control in zip(real, dealt, strict=True):
        assert bucket.share > 0.01
        # Without reuse, it is around 0 or below: the rare n-grams that chance brings together are
        # counted about a fifth too often, so it is negative in proportion to `expected`.
        assert control.share < 0.1 * bucket.share
        assert abs(control.excess) < 0.3 * control.expected


def test_a_near_repetition_does_not_count_as_distant():
    text = np.random.default_rng(0).integers(0, 30_000, 8192)
    every_500 = np.tile(text[:500], 16)
    assert all(bucket.observed == 0 for bucket in reuse_by_distance(corpus_of([every_500, text]), 8192))


def test_hashes_distinguish_ngrams():
    tokens = np.random.default_rng(0).integers(0, 4, 5000).astype(np.int32)
    hashes = ngram_hashes(tokens, 5)
    grams = np.lib.stride_tricks.sliding_window_view(tokens, 5)
    assert len(hashes) == len(grams)
    assert len(set(hashes.tolist())) == len({tuple(gram) for gram in grams.tolist()})
    assert len({(tuple(gram), int(value)) for gram, value in zip(grams.tolist(), hashes, strict=True)}) == len(
        set(hashes.tolist())
    )
    assert len(ngram_hashes(tokens[:3], 5)) == 0
