import copy
import dataclasses
import itertools
import json

import numpy as np
import pytest

from lcjax.data import IGNORE, lay_out, load_corpus, read_documents, stdlib_sources
from lcjax.errors import InputError

T = 4096


@pytest.fixture(scope="module")
def paths():
    return [path for i, path in enumerate(stdlib_sources()) if i % 20 == 0 or path.name == "argparse.py"]


@pytest.fixture(scope="module")
def data(paths, smol_tokenizer):
    return load_corpus(paths, smol_tokenizer, T, held_out_fraction=0.1, seed=0, vocab_size=49152)


def test_batches_decode_to_the_documents(data, paths, smol_tokenizer):
    texts = {document.name: document.text for document in read_documents(paths)}
    assert set(data.corpus.names) == set(texts)
    dataset = data.train_dataset(batch_size=2, accumulation=2)
    for step in range(3):
        batch = dataset[step]
        decoded = [
            smol_tokenizer.decode(row[segments == segment])
            for row, segments in zip(batch["tokens"].reshape(-1, T), batch["segment_ids"].reshape(-1, T), strict=True)
            for segment in range(1, segments.max() + 1)
        ]
        named = "".join(texts[name] + smol_tokenizer.eos_token for name in data.documents_of(batch))
        # A window may be cut within a character, whose parts decode to U+FFFD.
        assert all(part.strip("\ufffd") in named for part in decoded)


def test_held_out_documents_are_never_trained_on(data):
    steps = data.train_dataset(batch_size=1)
    trained = {name for step in range(len(data.train_plan)) for name in data.documents_of(steps[step])}
    batches = list(data.evaluation_batches(batch_size=3))
    held_out = {name for batch in batches for name in data.documents_of(batch, held_out=True)}
    assert len(held_out) == round(0.1 * len(data.corpus))
    assert not trained & held_out
    assert trained | held_out == set(data.corpus.names)


def test_counts_and_summary(data, paths, smol_tokenizer):
    tokens = data.train_plan.num_tokens + data.held_out_plan.num_tokens
    assert tokens == len(data.corpus.tokens)
    summary = data.summary()
    assert "\n" not in summary
    assert f"{len(data.corpus):,} documents, {tokens:,} tokens" in summary
    assert f"{len(data.train_plan):,} rows of 4,096 ({data.train_plan.padding_share:.1%} padding)" in summary
    assert f"held out in {len(data.held_out_plan):,} rows" in summary
    nothing_held_out = load_corpus(paths[:3], smol_tokenizer, T, held_out_fraction=0, seed=0)
    assert "held out" not in nothing_held_out.summary()
    assert list(nothing_held_out.evaluation_batches(batch_size=1)) == []


def test_the_fingerprint_distinguishes_runs(data, paths, smol_tokenizer):
    same = load_corpus(paths, smol_tokenizer, T, held_out_fraction=0.1, seed=0)
    assert same.fingerprint() == data.fingerprint()
    tokens = data.corpus.tokens.copy()
    tokens[-1] ^= 1
    others = [
        dataclasses.replace(data, seed=1),
        dataclasses.replace(data, corpus=dataclasses.replace(data.corpus, tokens=tokens)),
        dataclasses.replace(data, train_plan=data.held_out_plan),
        load_corpus(paths, smol_tokenizer, T, held_out_fraction=0.2, seed=0),
        load_corpus(paths, smol_tokenizer, 2 * T, held_out_fraction=0.1, seed=0),
    ]
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 6


def test_refusals_reach_the_user(tmp_path, smol_tokenizer):
    (tmp_path / "only.txt").write_text("only")
    with pytest.raises(InputError, match="needs two documents or more, or one long enough text"):
        load_corpus([tmp_path], smol_tokenizer, T, held_out_fraction=0.1, seed=0)
    (tmp_path / "only.txt").write_text("the only document")
    with pytest.raises(InputError, match="vocab_size is 10"):
        load_corpus([tmp_path], smol_tokenizer, T, held_out_fraction=0, seed=0, vocab_size=10)
    with pytest.raises(InputError, match="--max-seq-length 0 is out of range"):
        load_corpus([tmp_path], smol_tokenizer, 0, held_out_fraction=0, seed=0)
    data = load_corpus([tmp_path], smol_tokenizer, 4, held_out_fraction=0, seed=0)
    assert np.array_equal(data.corpus.document(0)[:-1], smol_tokenizer("the only document")["input_ids"])


def write_pairs(path, lengths):
    """Writes records whose prompts have about the given numbers of tokens."""
    pairs = [{"prompt": "one " * length, "completion": "two"} for length in lengths]
    path.write_text("\n".join(map(json.dumps, pairs)))
    return path


def test_rows_without_a_label_are_left_out_of_both_parts(tmp_path, smol_tokenizer):
    lengths = [5] * 20 + [200] * 20
    path = write_pairs(tmp_path / "a.jsonl", lengths)
    data = load_corpus([path], smol_tokenizer, 32, held_out_fraction=0.3, seed=0)
    for plan in (data.train_plan, data.held_out_plan):
        labels = lay_out(data.corpus, plan, np.arange(len(plan)))["labels"]
        assert (labels != IGNORE).any(axis=1).all()
        assert plan.num_unlearned > 20
    labels = [
        lay_out(data.corpus, plan, np.arange(len(plan)))["labels"] for plan in (data.train_plan, data.held_out_plan)
    ]
    # Every token with a loss is still there: "two" and the end of sequence.
    assert sum((part != IGNORE).sum() for part in labels) == data.corpus.learned.sum() == 2 * len(lengths)
    unlearned = data.train_plan.num_unlearned + data.held_out_plan.num_unlearned
    assert f"; omitted: {unlearned:,} windows without a token to learn" in data.summary()
    assert "omitted" not in load_corpus([path], smol_tokenizer, 512, held_out_fraction=0.3, seed=0).summary()


@pytest.mark.parametrize(("weights", "fraction"), [((), 0), ((1,), 0), ((), 0.5)])
def test_data_in_which_nothing_can_be_learned_are_refused(tmp_path, smol_tokenizer, weights, fraction):
    tokenizer = copy.deepcopy(smol_tokenizer)
    tokenizer.chat_template = (
        "{% for message in messages if message.role == 'assistant' %}"
        "{% generation %}{{ message.content }}{% endgeneration %}{% endfor %}"
    )
    # The only token is the first one, which nothing predicts.
    record = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "x"}]}
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(record)] * 2))
    with pytest.raises(InputError, match="windows of 32 tokens has a token to learn") as caught:
        load_corpus([path], tokenizer, 32, held_out_fraction=fraction, seed=0, weights=weights)
    message = str(caught.value)
    assert ("--eval-fraction 0" if fraction else str(path)) in message
    assert "raise --max-seq-length" in message


LINES = "".join(f"line {i} of one long book\n" + "\n" * (i % 7 == 0) for i in range(600))


@pytest.mark.parametrize("text", [LINES, "".join(chr(0x1F600 + i % 70) for i in range(900)), "one line " * 900])
def test_the_end_of_one_text_is_held_out(tmp_path, smol_tokenizer, text):
    path = tmp_path / "book.txt"
    path.write_text(text)
    data = load_corpus([path], smol_tokenizer, 64, held_out_fraction=0.1, seed=0)
    whole = load_corpus([path], smol_tokenizer, 64, held_out_fraction=0, seed=0).corpus
    assert np.array_equal(data.corpus.tokens, whole.tokens)  # so no token was inserted at the cut
    positions = [positions_of(data, plan) for plan in (data.train_plan, data.held_out_plan)]
    assert not set(positions[0]) & set(positions[1])
    assert sorted([*positions[0], *positions[1]]) == list(range(len(whole.tokens)))
    assert max(positions[0]) < min(positions[1])
    assert round(0.1 * len(whole.tokens)) <= len(positions[1]) < 0.15 * len(whole.tokens)
    cut = len(positions[0])
    # No training label is a held-out token, including the one at the cut.
    labels = lay_out(data.corpus, data.train_plan, np.arange(len(data.train_plan)))["labels"]
    assert (labels != IGNORE).sum() == cut - 1
    before, after = smol_tokenizer.decode(whole.tokens[:cut]), smol_tokenizer.decode(whole.tokens[cut:-1])
    assert before + after == text  # so no character was cut
    assert before.endswith("\n\n") == ("\n\n" in text)
    assert f"1 document, {len(whole.tokens):,} tokens: {cut:,} to train on" in data.summary()
    assert f"held out in {len(data.held_out_plan):,} rows (the end of {path})" in data.summary()


def positions_of(data, plan):
    """Returns the positions of a plan's tokens in the corpus."""
    offsets = data.corpus.offsets
    return [offsets[document] + i for document, start, stop in plan.pieces.tolist() for i in range(start, stop)]


def test_another_end_is_another_run(tmp_path, smol_tokenizer):
    path = tmp_path / "book.txt"
    path.write_text(LINES)
    fingerprints = {
        load_corpus([path], smol_tokenizer, 64, held_out_fraction=fraction, seed=0).fingerprint()
        for fraction in (0, 0.1, 0.2, 0.2)
    }
    assert len(fingerprints) == 3


def test_the_end_of_a_mixture_s_single_text_is_held_out(tmp_path, smol_tokenizer):
    book, pair, many = tmp_path / "book.txt", tmp_path / "pair.jsonl", tmp_path / "many"
    book.write_text(LINES)
    write_pairs(pair, [5])
    many.mkdir()
    for i in range(10):
        (many / f"{i}.txt").write_text(f"document {i} of many")
    data = load_corpus([many, book, pair], smol_tokenizer, 64, held_out_fraction=0.1, seed=0, weights=(1, 1, 1))
    assert data.ends == (str(book),)
    held_out = {data.corpus.names[document] for document in data.held_out_plan.pieces[:, 0]}
    assert f"{book} (its end)" in held_out
    assert len(held_out) == 2
    sources = [
        {data.corpus.names[document] for row in range(start, stop) for document, _, _ in data.train_plan.row(row)}
        for start, stop in itertools.pairwise(data.mixture.row_bounds)
    ]
    assert [len(names) for names in sources] == [9, 1, 1]
    assert sources[1:] == [{str(book)}, {f"{pair}:1"}]
    assert not held_out & set.union(*sources)
