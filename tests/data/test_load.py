import dataclasses

import numpy as np
import pytest

from lcjax.data import load_corpus, read_documents, stdlib_sources
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
        # A window may be cut inside a character, whose halves decode to U+FFFD.
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


def test_fingerprint_tells_runs_apart(data, paths, smol_tokenizer):
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
    (tmp_path / "only.txt").write_text("the only document")
    with pytest.raises(InputError, match="needs two documents or more"):
        load_corpus([tmp_path], smol_tokenizer, T, held_out_fraction=0.1, seed=0)
    with pytest.raises(InputError, match="vocab_size is 10"):
        load_corpus([tmp_path], smol_tokenizer, T, held_out_fraction=0, seed=0, vocab_size=10)
    with pytest.raises(InputError, match="max_seq_length=0"):
        load_corpus([tmp_path], smol_tokenizer, 0, held_out_fraction=0, seed=0)
    data = load_corpus([tmp_path], smol_tokenizer, 4, held_out_fraction=0, seed=0)
    assert np.array_equal(data.corpus.document(0)[:-1], smol_tokenizer("the only document")["input_ids"])
