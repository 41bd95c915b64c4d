import dataclasses

import numpy as np
import pytest

from lcjax.audit.advice import MOST_EPOCHS, STEPS, accumulation_for, advice, epochs_for, steps_per_epoch
from lcjax.audit.figures import LONG, audit
from lcjax.audit.report import headline
from tests.support.corpora import corpus_of, planted


def words_of(corpus, max_seq_length, rows_per_step=4, max_tokens=10**9):
    return " / ".join(advice(audit(corpus, max_seq_length, max_tokens), rows_per_step))


def times(figures, factor):
    """Returns the figures for `factor` times as many tokens, in the same windows."""
    windows = dataclasses.replace(figures.corpus.windows, count=factor * figures.corpus.windows.count)
    corpus = dataclasses.replace(figures.corpus, windows=windows, learned=factor * figures.corpus.learned)
    return dataclasses.replace(figures, corpus=corpus)


@pytest.fixture(scope="module")
def good():
    return planted(40, length=16_384, distance=6_000)


def test_nothing_to_change(good):
    assert words_of(good, 8192) == "train at 8,192 tokens: the documents are suitable"


def test_nothing_at_a_distance():
    random = corpus_of(list(np.random.default_rng(0).integers(0, 30_000, (20, 16_384))))
    assert "there is nothing to learn at a distance: beyond 1K tokens" in words_of(random, 8192)


def test_a_context_longer_than_the_reuse(good):
    assert "beyond 8K tokens hardly anything repeats" in words_of(good, 16_384)
    assert "--max-seq-length 8192 is enough" in words_of(good, 16_384)


def test_too_few_long_documents(good):
    words = words_of(good, 131_072)
    assert "too few long documents: 0.0% of the tokens have 64K or more before them; add books" in words
    assert "--documents repository" in words
    assert "or lower --max-seq-length to 16384" in words


def test_high_packing():
    short = corpus_of(list(np.random.default_rng(0).integers(0, 30_000, (400, 1500))))
    assert "packing is high: a window of 32K has 20 documents, which do not see each other" in words_of(short, 32_768)


@pytest.mark.parametrize(("every", "needed", "reached"), [(1, 8, "65,536"), (4, 32, "65,536")])
def test_few_tokens_a_step(good, every, needed, reached):
    """Only tokens with a loss count."""
    learned = np.zeros(len(good.tokens), dtype=bool)
    learned[::every] = True
    figures = times(audit(type(good)(good.tokens, good.offsets, good.names, learned), 8192, 10**9), 10)
    (line,) = advice(figures, rows_per_step=1)
    assert line == (
        f"few tokens per step: {8192 // every:,} with a loss; --gradient-accumulation-steps {needed} gives {reached}"
    )
    assert advice(figures, rows_per_step=needed) == ["train at 8,192 tokens: the documents are suitable"]


@pytest.mark.parametrize("rows", [1, 2, 19, 20, 39, 40, 100, 10_000])
def test_a_step_is_small_enough_for_several_steps_per_epoch(good, rows):
    """A small text is not a single step, because a schedule needs several."""
    figures = audit(good, 8192, 10**9)
    windows = dataclasses.replace(figures.corpus.windows, count=rows)
    figures = dataclasses.replace(
        figures, corpus=dataclasses.replace(figures.corpus, windows=windows, learned=rows * 8192)
    )
    accumulation = accumulation_for(figures)
    assert steps_per_epoch(figures, accumulation) >= min(rows, STEPS)
    assert (accumulation == 1) if rows < 2 * STEPS else (1 < accumulation <= 8)
    epochs = epochs_for(figures, accumulation)
    assert 1 <= epochs <= MOST_EPOCHS
    assert epochs == MOST_EPOCHS or epochs * steps_per_epoch(figures, accumulation) >= STEPS


def test_little_text_is_reported(good):
    assert words_of(good, 8192, rows_per_step=16) == (
        "little text for a run: 5 optimizer steps an epoch; add documents, or pass over them more often, "
        "--num-train-epochs 4, with 4 sequences per step"
    )
    figures = audit(good, 8192, 10**9)
    assert "little text" in advice(figures, rows_per_step=16, steps=STEPS - 1)[0]
    assert advice(figures, rows_per_step=16, steps=STEPS) == ["train at 8,192 tokens: the documents are suitable"]


@pytest.mark.parametrize("length", [64, 512, 1024, 2048])
def test_a_short_context_gets_no_advice_on_distances(length):
    """Once, the advice was to train at 2,048 tokens because nothing is repeated beyond 1K."""
    random = corpus_of(list(np.random.default_rng(0).integers(0, 30_000, (9, 5000))))
    words = words_of(random, length, rows_per_step=1)
    assert "max-seq-length" not in words
    assert "nothing to learn" not in words


def test_near_duplicates(good):
    twice = corpus_of([good.document(i) for i in range(len(good))] + [good.document(0), good.document(7)])
    assert (
        "4.8% of the tokens are in 2 near-duplicates; use only one of each group, for example of d0 and d40"
        in words_of(twice, 8192)
    )


def test_a_sample_is_whole_documents_and_reports_its_size(good):
    figures = audit(good, 8192, max_tokens=200_000)
    assert figures.sampled_tokens == 12 * 16_384
    whole = audit(good, 8192, max_tokens=10**9)
    assert figures.corpus == whole.corpus
    assert figures.reuse[2].share == pytest.approx(whole.reuse[2].share, rel=0.01)


@pytest.mark.parametrize(
    ("length", "long", "headline_says"),
    [(2048, 1024, "1K"), (8192, 4096, "4K"), (65_536, LONG, "32K"), (2**20, LONG, "32K")],
)
def test_what_counts_as_long_depends_on_the_length(length, long, headline_says):
    figures = audit(corpus_of([np.arange(900), np.arange(3000), np.arange(40_000)]), length, 10**9)
    assert figures.long == figures.as_json()["long"] == long
    share = {1024: "66.7%", 4096: "33.3%", LONG: "33.3%"}[long]
    assert f"longer than {headline_says}: {share} of the documents" in headline(figures)


def test_shares_of_long_documents():
    lengths = [LONG, LONG + 1, 100, 3 * LONG]
    figures = audit(corpus_of([np.arange(length) for length in lengths]), 65_536, 10**9)
    assert figures.long_documents == 0.5
    assert figures.long_tokens == (4 * LONG + 1) / sum(lengths)
