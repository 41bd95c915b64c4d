import numpy as np
import pytest

from lcjax.data import split_held_out
from lcjax.errors import InputError


@pytest.mark.parametrize(
    ("n_documents", "fraction", "expected"),
    [(2, 1e-9, 1), (2, 0.99, 1), (100, 0.05, 5), (100, 0.999, 99), (7, 0.0, 0), (1, 0.0, 0), (1000, 0.0001, 1)],
)
def test_two_parts_of_the_right_size(n_documents, fraction, expected):
    train, held_out = split_held_out(n_documents, fraction, seed=3)
    assert len(held_out) == expected
    assert np.array_equal(np.sort(np.concatenate([train, held_out])), np.arange(n_documents))
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(held_out) > 0)
    assert train.dtype == held_out.dtype == np.int64


def test_the_draw_depends_on_the_seed_alone():
    # Explicit numbers, because a resumed run must hold out the same documents in every version of
    # numpy.
    assert split_held_out(100, 0.05, seed=0)[1].tolist() == [2, 26, 55, 75, 86]
    assert split_held_out(100, 0.05, seed=1)[1].tolist() != [2, 26, 55, 75, 86]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, -0.1, 0), "--eval-fraction -0.1 is out of range; it must be at least 0 and below 1"),
        ((5, 1.0, 0), "--eval-fraction 1.0 is"),
        ((5, float("nan"), 0), "--eval-fraction nan is"),
        ((5, 0.1, -1), "--seed -1 is"),
        ((5, 0.1, 2**32), "--seed 4294967296 is"),
        ((1, 0.1, 0), "--eval-fraction 0.1 needs two documents or more, or one long enough text"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        split_held_out(*arguments)
