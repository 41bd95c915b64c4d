import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from lcjax.data import IGNORE, NO_ROW, TokenizedCorpus, evaluation_batches, iterate, lay_out, make_dataset, pack
from lcjax.errors import InputError
from tests.support.batches import equal

# Run here and in another process, which must produce the same batches.
SET_UP = """
import numpy as np
from lcjax.data import TokenizedCorpus, iterate, make_dataset, pack

lengths = np.random.RandomState(0).randint(1, 50, 40)
offsets = np.concatenate([[0], np.cumsum(lengths)])
corpus = TokenizedCorpus(np.arange(offsets[-1], dtype=np.int32), offsets, [str(i) for i in range(40)])
plan = pack(lengths, 32)
"""
_set_up: dict = {}
exec(SET_UP, _set_up)
CORPUS, PLAN = _set_up["corpus"], _set_up["plan"]


def rows_of(dataset, steps):
    return np.concatenate([dataset[i]["rows"].ravel() for i in range(steps)])


def small_plan(rows):
    corpus = TokenizedCorpus(
        np.arange(8 * rows, dtype=np.int32), np.arange(rows + 1) * 8, [str(i) for i in range(rows)]
    )
    return corpus, pack(corpus.lengths, 8)


@pytest.mark.parametrize(
    ("rows", "batch_size", "accumulation"), [(12, 2, 3), (7, 2, 1), (1, 2, 2), (3, 4, 2), (33, 1, 1)]
)
def test_every_row_comes_once_an_epoch(rows, batch_size, accumulation):
    corpus, plan = small_plan(rows)
    dataset = make_dataset(corpus, plan, batch_size=batch_size, accumulation=accumulation, seed=5)
    order = rows_of(dataset, steps=rows * 4)  # a whole number of epochs for any sizes
    epochs = order.reshape(-1, rows)
    assert len(epochs) == 4 * batch_size * accumulation
    assert np.array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(rows), epochs.shape))


def test_epochs_and_seeds_have_different_orders():
    corpus, plan = small_plan(100)
    epochs = [
        tuple(order)
        for seed in range(5)
        for order in rows_of(make_dataset(corpus, plan, batch_size=4, seed=seed), steps=125).reshape(5, 100)
    ]
    assert len(set(epochs)) == 25  # grain's epoch 1 of seed 0 is its epoch 0 of seed 1
    assert tuple(range(100)) not in epochs
    again = rows_of(make_dataset(corpus, plan, batch_size=4, seed=2), steps=125)
    assert tuple(again[:100]) == epochs[10]


def test_the_order_of_a_seed_is_fixed():
    # Explicit numbers, because a run that is resumed with another version of grain or numpy must
    # see the same order.
    corpus, plan = small_plan(8)
    order = rows_of(make_dataset(corpus, plan, batch_size=8, seed=0), steps=2)
    assert order.tolist() == [5, 3, 6, 7, 4, 2, 1, 0, 6, 5, 4, 1, 0, 7, 3, 2]


def test_a_batch_is_its_rows_laid_out():
    dataset = make_dataset(CORPUS, PLAN, batch_size=2, accumulation=3, seed=1)
    batch = dataset[7]
    assert batch["rows"].shape == (3, 2)
    for key in ("tokens", "labels", "positions", "segment_ids"):
        assert batch[key].shape == (3, 2, 32)
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    assert equal(batch, lay_out(CORPUS, PLAN, batch["rows"]))


def test_accumulation_only_groups():
    flat = make_dataset(CORPUS, PLAN, batch_size=6, seed=1)
    grouped = make_dataset(CORPUS, PLAN, batch_size=2, accumulation=3, seed=1)
    assert np.array_equal(rows_of(flat, 10), rows_of(grouped, 10))


def test_iteration_is_in_the_order_of_steps():
    dataset = make_dataset(CORPUS, PLAN, batch_size=2, accumulation=2, seed=1)
    iterator = iterate(dataset)
    for step in range(3 * len(PLAN)):
        assert equal(next(iterator), dataset[step])


@pytest.mark.parametrize("taken", [0, 1, 5, 13])
def test_a_restored_iterator_continues_with_the_next_batch(taken):
    dataset = make_dataset(CORPUS, PLAN, batch_size=3, accumulation=1, seed=1)
    assert len(PLAN) % 3  # batches straddle the epochs' boundary
    iterator = iterate(dataset)
    for _ in range(taken):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(2 * len(PLAN))]
    fresh = iterate(make_dataset(CORPUS, PLAN, batch_size=3, accumulation=1, seed=1))
    next(fresh)  # its prefetched batches must be forgotten
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert all(equal(next(fresh), batch) for batch in expected)
    iterator.set_state(state)  # back in time
    assert equal(next(iterator), expected[0])


def test_another_process_restores_the_same_stream():
    script = SET_UP + textwrap.dedent("""
        import hashlib, json, sys
        iterator = iterate(make_dataset(corpus, plan, batch_size=3, accumulation=2, seed=9))
        if len(sys.argv) > 1:
            iterator.set_state(json.loads(sys.argv[1]))
        else:
            for _ in range(4):
                next(iterator)
        print(json.dumps(iterator.get_state()))
        for _ in range(20):
            batch = next(iterator)
            print(hashlib.sha256(b"".join(batch[key].tobytes() for key in sorted(batch))).hexdigest())
        iterator.close()
    """)

    def run(*arguments):
        command = [sys.executable, "-W", "error", "-c", script, *arguments]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        assert finished.stderr == ""
        return finished.stdout.splitlines()

    first = run()
    assert len(set(first)) == 21
    assert run(first[0]) == first


def test_using_the_package_has_no_side_effects():
    script = SET_UP + textwrap.dedent("""
        import multiprocessing, sys
        iterator = iterate(make_dataset(corpus, plan, batch_size=3, seed=9))
        next(iterator)
        from absl import flags
        assert not flags.FLAGS.is_parsed()
        assert not multiprocessing.active_children()
        assert not {"torch", "tensorflow", "transformers"} & set(sys.modules)
        iterator.close()
    """)
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert (finished.stdout, finished.stderr, finished.returncode) == ("", "", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"accumulation": 0}, "accumulation=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"seed": 2**32}, "seed=4294967296 must be"),
        ({"plan": pack(np.array([], dtype=int), 8)}, "no tokens are left to train on"),
    ],
)
def test_refusals(change, message):
    arguments = {"corpus": CORPUS, "plan": PLAN, "batch_size": 1, "accumulation": 1, "seed": 0}
    with pytest.raises(InputError, match=message):
        make_dataset(**(arguments | change))


def test_evaluation_sees_every_row_once_in_order():
    batches = list(evaluation_batches(CORPUS, PLAN, batch_size=4))
    assert len(batches) == -(-len(PLAN) // 4)
    assert {batch["tokens"].shape for batch in batches} == {(4, 32)}
    rows = np.concatenate([batch["rows"] for batch in batches])
    filled_up = -len(PLAN) % 4
    assert filled_up  # otherwise the test covers no padding
    assert rows.tolist() == [*range(len(PLAN)), *[NO_ROW] * filled_up]
    last = batches[-1]
    assert np.all(last["labels"][-filled_up:] == IGNORE)
    assert np.all(last["segment_ids"][-filled_up:] == 0)
    assert all(equal(batch, lay_out(CORPUS, PLAN, batch["rows"])) for batch in batches)


def test_a_limited_evaluation_spreads_over_the_plan():
    batches = list(evaluation_batches(CORPUS, PLAN, batch_size=2, limit=3))
    rows = np.concatenate([batch["rows"] for batch in batches])
    assert len(rows) == 6
    assert rows[0] == 0
    assert np.all(np.abs(np.diff(rows) - len(PLAN) / 6) < 1)
    everything = list(evaluation_batches(CORPUS, PLAN, batch_size=2, limit=10_000))
    assert len(everything) == -(-len(PLAN) // 2)


def test_evaluation_of_nothing_and_refusals():
    assert list(evaluation_batches(CORPUS, pack(np.array([], dtype=int), 8), batch_size=2)) == []
    for arguments in ({"batch_size": 0}, {"batch_size": 1, "limit": 0}):
        with pytest.raises(InputError, match="=0 of the evaluation must be at least 1"):
            evaluation_batches(CORPUS, PLAN, **arguments)
