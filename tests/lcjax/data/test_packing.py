import hashlib

import numpy as np
import pytest

from lcjax.data import Piece, pack
from lcjax.data.packing import IntegerSet
from lcjax.errors import InputError


def random_lengths(rng, max_seq_length):
    """Returns random lengths, always including some near multiples of the context."""
    T = max_seq_length
    edges = [0, 1, T - 1, T, T + 1, 2 * T - 1, 2 * T, 2 * T + 1, 7 * T]
    lengths = np.concatenate([edges, rng.integers(0, 3 * T + 2, 40), rng.integers(0, T // 4 + 2, 60)])
    return rng.permutation(lengths)


def fill(plan):
    return sorted(sum(piece.stop - piece.start for piece in plan.row(r)) for r in range(len(plan)))


def naive_best_fit(sizes, capacity):
    """Returns the free space of each row, computed by trying every row for every piece."""
    spaces = []
    for size in sorted(sizes, reverse=True):
        fitting = [space for space in spaces if space >= size]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else capacity) - size)
    return spaces


@pytest.mark.parametrize("max_seq_length", [1, 2, 3, 8, 64, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_every_token_is_in_exactly_one_row(max_seq_length, seed):
    lengths = random_lengths(np.random.default_rng(seed), max_seq_length)
    plan = pack(lengths, max_seq_length)
    seen = [np.zeros(length, dtype=int) for length in lengths]
    for r in range(len(plan)):
        for document, start, stop in plan.row(r):
            assert 0 <= start < stop <= lengths[document]
            assert start % max_seq_length == 0
            assert stop - start == max_seq_length or stop == lengths[document]
            seen[document][start:stop] += 1
    assert all((count == 1).all() for count in seen)
    assert fill(plan)[0] > 0
    assert fill(plan)[-1] <= max_seq_length
    assert plan.num_tokens == lengths.sum()
    assert plan.padding_share == pytest.approx(1 - lengths.sum() / (len(plan) * max_seq_length), abs=1e-12)


@pytest.mark.parametrize("max_seq_length", [2, 8, 64, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_rows_are_those_of_best_fit_decreasing(max_seq_length, seed):
    lengths = random_lengths(np.random.default_rng(seed), max_seq_length)
    full, rest = np.divmod(lengths, max_seq_length)
    spaces = naive_best_fit(rest[rest > 0].tolist(), max_seq_length) + [0] * int(full.sum())
    assert fill(pack(lengths, max_seq_length)) == sorted(max_seq_length - space for space in spaces)


@pytest.mark.parametrize("max_seq_length", [2, 7, 64, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_rows_are_filled_as_if_pieces_were_placed_one_by_one(max_seq_length, seed):
    lengths = np.random.default_rng(seed).integers(1, max(2, max_seq_length // (1 + seed)), 300)
    rows, free = {}, []  # (space, row), the latest last
    for document in np.argsort(-lengths, kind="stable").tolist():
        fitting = [space for space, _ in free if space >= lengths[document]]
        at = max(i for i, (space, _) in enumerate(free) if space == min(fitting)) if fitting else None
        space, row = (max_seq_length, len(rows)) if at is None else free.pop(at)
        rows.setdefault(row, []).append(document)
        free.append((space - lengths[document], row))
    plan = pack(lengths, max_seq_length)
    assert [[piece.document for piece in plan.row(r)] for r in range(len(plan))] == [rows[r] for r in sorted(rows)]


def test_a_run_resumes_with_the_plan_of_earlier_versions():
    lengths = np.random.RandomState(0).lognormal(4, 1, 20_000).astype(np.int64)
    plan = pack(lengths, 4096)
    digest = hashlib.md5(plan.pieces.tobytes() + plan.row_offsets.tobytes()).hexdigest()
    assert digest == "f50348241a3464a9af7644823d0d5533"


def test_a_small_plan_in_full():
    plan = pack(np.array([3, 10, 5, 0, 1]), 4)
    rows = [plan.row(r) for r in range(len(plan))]
    assert rows == [
        (Piece(1, 0, 4),),
        (Piece(1, 4, 8),),
        (Piece(2, 0, 4),),
        (Piece(0, 0, 3), Piece(2, 4, 5)),
        (Piece(1, 8, 10), Piece(4, 0, 1)),
    ]
    assert plan.pieces.dtype == plan.row_offsets.dtype == np.int64


def test_the_plan_is_a_function_of_its_arguments():
    lengths = np.random.default_rng(0).integers(1, 300, 5000)
    first, second = pack(lengths, 128), pack(lengths, 128)
    assert np.array_equal(first.pieces, second.pieces)
    assert np.array_equal(first.row_offsets, second.row_offsets)


def test_only_the_given_documents_are_packed():
    lengths = np.array([5, 0, 9, 2, 3])
    plan = pack(lengths, 4, documents=np.array([2, 3]))
    assert sorted(plan.pieces.tolist()) == [[2, 0, 4], [2, 4, 8], [2, 8, 9], [3, 0, 2]]
    nothing = pack(lengths, 4, documents=np.array([], dtype=int))
    assert (len(nothing), nothing.num_tokens, nothing.padding_share) == (0, 0, 0.0)


def test_many_pieces_and_a_long_context():
    rng = np.random.default_rng(0)
    T = 1_000_000
    lengths = np.minimum(rng.lognormal(7, 2, 200_000).astype(np.int64) + 1, 3 * T)
    plan = pack(lengths, T)
    assert plan.num_tokens == lengths.sum()
    assert len(plan) == -(-lengths.sum() // T)  # the smallest possible number of rows


def test_a_context_of_no_tokens_is_refused():
    with pytest.raises(InputError, match="--max-seq-length 0 is out of range"):
        pack(np.array([1]), 0)


@pytest.mark.parametrize("limit", [1, 63, 64, 4095, 4096, 100_000])
def test_integer_set_agrees_with_a_set(limit):
    rng = np.random.default_rng(limit)
    members, fast = set(), IntegerSet(limit)
    for _ in range(2000):
        value = int(rng.integers(0, limit + 1))
        if value in members:
            members.remove(value)
            fast.remove(value)
        else:
            members.add(value)
            fast.add(value)
        for start in (int(rng.integers(0, limit + 1)), value, 0, limit):
            assert fast.successor(start) == min((member for member in members if member >= start), default=None)
        if len(members) > 40:
            for member in list(members):
                fast.remove(member)
            members.clear()


def test_windows_in_which_nothing_is_learned_are_left_out_and_counted():
    plan = pack(np.array([9, 3, 4]), 4, is_learned=lambda pieces: pieces[:, 2] - pieces[:, 1] > 1)
    assert sorted(plan.pieces.tolist()) == [[0, 0, 4], [0, 4, 8], [1, 0, 3], [2, 0, 4]]
    assert plan.num_unlearned == 1
    nothing = pack(np.array([9, 3]), 4, is_learned=lambda pieces: np.zeros(len(pieces), dtype=bool))
    assert (len(nothing), nothing.num_unlearned) == (0, 4)
