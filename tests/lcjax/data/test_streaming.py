"""Documents are tokenized while they are read, and files with known content are not read again."""

import json
import os
import threading

import numpy as np
import pytest

from lcjax.data import ChatTemplate, read_sources, tokenize, tokens
from lcjax.data.tokenizing import encoding, growing, store
from tests.support.chats import PLAIN

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture(autouse=True)
def _stored(monkeypatch):
    monkeypatch.delenv(store.LIMIT_VARIABLE)


@pytest.fixture
def tokenizer(with_template):
    return with_template(PLAIN)


@pytest.fixture
def paths(tmp_path):
    """A folder, a text and records: some with masks, one bad and one empty."""
    folder = tmp_path / "data"
    for name in ("docs/b.txt", "docs/a.py", "long.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}: seven small boats past the river\n" * (1000 if name == "long.txt" else 3))
    (folder / "docs/blank.txt").write_text(" \n")
    (folder / "docs/image.png").write_bytes(b"\0")
    chat = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "Four."}]
    records = [{"text": "a river"}, {"messages": chat}, {"prompt": "p", "completion": "c"}, {"id": 1}, {"text": "é\n"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return [folder / "docs", folder / "rows.jsonl", folder / "long.txt"]


def read(paths, tokenizer, **options):
    return tokens.tokenize_sources(paths, tokenizer, ChatTemplate(tokenizer), **options)


def assert_equal(found, paths, tokenizer):
    sources = read_sources(paths, ChatTemplate(tokenizer))
    documents = [document for source in sources for document in source]
    expected = tokenize(documents, tokenizer)
    assert found.counts == tuple(map(len, sources))
    assert list(found.corpus.names) == list(expected.names)
    assert found.is_text.tolist() == [document.learned is None and not document.is_rendered for document in documents]
    for name in ("tokens", "offsets", "learned"):
        assert np.array_equal(getattr(found.corpus, name), getattr(expected, name))


@pytest.fixture
def readings(monkeypatch):
    """Counts how often the paths were read."""
    found, iterate = [], tokens.iterate_sources
    monkeypatch.setattr(tokens, "iterate_sources", lambda *args: found.append(1) or iterate(*args))
    return found


def test_the_tokens_are_those_of_all_documents_and_the_second_run_reads_nothing(
    tokenizer, paths, readings, caplog, monkeypatch
):
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 1000)  # many batches
    first = read(paths, tokenizer)
    warnings = list(caplog.messages)
    assert any("skipped 1 bad records of 5" in line for line in warnings)
    assert any("skipped 1 files" in line for line in warnings)
    caplog.clear()
    second = read(paths, tokenizer)
    assert caplog.messages == warnings
    assert (len(readings), first.corpus.was_stored, second.corpus.was_stored) == (1, False, True)
    assert isinstance(second.corpus.tokens.base, np.memmap)
    for found in (first, second):
        assert_equal(found, paths, tokenizer)
    assert second.corpus.names[-1] == str(paths[2])
    assert second.corpus.names[1:3] == list(first.corpus.names)[1:3]


def test_a_change_of_anything_is_read_again(tokenizer, with_template, paths, readings):
    read(paths, tokenizer)
    changes = [
        lambda: (paths[1].write_text(paths[1].read_text().replace("river", "rover")), tokenizer)[1],
        lambda: (os.utime(paths[1]), (paths[0] / "new.txt").write_text("new"), tokenizer)[2],
        lambda: (paths.reverse(), tokenizer)[1],
        lambda: with_template(PLAIN.replace("brief", "long")),
    ]
    for count, change in enumerate(changes, start=2):
        changed = change()
        assert_equal(read(paths, changed), paths, changed)
        assert len(readings) == count
        assert read(paths, changed).corpus.was_stored
        assert len(readings) == count
    os.utime(paths[1])  # the content is the same
    assert read(paths, changed).corpus.was_stored


@pytest.mark.parametrize("suffix", [".tokens", store.CONTENTS_SUFFIX])
@pytest.mark.parametrize("place", [2, 40, -3])
def test_damaged_files_are_written_again(tokenizer, paths, suffix, place):
    read(paths, tokenizer)
    [path] = store.folder().glob(f"*{suffix}")
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.unlink()
    path.write_bytes(content)
    assert_equal(read(paths, tokenizer), paths, tokenizer)
    assert read(paths, tokenizer).corpus.was_stored


def test_files_that_change_while_they_are_read_are_not_stored(tokenizer, paths, monkeypatch):
    iterate = tokens.iterate_sources

    def changing(*args):
        yield from iterate(*args)
        paths[1].write_text(json.dumps({"text": "other"}) + "\n")

    monkeypatch.setattr(tokens, "iterate_sources", changing)
    assert not read(paths, tokenizer).corpus.was_stored
    monkeypatch.setattr(tokens, "iterate_sources", iterate)
    assert_equal(read(paths, tokenizer), paths, tokenizer)


def test_a_pipe_is_read_once(tokenizer, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("seven boats",))
    writer.start()
    found = read([pipe], tokenizer)
    writer.join()
    assert tokenizer.decode(found.corpus.tokens.tolist()).startswith("seven boats")


def test_contents_without_tokens_are_removed(tokenizer, paths):
    read(paths, tokenizer)
    [path] = store.folder().glob("*.tokens")
    path.unlink()
    read(paths[:1], tokenizer)
    assert len(list(store.folder().iterdir())) == 2


def test_masks_are_those_that_were_added():
    with growing.GrowingTokens(None) as collected:
        parts = [np.arange(n % 7, dtype=np.int32) for n in range(100)]
        masks = [None if n % 3 else np.arange(len(part)) % 2 == 0 for n, part in enumerate(parts)]
        for part, mask in zip(parts, masks, strict=True):
            collected.add(part, mask, ends_document=True)
        found = collected.finish()
    expected = [np.ones(len(part), bool) if mask is None else mask for part, mask in zip(parts, masks, strict=True)]
    assert np.array_equal(found.learned, np.concatenate(expected))
    assert np.array_equal(found.tokens, np.concatenate(parts))


def test_the_tokens_of_repositories_are_stored(tokenizer, paths):
    separate = read(paths[:1], tokenizer)
    (paths[0] / ".git").mkdir()
    found = [read(paths[:1], tokenizer, documents="repository") for _ in range(2)]
    assert [each.corpus.was_stored for each in found] == [False, True]
    assert [each.counts for each in found] == [(1,), (1,)]
    assert found[1].is_text.tolist() == [True]
    assert len(separate.corpus) > 1
    # A repository further down is another document, although no file has changed.
    (paths[0] / "sub/.git").mkdir(parents=True)
    (paths[0] / "sub/c.py").write_text("import a")
    whole = read(paths[:1], tokenizer, documents="repository")
    (paths[0] / ".git").rmdir()
    assert len(read(paths[:1], tokenizer, documents="repository").corpus) > len(whole.corpus) == 1
