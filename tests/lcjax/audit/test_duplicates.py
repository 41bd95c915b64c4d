import numpy as np
import pytest

from lcjax.audit.duplicates import NGRAM, SIMILAR, SKETCH, near_duplicates
from tests.support.corpora import corpus_of

STANDARD_ERROR = (SIMILAR * (1 - SIMILAR) / SKETCH) ** 0.5


def changed(rng, text, share):
    """Returns the text with a contiguous share of its tokens replaced."""
    copy, count = text.copy(), round(share * len(text))
    start = int(rng.integers(0, len(text) - count + 1))
    copy[start : start + count] = rng.integers(0, 30_000, count)
    return copy


def similarity(first, second):
    """Returns the similarity of the sets of n-grams, by definition."""
    sets = [
        {tuple(text[i : i + NGRAM]) for i in range(len(text) - NGRAM + 1)} for text in (first.tolist(), second.tolist())
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_near_duplicates_are_found_and_others_are_not():
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 30_000, length) for length in (600, 2000, 5000, 900, 50)]
    near, far = changed(rng, texts[1], 0.04), changed(rng, texts[2], 0.5)
    assert similarity(texts[1], near) > SIMILAR + 0.1
    assert similarity(texts[2], far) < SIMILAR - 0.1
    found = near_duplicates(corpus_of([*texts, near, far, texts[4], texts[0], texts[0]]))
    assert found.groups == (("d1", "d5"), ("d0", "d8", "d9"), ("d4", "d7"))
    assert (found.documents, found.tokens) == (4, 2000 + 2 * 600 + 50)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.03, 0.25, 0.4])
def test_the_verdict_is_that_of_the_whole_sets(share):
    rng = np.random.default_rng(1)
    text = rng.integers(0, 30_000, 3000)
    copies = [changed(rng, text, share) for _ in range(5)]
    exact = [similarity(text, copy) for copy in copies]
    assert all(abs(value - SIMILAR) > 3 * STANDARD_ERROR for value in exact)
    for copy, value in zip(copies, exact, strict=True):
        assert bool(near_duplicates(corpus_of([text, copy])).groups) == (value >= SIMILAR)


def test_copies_form_one_group_and_a_common_header_forms_none():
    rng = np.random.default_rng(2)
    header, text = rng.integers(0, 30_000, 200), rng.integers(0, 30_000, 400)
    others = [np.concatenate([header, rng.integers(0, 30_000, 800)]) for _ in range(200)]
    found = near_duplicates(corpus_of([*others, *[text] * 500]))
    assert [len(group) for group in found.groups] == [500]
    assert found.tokens == 499 * 400


def test_texts_shorter_than_an_ngram_are_left_out():
    assert near_duplicates(corpus_of([np.arange(3), np.arange(3)])).groups == ()
