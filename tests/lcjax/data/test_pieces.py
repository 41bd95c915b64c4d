"""Encoding a text by its pieces gives the ids of the whole text, for every kind of tokenizer."""

import numpy as np
import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from lcjax.data import Document, tokenize
from lcjax.data.tokenizing import encoding, pieces
from lcjax.data.tokenizing.cuts import Cuts
from lcjax.data.tokenizing.pieces import Pieces
from tests.lcjax.data.test_cuts import texts
from tests.support.tokenizers_of_all_kinds import KINDS, tokenizer_of

# No cut is allowed, or there is none in such texts.
WHOLE = {"look-behind", "groups of digits from the right", "scripts", "unigram of one word", "quotations"}


def pieces_of(kind):
    backend = tokenizer_of(kind).backend_tokenizer
    return Pieces(backend, Cuts(backend))


def assert_same(found, contents, backend, *, with_ends):
    for (ids, ends), content in zip(found, contents, strict=True):
        whole = backend.encode(content, add_special_tokens=False)
        assert ids.tolist() == whole.ids, content
        if with_ends:
            assert ends is not None
            assert ends.tolist() == [stop for _, stop in whole.offsets], content


@pytest.mark.parametrize("kind", [kind for kind in KINDS if Cuts(tokenizer_of(kind).backend_tokenizer).is_exact])
def test_pieces_give_the_ids_of_the_whole(kind, monkeypatch):
    # No trial, only the analysis of the tokenizer.
    monkeypatch.setattr(pieces, "TRIED_CHARACTERS", 0)
    contents, backend = texts(60), tokenizer_of(kind).backend_tokenizer
    with_ends = not Cuts(backend).leave_out
    by_pieces = pieces_of(kind)
    for _ in range(2):  # encoded, then found in the table
        assert_same(by_pieces.encode(contents, with_ends=with_ends), contents, backend, with_ends=with_ends)
    found = by_pieces.encode([*contents[:3], ""])
    assert_same(found, [*contents[:3], ""], backend, with_ends=False)
    assert (len(by_pieces._ids) > 100) == (kind not in WHOLE)


def test_few_or_no_characters():
    for kind in ("llama 3", "llama 2", "metaspace", "bert"):
        contents = ["", "a", " ", "\n\n", " a", "é", "\U0010ffff", "\ufffe", "a\U0010ffff b", "a b ", "  "]
        by_pieces, backend = pieces_of(kind), tokenizer_of(kind).backend_tokenizer
        assert_same(by_pieces.encode(contents), contents, backend, with_ends=False)
        for content in contents:
            assert_same(by_pieces.encode([content]), [content], backend, with_ends=False)


def test_a_cut_that_the_tokenizer_does_not_allow_is_found_by_trial(monkeypatch):
    contents = texts(5)
    monkeypatch.setattr(Cuts, "cut_is_safe", lambda self, *characters: True)
    for kind in ("llama 3", "llama 2", "unigram", "bert"):
        backend = tokenizer_of(kind).backend_tokenizer
        content = "the boat of the seven rivers, " * 20
        assert_same(pieces_of(kind).encode([content]), [content], backend, with_ends=False)
    monkeypatch.setattr(pieces, "TRIED_CHARACTERS", 0)
    backend = tokenizer_of("llama 3").backend_tokenizer
    with pytest.raises(AssertionError):
        assert_same(pieces_of("llama 3").encode(contents), contents, backend, with_ends=False)


def test_the_table_is_bounded(monkeypatch):
    monkeypatch.setattr(pieces, "MOST_PIECES", 50)
    monkeypatch.setattr(pieces, "LONGEST_PIECE", 4)
    by_pieces, backend, contents = pieces_of("llama 3"), tokenizer_of("llama 3").backend_tokenizer, texts(40)
    for content in contents:
        assert_same(by_pieces.encode([content], with_ends=True), [content], backend, with_ends=True)
        assert len(by_pieces._ids) <= 50
        assert max(map(len, by_pieces._ids), default=0) <= 4
        assert by_pieces._ends.keys() == by_pieces._ids.keys()


def test_more_alphabets_than_there_are_numbers():
    contents = ["".join(f"{chr(code)} {chr(code)}a, " for code in range(0xA1, 0x3100, step)) for step in (1, 7, 3)]
    by_pieces, backend = pieces_of("llama 3"), tokenizer_of("llama 3").backend_tokenizer
    assert_same(by_pieces.encode(contents), contents, backend, with_ends=False)


@pytest.mark.parametrize("kind", ["byte-level", "llama 2", "llama 3", "metaspace", "unigram", "bert"])
@pytest.mark.parametrize("is_rendered", [False, True])
def test_documents_have_the_same_ids_and_masks_by_pieces(kind, is_rendered, monkeypatch):
    documents = []
    for number, content in enumerate(texts(30)):
        learned = ((1, len(content) // 3), (len(content) // 2, len(content))) if number % 2 else None
        documents.append(Document(str(number), content, learned, is_rendered))
    documents.append(Document("eos", "a b c d e f g h</s>", None, is_rendered))
    documents.append(Document("spaces", "a" + " " * 40, ((0, 41),), is_rendered))
    expected = tokenize(documents, tokenizer_of(kind))
    monkeypatch.setattr(encoding, "CHARACTERS_BEFORE_PIECES", 500)
    monkeypatch.setattr(encoding, "PART_CHARACTERS", 100)
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 400)
    encoded = []
    encode = Pieces.encode
    monkeypatch.setattr(
        Pieces, "encode", lambda self, texts, **options: encoded.append(1) or encode(self, texts, **options)
    )
    found = tokenize(documents, tokenizer_of(kind))
    assert len(encoded) > 10
    for name in ("tokens", "offsets", "learned"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


def test_a_tokenizer_that_trims_offsets_encodes_masked_documents_whole(monkeypatch):
    """It gives the first token of a text other offsets, and with them another mask."""
    backend = Tokenizer.from_str(tokenizer_of("llama 3").backend_tokenizer.to_str())
    backend.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=True)
    content = "the boat. e \u2160 \u2161 (b) 8 \u0308 7 seven rivers\n" * 30
    documents = [Document("masked", content, ((0, len(content)),)), Document("plain", content)]
    expected = tokenize(documents, PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    monkeypatch.setattr(encoding, "CHARACTERS_BEFORE_PIECES", 0)
    found = tokenize(documents, PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert np.array_equal(found.tokens, expected.tokens)
    assert np.array_equal(found.learned, expected.learned)
    monkeypatch.setattr(Cuts, "has_exact_ends", True)
    mutant = tokenize(documents, PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert np.array_equal(mutant.tokens, expected.tokens)
    assert not np.array_equal(mutant.learned, expected.learned)
