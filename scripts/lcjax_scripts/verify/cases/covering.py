"""Covering arrays: few rows of a product of axes that contain all small combinations of values."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any


def covering(strength: int, *axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Returns rows of the product of axes that cover every combination of `strength` values.

    The algorithm is greedy and deterministic. It visits the product in a shuffled order, and takes
    first the rows whose combinations are all new, then the rows with one old combination, and so
    on.
    Source: Cohen et al., The AETG System, IEEE Transactions on Software Engineering 23(7), 1997.
    """
    product = list(itertools.product(*axes))
    random.Random(0).shuffle(product)
    met: set[tuple] = set()
    rows = []
    for wanted in range(math.comb(len(axes), strength), 0, -1):
        for row in product:
            new = set(itertools.combinations(enumerate(row), strength)) - met
            if len(new) >= wanted:
                rows.append(row)
                met |= new
    return rows
