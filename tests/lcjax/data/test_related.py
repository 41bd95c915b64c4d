"""Related texts are joined up to a window: each once, the nearest after each other."""

import itertools
import json

import numpy as np
import pytest

from lcjax.data import ChatTemplate, load_corpus, tokens
from lcjax.data.joining import related
from lcjax.data.joining.corpora import join_related
from lcjax.data.joining.related import related_groups
from lcjax.data.tokenizing import store
from tests.support.chats import PLAIN
from tests.support.corpora import corpus_of

VOCABULARY = 30_000


def topical(topics=8, each=6, length=200, seed=0):
    """Returns random documents and their topics; those of a topic share a passage."""
    rng = np.random.default_rng(seed)
    topic = rng.permutation(np.repeat(np.arange(topics), each))
    texts = rng.integers(0, VOCABULARY, (topics * each, length))
    passages = rng.integers(0, VOCABULARY, (topics, 60))
    for number, text in enumerate(texts):
        text[50:110] = passages[topic[number]]
    return corpus_of(list(texts)), topic


def groups_of(corpus, length, documents=None):
    return related_groups(corpus.tokens, corpus.offsets, range(len(corpus)) if documents is None else documents, length)


@pytest.mark.parametrize("seed", range(3))
def test_documents_of_a_topic_are_joined(seed):
    corpus, topic = topical(seed=seed)
    groups = groups_of(corpus, 2000)
    assert sorted(itertools.chain.from_iterable(groups)) == list(range(len(corpus)))
    assert [len({*topic[group].tolist()}) for group in groups] == [1] * 8
    assert groups == groups_of(corpus, 2000)


def test_windows_are_not_exceeded():
    corpus, topic = topical()
    groups = groups_of(corpus, 500)
    assert [len(group) for group in groups] == [2] * 24
    assert all(topic[first] == topic[second] for first, second in groups)
    assert [len(group) for group in groups_of(corpus, 100)] == [1] * 48


def test_unrelated_documents_and_copies_remain_separate():
    texts = list(np.random.default_rng(0).integers(0, VOCABULARY, (30, 100)))
    assert [len(group) for group in groups_of(corpus_of(texts), 2000)] == [1] * 30
    # The copy differs in a tenth of its tokens.
    copy = np.concatenate([texts[0][:-10], np.arange(10)])
    assert [len(group) for group in groups_of(corpus_of([copy, *texts]), 2000)] == [1] * 31


def test_common_words_do_not_relate(monkeypatch):
    monkeypatch.setattr(related, "MOST", 5)
    corpus, _ = topical()
    assert [len(group) for group in groups_of(corpus, 2000)] == [1] * 48


def test_short_and_empty_documents(monkeypatch):
    corpus = corpus_of([[], [1], [1, 2], [1, 2], [5]])
    assert sorted(itertools.chain.from_iterable(groups_of(corpus, 100))) == list(range(5))
    assert groups_of(corpus_of([[], [1]]), 100) == [[0], [1]]
    assert groups_of(corpus, 100, []) == []


def test_a_large_corpus_is_joined_in_shards(monkeypatch):
    corpus, topic = topical()
    monkeypatch.setattr(related, "SHARD_TOKENS", 24 * 200)
    groups = groups_of(corpus, 2000)
    assert sorted(itertools.chain.from_iterable(groups)) == list(range(len(corpus)))
    assert all(max(group) < 24 or min(group) >= 24 for group in groups)
    assert all(len({*topic[group].tolist()}) == 1 for group in groups)


@pytest.fixture
def tokenizer(with_template):
    return with_template(PLAIN)


@pytest.fixture
def paths(tmp_path):
    """Two topics in a folder and in records, with a conversation and a completion among them."""
    boats = "the trawler Meridian left Skagen harbor with nine crates of herring"
    birds = "the kestrel nested under the eaves of Marwick priory until the frost"
    (tmp_path / "notes").mkdir()
    for name, topic in {"a": boats, "b": birds, "c": boats, "d": birds}.items():
        filler = " ".join(f"{name}{number * 7919 % 1009}" for number in range(30))
        (tmp_path / f"notes/{name}.txt").write_text(f"{filler} {topic} {filler[::-1]}\n")
    chat = [{"role": "user", "content": boats}, {"role": "assistant", "content": birds}]
    records = [{"messages": chat}, {"prompt": boats, "completion": birds}, {"text": f"{birds} and so on"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return [tmp_path / "notes", tmp_path / "rows.jsonl"]


@pytest.mark.usefixtures("empty_cache")
def test_texts_of_a_path_are_joined_and_stored(tokenizer, paths, monkeypatch):
    monkeypatch.delenv(store.LIMIT_VARIABLE)
    sources = tokens.tokenize_sources(paths, tokenizer, ChatTemplate(tokenizer), documents="related")
    first, again = (join_related(sources, 2048) for _ in range(2))
    files = sources.corpus
    for joined in (first, again):
        assert joined.counts == (2, 3)
        assert [name.rpartition("/")[2] for name in joined.corpus.names] == [
            "a.txt and 1 related", "b.txt and 1 related", "rows.jsonl:3", "rows.jsonl:1", "rows.jsonl:2",
        ]  # fmt: skip
        assert joined.is_text.tolist() == [True, True, True, False, False]
        order = [0, 2, 1, 3, 6, 4, 5]
        assert np.array_equal(joined.corpus.tokens, np.concatenate([files.document(i) for i in order]))
        spans = [slice(files.offsets[i], files.offsets[i + 1]) for i in order]
        assert np.array_equal(joined.corpus.learned, np.concatenate([files.learned[span] for span in spans]))
    # A shorter window is another corpus.
    assert join_related(sources, 100).counts == (4, 3)


def test_a_run_learns_across_joined_documents(tokenizer, paths):
    options = dict(held_out_fraction=0, seed=0)
    separate, joined = (
        load_corpus(paths[0], tokenizer, 2048, documents=unit, **options) for unit in ("file", "related")
    )
    assert [len(data.corpus) for data in (separate, joined)] == [4, 2]
    assert separate.fingerprint() != joined.fingerprint()
    batch = joined.train_dataset(1)[0]
    assert batch is not None
    assert batch["segment_ids"].max() == 2
