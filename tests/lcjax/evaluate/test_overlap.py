"""The fraction of a text that was trained on, independent of the division into documents."""

from __future__ import annotations

import numpy as np
import pytest

from lcjax.evaluate.overlap import WINDOW, shares_trained_on

RNG = np.random.default_rng(0)
TRAINED = RNG.integers(0, 30_000, 4000).astype(np.int32)
NEW = RNG.integers(0, 30_000, 4000).astype(np.int32)


@pytest.mark.parametrize("pieces", [1, 7])
def test_text_is_found_at_any_place(pieces):
    documents = [TRAINED, TRAINED[5:500], TRAINED[-WINDOW:], NEW, NEW[:WINDOW]]
    shares = shares_trained_on(documents, np.array_split(TRAINED, pieces))
    assert shares[3:].tolist() == [0.0, 0.0]
    assert shares[2] == 1.0
    # Windows across a division of the training text are lost.
    assert (shares[:2] >= 1 - pieces * WINDOW / 495).all()
    assert pieces > 1 or shares[:3].tolist() == [1.0, 1.0, 1.0]


def test_the_share_is_that_of_the_windows():
    half = np.concatenate([TRAINED[:1024], NEW[:1024]])
    (share,) = shares_trained_on([half], [TRAINED])
    assert share == pytest.approx(0.5, abs=0.02)


def test_one_other_token_is_another_window():
    changed = TRAINED[:WINDOW].copy()
    changed[WINDOW // 2] += 1
    assert shares_trained_on([changed], [TRAINED]).tolist() == [0.0]
    assert shares_trained_on([np.roll(TRAINED[:WINDOW], 1)], [TRAINED]).tolist() == [0.0]


def test_short_documents_are_compared_whole():
    short = TRAINED[:9]
    assert shares_trained_on([short, NEW[:9], short[:8]], [TRAINED, short]).tolist() == [1.0, 0.0, 0.0]
    assert shares_trained_on([short], [TRAINED]).tolist() == [0.0]


def test_nothing_was_trained_on():
    assert shares_trained_on([TRAINED, TRAINED[:3]], []).tolist() == [0.0, 0.0]
    assert shares_trained_on([], [TRAINED]).tolist() == []
