"""Joining is advised where texts refer to each other, and not for the same text shuffled."""

import json

import numpy as np
import pytest

from lcjax.audit.__main__ import main
from lcjax.audit.advice import advice_on_joining
from lcjax.audit.joining import Comparison, Joining, compare, of_lengths
from lcjax.data import TokenizedCorpus
from tests.support.corpora import corpus_of, shuffled

LENGTH = 1200
WINDOW = 8192


@pytest.fixture
def library(tmp_path):
    """Returns a corpus of 16 folders with four files each, which share passages."""
    rng = np.random.default_rng(0)
    texts, names = [], []
    for folder in range(16):
        (tmp_path / f"f{folder}").mkdir()
        passages = rng.integers(0, 30_000, (12, 20))
        for number in range(4):
            path = tmp_path / f"f{folder}" / f"c{number}.py"
            path.write_text(f"import c{number - 1}" if number else "")
            text = rng.integers(0, 30_000, LENGTH)
            for start, passage in zip(range(30, LENGTH, 100), passages, strict=True):
                text[start : start + 20] = passage
            texts.append(text)
            names.append(str(path))
    corpus = corpus_of(texts)
    return TokenizedCorpus(corpus.tokens, corpus.offsets, names)


def ways(comparison):
    return {way.documents: way for way in comparison.joinings}


def test_texts_that_share_passages_are_to_be_joined(library, tmp_path):
    comparison = compare(library, [str(tmp_path)], WINDOW)
    found = ways(comparison)
    assert comparison.separate == 0
    assert {name: way.number for name, way in found.items()} == {"folder": 16, "repository": 1, "related": 16}
    # In each folder, three of four files repeat 12 passages, each with 17 n-grams.
    assert found["folder"].repeats == pytest.approx(3 * 12 * 17 / (4 * LENGTH), rel=0.01)
    assert all(found[name].gain > 0.08 for name in ("folder", "related"))
    assert advice_on_joining(comparison).startswith("--documents ")
    assert "helps: 12.8% of the tokens repeat text" in advice_on_joining(comparison)


def test_shuffled_text_is_not_to_be_joined(library, tmp_path):
    comparison = compare(shuffled(library, block=100), [str(tmp_path)], WINDOW)
    assert all(way.gain < 0.005 for way in comparison.joinings)
    assert advice_on_joining(comparison).startswith("joining texts does not help, so use --documents file: at best, ")


def test_unrelated_texts_are_not_to_be_joined(tmp_path):
    texts = list(np.random.default_rng(0).integers(0, 3000, (64, LENGTH)))
    comparison = compare(corpus_of(texts), [str(tmp_path)], WINDOW)
    assert all(abs(way.gain) < 0.005 for way in comparison.joinings)
    assert "--documents file" in advice_on_joining(comparison)


def test_roots_are_joined_in_the_order_of_their_imports(library, tmp_path, monkeypatch):
    for folder in tmp_path.iterdir():
        (folder / ".git").mkdir()
    found = ways(compare(library, [str(tmp_path)], WINDOW))
    assert found["repository"].number == 16
    assert found["repository"].repeats == found["folder"].repeats


def test_only_the_beginning_of_much_text_is_counted(library, tmp_path):
    comparison = compare(library, [str(tmp_path)], WINDOW, max_tokens=10 * LENGTH + 1)
    assert comparison.tokens == 10 * LENGTH
    assert ways(comparison)["folder"].number == 3
    assert compare(library, [str(tmp_path)], WINDOW, max_tokens=1).tokens == LENGTH


def test_a_single_window_has_no_control(library, tmp_path):
    words = advice_on_joining(compare(library, [str(tmp_path)], 131_072))
    assert words.startswith("all text fits in one window, so joining it cannot be compared with chance: ")


@pytest.mark.parametrize(
    ("gains", "expected"),
    [((0.02, 0.019), "--documents repository helps"), ((0.02, 0.015), "--documents folder helps"),
     ((0.004, 0.003), "joining texts does not help"), ((-0.02, -0.01), "joining texts does not help"),
     ((), "--documents file: there are no texts to join")],
)  # fmt: skip
def test_the_longer_documents_win_if_they_gain_nearly_as_much(gains, expected):
    repeats = (0.05, 0.08)
    joinings = tuple(
        Joining(name, 2, repeat, repeat - gain)
        for name, repeat, gain in zip(("folder", "repository"), repeats, gains, strict=False)
    )
    assert advice_on_joining(Comparison(10**6, WINDOW, 0.01, joinings)).startswith(expected)


def test_the_control_has_about_the_same_lengths():
    lengths = np.random.default_rng(0).integers(1, 100, 200)
    order = np.random.default_rng(1).permutation(200).tolist()
    totals = [int(part.sum()) for part in np.split(lengths, 10)]
    groups = list(of_lengths(totals, order, lengths))
    assert [number for group in groups for number in group] == order
    assert all(abs(lengths[group].sum() - total) < 100 for group, total in zip(groups, totals, strict=True))


def test_the_command_compares(tmp_path, capsys):
    words = "the trawler Meridian left Skagen harbor with nine crates of herring and a broken winch".split()
    for number in range(6):
        (tmp_path / f"c{number}.txt").write_text(" ".join(f"{word}{number}" for word in words * 40))
    arguments = [str(tmp_path), "--max-seq-length", "4096", "--json", str(tmp_path / "audit.json")]
    for unit in ("file", "folder"):
        assert main([*arguments, "--documents", unit]) == 0
        found = json.loads((tmp_path / "audit.json").read_text())
        (tmp_path / "audit.json").unlink()
        assert [way["documents"] for way in found["joining"]["joinings"]][:2] == ["folder", "repository"]
        assert "- joining texts does not help" in capsys.readouterr().out
    assert main([*arguments[:1], "--max-seq-length", "2048"]) == 0
    assert "joining" not in capsys.readouterr().out
