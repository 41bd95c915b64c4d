"""Data sets of the hub, from a local server: subsets, splits, downloads and refusals."""

import io
import json

import pyarrow
import pytest
from huggingface_hub import close_session, constants
from pyarrow import parquet

from lcjax.data import check_data_paths, read_documents
from lcjax.data.reading.hub import hub_data
from lcjax.errors import InputError
from tests.support.dataset_hub import dataset_hub


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def table(*texts):
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": list(texts)}), sink)
    return sink.getvalue()


CARD = """---
license: mit
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: [main/test-*]
- config_name: other
  data_files: "other/**"
---
A data set.
"""
REPOSITORIES = {
    "a/with-card": {
        "README.md": CARD.encode(),
        "loader.py": b"raise SystemExit('this is never run')",
        "main/train-00000-of-00002.parquet": table("one", "two"),
        "main/train-00001-of-00002.parquet": table("three"),
        "main/test-00000-of-00001.parquet": table("four"),
        "other/deep/x.jsonl": lines("five"),
    },
    "a/by-name-1.5": {
        "train.jsonl": lines("six"),
        "data/valid_1.jsonl": lines("seven"),
        "README.md": b"---\nnot: [yaml\n---\n",
        "dataset_infos.json": b"{}",
    },
    "a/plain": {"alpaca.json": json.dumps([{"instruction": "i", "output": "o"}]).encode(), ".gitattributes": b""},
    "a/script": {"script.py": b"raise SystemExit", "README.md": b"x"},
    "a/script@convert": {
        ".gitattributes": b"",
        "main/train/0000.parquet": table("eight"),
        "main/partial-test/0000.parquet": table("nine"),
    },
    "a/empty": {"image.png": b"\x89"},
    "a/two": {
        "README.md": b"---\nconfigs:\n- config_name: x\n  data_files: x.jsonl\n- config_name: y\n  data_files: y.jsonl\n---\n",
        "x.jsonl": lines("ten"),
        "y.jsonl": lines("eleven"),
    },
}


@pytest.fixture(scope="module")
def server():
    with dataset_hub(REPOSITORIES) as (address, sent):
        yield address, sent


@pytest.fixture
def sent(server, tmp_path, monkeypatch):
    """The names of files that the hub has sent; the cache is empty."""
    close_session()  # one that another test has opened may have its proxy
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", server[0])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server[0] + "/{repo_id}/resolve/{revision}/{filename}"
    )
    server[1].clear()
    return server[1]


def texts(name, **options):
    return [document.text for document in read_documents([name], **options)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/with-card", ["one", "two", "three"]),
        ("hf://datasets/a/with-card:train", ["one", "two", "three"]),
        ("a/with-card:test", ["four"]),
        ("a/with-card:main/test", ["four"]),
        ("a/with-card:other", ["five"]),
        ("a/with-card:other/train", ["five"]),
        ("a/by-name-1.5", ["six"]),
        ("a/by-name-1.5:validation", ["seven"]),
        ("a/script", ["eight"]),
        ("a/script:test", ["nine"]),
        ("a/two:y", ["eleven"]),
    ],
)
def test_a_split_of_a_data_set_is_downloaded_and_read(sent, name, expected):
    check_data_paths([name])
    assert texts(name) == expected
    assert not any(file.endswith(".py") for file in sent)


def test_only_the_files_of_the_split_are_downloaded_and_only_once(sent):
    assert texts("a/with-card:test") == ["four"]
    assert sorted(sent) == ["README.md", "main/test-00000-of-00001.parquet"]
    assert texts("a/with-card:test") == ["four"]
    assert len(sent) == 2


def test_names_of_documents_and_columns_are_those_of_the_data_set(sent):
    [document] = read_documents(["a/plain"], columns=["completion=output", "prompt=instruction"])
    assert (document.name, document.text) == ("a/plain/alpaca.json:1", "io")


def test_a_download_is_found_without_a_network(sent, monkeypatch):
    assert texts("a/with-card:test") == ["four"]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert texts("a/with-card:test") == ["four"]
    with pytest.raises(InputError, match="the data set a/with-card has no split train; give one of a/with-card:test"):
        texts("a/with-card:train")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a/none", "a/none is neither a path that exists nor a data set that can be downloaded: the hub has none of"),
        (
            "a/with-card:dev",
            "the data set a/with-card has no split dev; give one of a/with-card:train, a/with-card:test",
        ),
        ("a/with-card:x/test", "the data set a/with-card has no subset x; give one of a/with-card:main, "),
        ("a/two", "the data set a/two has several subsets; give one of a/two:x, a/two:y"),
        ("a/empty", "the data set a/empty has no files that can be read"),
    ],
)
def test_what_the_hub_does_not_have_is_refused(sent, name, said):
    with pytest.raises(InputError) as caught:
        texts(name)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no/such.txt", "no/such/file", "missing", "a/b:c/d/e", "/a/b", "here/b", "a/b c"])
def test_what_looks_like_a_path_is_not_looked_up(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert hub_data(name) is None
    with pytest.raises(InputError, match="does not exist; check the path of the data"):
        check_data_paths([name])
