"""Stored token ids: equal to new ones, verified, complete or absent, and limited in size."""

import contextlib
import json
import os
import resource
import signal
import time

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lcjax.data import Document, load_corpus, tokenize
from lcjax.data.tokenizing import growing, store
from lcjax.data.tokenizing.encoding import Encoder
from lcjax.errors import InputError
from tests.support.tokenizers_of_all_kinds import tokenizer_of

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture(autouse=True)
def _stored(monkeypatch):
    monkeypatch.delenv(store.LIMIT_VARIABLE)


@pytest.fixture
def tokenizer():
    return tokenizer_of("llama 3")


@pytest.fixture
def encodings(monkeypatch):
    """Counts how often documents were encoded instead of read."""
    found, encode = [], Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, documents: found.append(1) or encode(self, documents))
    return found


def documents(count=5, learned=True):
    masks = [((2, 9), (11, 14)), None] if learned else [None]
    return [Document(f"d{i}", f"document {i} of the seven boats", masks[i % len(masks)]) for i in range(count)]


def equal(first, second):
    arrays = ("tokens", "offsets", "learned")
    return first.names == second.names and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays
    )


def replace(path, content):
    """Replaces a file that may be memory-mapped."""
    path.unlink()
    path.write_bytes(content)


def files():
    return sorted(path.name for path in store.folder().iterdir())


@pytest.mark.parametrize("learned", [False, True])
def test_a_second_run_reads_what_the_first_has_stored(tokenizer, encodings, learned):
    fresh = tokenize(documents(learned=learned), tokenizer)
    first = tokenize(documents(learned=learned), tokenizer, stored=True)
    assert len(encodings) == 2
    second = tokenize(documents(learned=learned), tokenizer, stored=True)
    assert len(encodings) == 2
    assert (first.was_stored, second.was_stored) == (False, True)
    for corpus in (first, second):
        assert equal(corpus, fresh)
        assert (corpus.learned is None) == (not learned)
        assert isinstance(corpus.tokens.base, np.memmap)  # on disk, not in memory
        assert corpus.tokens.dtype == np.int32
    assert len(files()) == 1


def test_another_tokenizer_text_mask_or_order_is_another_file(tokenizer, encodings):
    def changed(at, **changes):
        others = documents()
        fields = {"name": "d", "text": others[at].text, "learned": others[at].learned, "is_rendered": False}
        others[at] = Document(**(fields | changes))
        return others

    tokenize(documents(), tokenizer, stored=True)
    variants = [
        (changed(3, text=documents()[3].text + " "), tokenizer, {}),
        (changed(0, learned=((2, 9), (11, 15))), tokenizer, {}),
        (changed(3, is_rendered=True), tokenizer, {}),
        (documents()[::-1], tokenizer, {}),
        (documents(4), tokenizer, {}),
        (documents(), tokenizer_of("qwen 2"), {}),
        (documents(), tokenizer, {"append_eos": False}),
    ]
    for number, (data, other, options) in enumerate(variants, start=2):
        assert not tokenize(data, other, stored=True, **options).was_stored
        assert len(files()) == number
    renamed = [Document("x" + document.name, document.text, document.learned) for document in documents()]
    corpus = tokenize(renamed, tokenizer, stored=True)
    assert corpus.was_stored
    assert corpus.names[0] == "xd0"


def test_a_tokenizer_that_is_loaded_again_is_the_same_one(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = [PreTrainedTokenizerFast.from_pretrained(tmp_path) for _ in range(3)]
    assert [tokenize(documents(), each, stored=True).was_stored for each in loaded] == [False, True, True]


@pytest.mark.parametrize("place", [3, 40, 300, -30, -3])
def test_a_flipped_bit_is_found_and_the_file_is_rewritten(tokenizer, caplog, place):
    expected = tokenize(documents(40), tokenizer, stored=True)
    [path] = store.folder().iterdir()
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 4
    replace(path, damaged)
    corpus = tokenize(documents(40), tokenizer, stored=True)
    assert not corpus.was_stored
    assert equal(corpus, expected)
    assert "are damaged; the text is encoded again" in caplog.text
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 300, b"[]".ljust(256), b'{"crc32": 1}'.ljust(255) + b"\n"])
def test_a_file_of_anything_else_is_replaced(tokenizer, content):
    tokenize(documents(), tokenizer, stored=True)
    [path] = store.folder().iterdir()
    for broken in (content, path.read_bytes()[:-8], path.read_bytes() + b"\0" * 8):
        replace(path, broken)
        assert not tokenize(documents(), tokenizer, stored=True).was_stored
        assert tokenize(documents(), tokenizer, stored=True).was_stored


def test_a_header_of_huge_numbers_is_no_file(tokenizer):
    tokenize(documents(), tokenizer, stored=True)
    [path] = store.folder().iterdir()
    content = path.read_bytes()
    header = json.loads(content[: store.HEADER_BYTES])
    for change in ({"tokens": 10**18}, {"tokens": -1}, {"documents": "5"}, {"key": "0" * 32}, {"has_masks": False}):
        replace(path, json.dumps(header | change).encode().ljust(store.HEADER_BYTES) + content[store.HEADER_BYTES :])
        assert not tokenize(documents(), tokenizer, stored=True).was_stored


def test_a_cache_that_cannot_be_written_is_one_warning(tokenizer, tmp_path, monkeypatch, caplog):
    expected = tokenize(documents(), tokenizer)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # also fails for root
    assert equal(tokenize(documents(), tokenizer, stored=True), expected)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the tokens are not stored for the next run" in caplog.text
    assert "Not a directory" in caplog.text


@contextlib.contextmanager
def files_of_at_most(size):
    """Limits the size of files, which has the effect of a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.9, 0.999])
def test_a_disk_that_fills_up_is_one_warning(tokenizer, caplog, share):
    expected = tokenize(documents(200), tokenizer, stored=True)
    [path] = store.folder().iterdir()
    size = path.stat().st_size
    path.unlink()
    with files_of_at_most(int(share * size)):
        corpus = tokenize(documents(200), tokenizer, stored=True)
    assert equal(corpus, expected)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot be written" in caplog.text
    assert files() == []
    assert not tokenize(documents(200), tokenizer, stored=True).was_stored


def test_what_ends_a_run_leaves_no_file(tokenizer):
    with pytest.raises(InputError, match="vocab_size is 2"):
        tokenize(documents(), tokenizer, stored=True, vocab_size=2)
    assert files() == []


def test_ids_that_are_read_are_checked_as_well(tokenizer):
    corpus = tokenize(documents(), tokenizer, stored=True)
    largest = int(corpus.tokens.max())
    assert tokenize(documents(), tokenizer, stored=True, vocab_size=largest + 1).was_stored
    with pytest.raises(InputError, match=f"produces id {largest} in d0, but the model's vocab_size is {largest}; use"):
        tokenize(documents(), tokenizer, stored=True, vocab_size=largest)


def test_the_oldest_files_are_removed_above_the_limit(tokenizer, monkeypatch):
    def is_stored(count):
        return tokenize(documents(count), tokenizer, stored=True).was_stored

    for age, count in ((30, 5), (20, 6), (10, 7)):
        assert not is_stored(count)
        newest = max(store.folder().iterdir(), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (time.time() - age, time.time() - age))
    assert is_stored(5)  # a read makes it the most recent
    size = sum(path.stat().st_size for path in store.folder().iterdir())
    monkeypatch.setenv(store.LIMIT_VARIABLE, str(size / 1e9))
    assert not is_stored(4)
    assert is_stored(5)
    assert is_stored(7)
    assert not is_stored(6)


def test_a_corpus_beyond_the_limit_is_used_and_not_stored(tokenizer, monkeypatch):
    expected = tokenize(documents(), tokenizer)
    monkeypatch.setenv(store.LIMIT_VARIABLE, "1e-9")
    assert equal(tokenize(documents(), tokenizer, stored=True), expected)
    assert files() == []
    monkeypatch.setenv(store.LIMIT_VARIABLE, "0")
    assert not isinstance(tokenize(documents(), tokenizer, stored=True).tokens.base, np.memmap)


@pytest.mark.parametrize("given", ["many", "-1", "nan", "inf"])
def test_a_limit_that_is_not_a_number_is_refused(tokenizer, monkeypatch, given):
    monkeypatch.setenv(store.LIMIT_VARIABLE, given)
    with pytest.raises(InputError, match=f"LCJAX_TOKEN_CACHE_GB={given} is not a number of gigabytes; set it to"):
        tokenize(documents(), tokenizer, stored=True)


def test_only_files_of_dead_processes_are_removed(tokenizer, monkeypatch):
    monkeypatch.setattr(store, "UNLOCKED_SECONDS", -1)
    living = store.UnfinishedFile("0" * 32)
    dead = store.folder() / f"{'1' * 32}.x.unfinished"
    dead.write_bytes(b"some")
    tokenize(documents(), tokenizer, stored=True)
    assert not dead.exists()
    living.add(np.arange(3, dtype=np.int32))
    stored = living.finish(np.array([0, 3]), None)
    living.discard()
    assert stored.tokens.tolist() == [0, 1, 2]
    assert len(files()) == 2


def test_two_processes_can_store_the_same_tokens(tokenizer):
    expected = tokenize(documents(), tokenizer, append_eos=False)
    key = "2" * 32
    with growing.GrowingTokens(key) as first, growing.GrowingTokens(key) as second:
        for writer in (first, second):
            for i in range(len(expected)):
                writer.add(expected.document(i), None, ends_document=True)
        found = [first.finish(), second.finish(), store.find(key)]
    assert all(np.array_equal(each.tokens, expected.tokens) for each in found if each is not None)
    assert found[2] is not None
    assert len(files()) == 1


def test_a_run_is_the_same_with_stored_tokens(tokenizer, tmp_path, monkeypatch):
    for i in range(8):
        (tmp_path / f"{i}.txt").write_text(f"document {i} of the seven boats, " * 5)
    chat = {"prompt": "the river", "completion": " carries seven boats"}
    (tmp_path / "a.jsonl").write_text(json.dumps(chat) + "\n")

    def load():
        return load_corpus([tmp_path], tokenizer, 32, held_out_fraction=0.2, seed=3)

    first, second = load(), load()
    monkeypatch.setenv(store.LIMIT_VARIABLE, "0")
    without = load()
    cached = "; tokenized by an earlier run, read from the cache"
    assert second.summary() == first.summary() + cached
    assert without.summary() == first.summary()
    assert first.fingerprint() == second.fingerprint() == without.fingerprint()
    batches = [data.train_dataset(2) for data in (first, second, without)]
    for step in range(len(first.train_plan)):
        expected, *others = [dataset[step] or {} for dataset in batches]
        assert set(expected) == {"tokens", "labels", "positions", "segment_ids", "rows"}
        assert all(np.array_equal(other[name], expected[name]) for other in others for name in expected)
