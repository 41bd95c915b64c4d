"""Encoding a text in parts gives the ids of the whole text, for every kind of tokenizer."""

import random

import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers

from lcjax.data import Document, tokenize
from lcjax.data.tokenizing import cuts, encoding
from lcjax.data.tokenizing.adjacency import Adjacency, NotUnderstood
from lcjax.data.tokenizing.cuts import Cuts
from tests.support.tokenizers_of_all_kinds import DEEPSEEK, GPT4O, KINDS, LLAMA3, UNCUT, text, tokenizer_of

LONG_RUNS = [
    "a" * 300,
    " " * 300,
    "\n" * 300,
    "1" * 301,
    "ab" * 150,
    "\r\n" * 150,
    "a b" * 100,
    "。" * 300,
    "\u0301" * 300,
]


def texts(count, fragments=60):
    draw = random.Random(7)
    mixed = [text(draw, fragments) for _ in range(count)]
    return (
        mixed + LONG_RUNS + [first + run + last for run, first, last in zip(LONG_RUNS, mixed, mixed[1:], strict=False)]
    )


def whole(tokenizer, content):
    return tokenizer.backend_tokenizer.encode(content, add_special_tokens=False).ids


def in_parts(tokenizer, content, length):
    """Returns the ids of the parts, and the number of parts."""
    parts = list(Cuts(tokenizer.backend_tokenizer).parts(content, length))
    return [i for start, stop in parts for i in whole(tokenizer, content[start:stop])], len(parts)


def differing(tokenizer, contents, length):
    """Returns how many texts have different ids in parts, and the total number of parts."""
    found = [(in_parts(tokenizer, content, length), whole(tokenizer, content)) for content in contents]
    return sum(ids != expected for (ids, _), expected in found), sum(count for (_, count), _ in found)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_give_the_ids_of_the_whole(kind, monkeypatch):
    monkeypatch.setattr(cuts, "TRIED_CHARACTERS", 0)  # no trial, only the analysis of the tokenizer
    contents = texts(60)
    wrong, parts = differing(tokenizer_of(kind), contents, 8)
    assert wrong == 0
    assert (parts > 4 * len(contents)) == (kind not in UNCUT)


def test_cutting_anywhere_changes_ids():
    for kind in KINDS:
        tokenizer = tokenizer_of(kind)
        found = (
            [i for start in range(0, len(content), 4) for i in whole(tokenizer, content[start : start + 4])]
            != whole(tokenizer, content)
            for content in texts(20)
        )
        assert any(found), kind


def test_a_match_may_extend_far_beyond_a_cut():
    # A quotation that starts long before the cut and ends long after it is one word.
    tokenizer, content = tokenizer_of("quotations"), 'he said "' + "word and " * 200 + 'so" and left'
    cut = content.index(" and", 900)
    near = content[cut - 256 : cut], content[cut : cut + 256]
    assert whole(tokenizer, "".join(near)) == whole(tokenizer, near[0]) + whole(tokenizer, near[1])
    assert whole(tokenizer, content) != whole(tokenizer, content[:cut]) + whole(tokenizer, content[cut:])
    assert in_parts(tokenizer, content, 600) == (whole(tokenizer, content), 1)


def test_a_tokenizer_that_deviates_from_its_definition_is_not_cut(monkeypatch):
    monkeypatch.setattr(Cuts, "cut_is_safe", lambda self, *characters: True)
    for kind in ("llama 3", "llama 2", "unigram", "bert"):
        wrong, parts = differing(tokenizer_of(kind), ["the boat of the seven rivers, " * 20], 7)
        assert wrong == 0
        assert parts > 20


def test_a_text_without_a_cut_is_one_part_up_to_the_first():
    tokenizer = tokenizer_of("llama 3")
    parts = list(Cuts(tokenizer.backend_tokenizer).parts("a" * 500 + " b" * 100, 50))
    assert parts[0] == (0, 500)
    assert all(stop - start <= 50 for start, stop in parts[1:])
    assert [start for start, _ in parts[1:]] == [stop for _, stop in parts[:-1]]


@pytest.mark.parametrize(
    "kind", ["byte-level", "llama 2", "llama 3", "metaspace", "unigram", "bert", "digits", "quotations"]
)
@pytest.mark.parametrize("is_rendered", [False, True])
def test_documents_in_parts_have_the_ids_and_masks_of_whole_ones(kind, is_rendered, monkeypatch):
    draw = random.Random(1)
    documents = []
    for number, content in enumerate(texts(30)):
        ends = sorted(draw.sample(range(len(content) + 1), 4)) if len(content) > 3 else []
        learned = ((ends[0], ends[1]), (ends[2], ends[3])) if ends and number % 2 else None
        documents.append(Document(str(number), content, learned, is_rendered))
    documents.append(Document("eos", "a b c d e f g h</s>", None, is_rendered))
    documents.append(Document("spaces", "a" + " " * 40, ((0, 41),), is_rendered))
    expected = tokenize(documents, tokenizer_of(kind))
    monkeypatch.setattr(encoding, "PART_CHARACTERS", 8)
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 100)
    found = tokenize(documents, tokenizer_of(kind))
    assert np.array_equal(found.tokens, expected.tokens)
    assert np.array_equal(found.offsets, expected.offsets)
    assert expected.learned is not None
    assert found.learned is not None
    assert np.array_equal(found.learned, expected.learned)
    for document, ids in zip(documents, map(found.document, range(len(documents))), strict=True):
        bare = tokenizer_of(kind).backend_tokenizer.encode(document.text, add_special_tokens=not is_rendered).ids
        assert ids.tolist()[: len(bare)] == bare


NOT_UNDERSTOOD = [r"\bword", r"^a|b", r"a$", r"(?<!a)b", r"(a)\1", "a*", "a|b?", r"\Ga", "[a", "(a", "a)", "(?x) a"]
UNDERSTOOD = [
    LLAMA3,
    GPT4O,
    DEEPSEEK,
    r"(?:ab)+|a?c{2,3}|\s+(?!\S)|(?>x+y)|\p{N}{1,3}(?=\d|z)|a?+a",
    r"(?i:'s|ss)|.[^\w]*?",
]


@pytest.mark.parametrize("pattern", NOT_UNDERSTOOD)
def test_expressions_that_are_not_understood_are_refused(pattern):
    with pytest.raises(NotUnderstood):
        Adjacency(pattern)


@pytest.mark.parametrize("pattern", UNDERSTOOD)
def test_a_match_never_spans_a_pair_that_is_not_read_together(pattern):
    adjacency, split = Adjacency(pattern), pre_tokenizers.Split(Regex(pattern), "isolated")
    apart = 0
    for content in texts(200, fragments=20):
        inside = {at for _, (start, stop) in split.pre_tokenize_str(content) for at in range(start + 1, stop)}
        for at in range(1, len(content)):
            left, right = content[at - 1], content[at]
            if not adjacency.reads_both(left, right):
                apart += 1
                sure = adjacency.surely_matches(left) or adjacency.surely_matches(right)
                assert not (sure and at in inside), (content, at)
    assert apart > 100
