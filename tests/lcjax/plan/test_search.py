"""lcjax.plan.choosing.search: finds the longest length that fits with few evaluations."""

from __future__ import annotations

import numpy as np
import pytest

from lcjax.plan.choosing.search import largest_fitting


class Load:
    """A load that records its arguments and fails if one of them is repeated."""

    def __init__(self, function):
        self.function, self.called_with = function, []

    def __call__(self, n: int) -> float:
        assert n not in self.called_with
        self.called_with.append(n)
        return self.function(n)


def brute_force(function, low: int, high: int) -> int | None:
    return max((n for n in range(low, high + 1) if function(n) <= 1), default=None)


@pytest.mark.parametrize("limit", [1, 2, 17, 33, 100, 999, 5000, 16_384])
@pytest.mark.parametrize("low", [1, 33])
def test_a_line_takes_few_evaluations(limit, low):
    load = Load(lambda n: 0.2 + 0.8 * n / (limit + 0.5))
    found = largest_fitting(load, low, 16_384)
    assert found == brute_force(load.function, low, 16_384)
    assert len(load.called_with) <= 6


def test_random_rising_loads_against_brute_force():
    generator = np.random.default_rng(0)
    for _ in range(300):
        rises = np.cumsum(generator.exponential(size=200) ** 4)
        limit = generator.uniform(rises[0], rises[-1])
        load = Load(lambda n, rises=rises / limit: float(rises[n]))
        assert largest_fitting(load, 1, 199) == brute_force(load.function, 1, 199)
        assert len(load.called_with) <= 20


def test_a_kinked_load():
    """Host memory is exhausted before the GPU's."""
    load = Load(lambda n: max(0.5 + n / 5000, n / 700))
    assert largest_fitting(load, 1, 16_384) == 700
    assert len(load.called_with) <= 8


def test_a_load_that_stays_below_the_limit_for_long():
    """The compiler recomputes values, so that memory hardly grows before the limit."""
    load = Load(lambda n: min(n / 2400, 0.9999 + n * 1e-9) if n <= 2600 else 1 + n / 10_000)
    assert largest_fitting(load, 1, 2**21, 2048) == 2600
    assert len(load.called_with) <= 30
    assert max(load.called_with) <= 2 * 2600


def test_the_result_and_its_successor_are_evaluated():
    load = Load(lambda n: n / 321.5)
    assert largest_fitting(load, 1, 1000) == 321
    assert {321, 322} <= set(load.called_with)


@pytest.mark.parametrize(("guess", "evaluations"), [(321, 2), (322, 2), (310, 4), (600, 5)])
def test_a_guess_saves_evaluations(guess, evaluations):
    load = Load(lambda n: 0.1 + 0.9 * n / 321.5)
    assert largest_fitting(load, 1, 1000, guess) == 321
    assert load.called_with[0] == guess
    assert len(load.called_with) <= evaluations


def test_the_ends():
    assert largest_fitting(Load(lambda n: 2.0), 1, 100) is None
    assert largest_fitting(Load(lambda n: 0.5), 1, 100) == 100
    assert largest_fitting(Load(lambda n: 0.5), 7, 7) == 7
    assert largest_fitting(Load(lambda n: 1.0), 1, 3) == 3
