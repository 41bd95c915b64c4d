import itertools

import numpy as np
import pytest

from lcjax.data import TokenizedCorpus, load_corpus, make_dataset
from lcjax.data.mixture import Mixture, pack_mixture
from lcjax.errors import InputError
from tests.support.batches import equal

T = 32
LENGTHS = np.concatenate([np.full(7, 20), np.full(50, 90), np.full(3, 31)])
SOURCES = [np.arange(7), np.arange(7, 57), np.arange(57, 60)]


def mixture_of(weights, lengths=LENGTHS, sources=SOURCES):
    corpus = TokenizedCorpus(
        np.arange(lengths.sum(), dtype=np.int32), np.concatenate([[0], np.cumsum(lengths)]), [str(i) for i in lengths]
    )
    return corpus, *pack_mixture(lengths, T, sources, weights, ["a", "b", "c"][: len(sources)])


def drawn(weights, rows, seed=0):
    """Returns (source, row) for each of the rows that a run uses."""
    corpus, plan, mixture = mixture_of(weights)
    batch = make_dataset(corpus, plan, batch_size=rows, seed=seed, mixture=mixture)[0]
    return np.searchsorted(mixture.row_bounds, batch["rows"][0], side="right") - 1, batch["rows"][0]


@pytest.mark.parametrize("weights", [(0.7, 0.2, 0.1), (1, 1, 1), (1, 5, 100)])
def test_tokens_come_in_the_proportions_of_the_weights(weights):
    _, plan, mixture = mixture_of(weights)
    taken = np.array([mixture.selection()[index] for index in range(20_000)])
    # After any number of rows, the count of the k-th source differs from its share by at most k.
    counts = np.cumsum(taken[:, :1] == np.arange(3), axis=0)
    shares = np.array(mixture.turns) / sum(mixture.turns)
    assert np.all(np.abs(counts - np.arange(1, 20_001)[:, None] * shares) <= 1 + np.arange(3))
    for source in range(3):  # rows are used in order
        assert np.array_equal(taken[taken[:, 0] == source, 1], np.arange(counts[-1, source]))
    rows = np.diff(mixture.row_bounds)
    tokens = [plan.pieces[plan.row_offsets[a] : plan.row_offsets[b]] for a, b in itertools.pairwise(mixture.row_bounds)]
    per_row = np.array([(pieces[:, 2] - pieces[:, 1]).sum() for pieces in tokens]) / rows
    assert shares * per_row / (shares * per_row).sum() == pytest.approx(np.array(weights) / sum(weights), rel=1e-6)
    assert len(set(per_row)) == 3  # otherwise the weights would be shares of rows


def test_the_order_of_sources_is_fixed():
    sources, _ = drawn((0.7, 0.2, 0.1), 300)
    _, _, mixture = mixture_of((0.7, 0.2, 0.1))
    assert sources.tolist() == [mixture.selection()[index][0] for index in range(300)]


def test_no_source_runs_out_and_each_goes_through_all_its_rows_before_it_begins_again():
    sources, rows = drawn((1, 1, 1), 600)
    _, plan, mixture = mixture_of((1, 1, 1))
    for source, count in enumerate(np.diff(mixture.row_bounds)):
        own = rows[sources == source]
        passes = [own[i : i + count] for i in range(0, len(own) - count, count)]
        assert all(len(set(one)) == count for one in passes)
        assert len(passes) < 2 or any(not np.array_equal(one, passes[0]) for one in passes)
    assert set(rows) == set(range(len(plan)))
    assert len(passes) > 20


def test_rows_hold_documents_of_one_source():
    _, plan, mixture = mixture_of((1, 1, 1))
    for source, (start, stop) in enumerate(itertools.pairwise(mixture.row_bounds)):
        for row in range(start, stop):
            assert {piece.document for piece in plan.row(row)} <= set(SOURCES[source].tolist())
    assert np.array_equal(np.unique(plan.pieces[:, 0]), np.arange(60))


def test_the_order_is_a_function_of_seed_and_index():
    corpus, plan, mixture = mixture_of((0.7, 0.2, 0.1))
    first, again, other = (
        make_dataset(corpus, plan, batch_size=2, accumulation=2, seed=seed, mixture=mixture) for seed in (0, 0, 1)
    )
    for step in (5, 0, 1_000_000):  # in any order, so that the index is enough to resume
        assert equal(first[step], again[step])
    assert not all(equal(first[step], other[step]) for step in range(5))


def test_weights_of_real_files(tmp_path, smol_tokenizer):
    for name, count in (("a.jsonl", 3), ("b.jsonl", 200)):
        (tmp_path / name).write_text("\n".join(f'{{"text": "{name} line {i} of some length"}}' for i in range(count)))
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]

    def data(**options):
        return load_corpus(paths, smol_tokenizer, T, held_out_fraction=0.05, seed=0, **options)

    mixed = data(weights=(0.5, 0.5))
    dataset = mixed.train_dataset(batch_size=1)
    names = [name for step in range(100) for name in mixed.documents_of(dataset[step])]
    assert 0.45 < np.mean(["a.jsonl" in name for name in names]) < 0.55
    assert mixed.mixture.summary()[0].startswith(f"{paths[0]}: 50.0% of the tokens, ")
    assert len({data().fingerprint(), mixed.fingerprint(), data(weights=(0.4, 0.6)).fingerprint()}) == 3
    assert data(weights=(5, 5)).fingerprint() == mixed.fingerprint()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1, 1), "--data-weights has 2 weights for 3 paths of --data; give one weight for each path"),
        ((1, 0, 1), "the weight 0 in --data-weights must be a positive number"),
        ((1, float("nan"), 1), "the weight nan in --data-weights must be a positive number"),
    ],
)
def test_bad_weights(weights, expected):
    with pytest.raises(InputError, match=expected):
        mixture_of(weights)


def test_a_source_without_documents_is_refused():
    with pytest.raises(InputError, match="b has no document to train on for its weight in --data-weights"):
        mixture_of((1, 1), sources=[np.arange(60), np.arange(0)])


def test_a_mixture_reports_how_often_it_passes_over_a_source():
    mixture = Mixture(("a", "b"), (0, 10, 40), (0.5, 0.5), (1, 1))
    assert mixture.summary() == [
        "a: 50.0% of the tokens, 10 rows, 2.00 passes per epoch",
        "b: 50.0% of the tokens, 30 rows, 0.67 passes per epoch",
    ]
