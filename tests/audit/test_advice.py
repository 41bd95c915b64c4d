import numpy as np
import pytest
from corpora import corpus_of, planted

from lcjax.audit.advice import advice
from lcjax.audit.figures import LONG, audit


def words_of(corpus, max_seq_length, rows_a_step=16, max_tokens=10**9):
    return " / ".join(advice(audit(corpus, max_seq_length, max_tokens), rows_a_step))


@pytest.fixture(scope="module")
def good():
    return planted(40, length=16_384, distance=6_000)


def test_nothing_to_change(good):
    assert words_of(good, 8192) == "train at 8,192 tokens: the documents have what it takes"


def test_nothing_at_a_distance():
    random = corpus_of(list(np.random.default_rng(0).integers(0, 30_000, (20, 16_384))))
    assert "there is nothing to learn at a distance: beyond 1K tokens" in words_of(random, 8192)


def test_a_context_longer_than_the_reuse(good):
    assert "beyond 8K tokens hardly anything comes back" in words_of(good, 16_384)
    assert "--max-seq-length 8192 is enough" in words_of(good, 16_384)


def test_too_few_long_documents(good):
    words = words_of(good, 131_072)
    assert "too few long documents: 0.0% of the tokens have 64K or more before them; add books" in words
    assert "--documents repository" in words
    assert "or lower --max-seq-length to 16384" in words


def test_high_packing():
    short = corpus_of(list(np.random.default_rng(0).integers(0, 30_000, (400, 1500))))
    assert "packing is high: a window of 32K holds 20 documents, which do not see each other" in words_of(short, 32_768)


def test_few_tokens_a_step(good):
    words = words_of(good, 8192, rows_a_step=1)
    assert "few tokens a step: 8,192 with a loss; --gradient-accumulation-steps 8 gives 65,536" in words
    assert "few tokens" not in words_of(good, 8192, rows_a_step=8)


def test_tokens_without_a_loss_do_not_count(good):
    learned = np.zeros(len(good.tokens), dtype=bool)
    learned[::4] = True
    masked = type(good)(good.tokens, good.offsets, good.names, learned)
    assert "few tokens a step: 16,384 with a loss; --gradient-accumulation-steps 32" in words_of(
        masked, 8192, rows_a_step=8
    )


def test_near_duplicates(good):
    twice = corpus_of([good.document(i) for i in range(len(good))] + [good.document(0), good.document(7)])
    assert "4.8% of the tokens are in 2 near-duplicates; keep one of each group, such as d0 of it and d40" in words_of(
        twice, 8192
    )


def test_a_sample_is_whole_documents_and_says_its_size(good):
    figures = audit(good, 8192, max_tokens=200_000)
    assert figures.sampled_tokens == 12 * 16_384
    whole = audit(good, 8192, max_tokens=10**9)
    assert figures.corpus == whole.corpus
    assert figures.reuse[2].share == pytest.approx(whole.reuse[2].share, rel=0.01)


def test_shares_of_long_documents():
    lengths = [LONG, LONG + 1, 100, 3 * LONG]
    figures = audit(corpus_of([np.arange(length) for length in lengths]), 65_536, 10**9)
    assert figures.long_documents == 0.5
    assert figures.long_tokens == (4 * LONG + 1) / sum(lengths)
