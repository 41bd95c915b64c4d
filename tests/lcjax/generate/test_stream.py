"""Text that is streamed token by token equals the text of all tokens."""

from __future__ import annotations

import random
import shutil

import pytest

from lcjax.generate import TextStream
from lcjax.weights import load_tokenizer
from tests.support import tokenizer_pipelines as pipelines


def streamed(tokenizer, ids) -> tuple[str, list[str]]:
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    return "".join([*pieces, stream.finish()]), pieces


@pytest.fixture(scope="module", params=pipelines.DECODERS)
def tokenizer(request, tmp_path_factory):
    pre = "byte level" if request.param == "byte level" else "none"
    backend = pipelines.pipeline("none", pre, decoder=request.param)
    return load_tokenizer(pipelines.write(tmp_path_factory.mktemp("stream"), backend, None))


@pytest.mark.parametrize("seed", range(4))
def test_random_ids_stream_to_what_they_decode_to(tokenizer, seed):
    """Includes invalid bytes, partial characters, special tokens and undefined ids in any order."""
    draw = random.Random(seed)
    size = len(tokenizer)
    likely = [
        tokenizer.convert_tokens_to_ids(token) for token in ("▁", "<0x0A>", "<0xF0>", "<0x9F>", "</s>", "a", "▁a")
    ]
    for _ in range(150):
        ids = [
            draw.choice(likely) if draw.random() < 0.5 else draw.randrange(size + 3) for _ in range(draw.randrange(40))
        ]
        expected = tokenizer.decode(ids, skip_special_tokens=True)
        assert streamed(tokenizer, ids)[0] == expected, ids


def test_a_stray_byte_after_a_newline(tokenizer):
    """This used to fail with the library's "Invalid prefix encountered"."""
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<0x0A>", "<0xF0>", "<0x9F>", "▁a")]
    assert streamed(tokenizer, ids)[0] == tokenizer.decode(ids)


def test_text_is_emitted_as_soon_as_it_is_certain(tokenizer):
    ids = tokenizer("ab ab, 12 ab")["input_ids"]
    text, pieces = streamed(tokenizer, ids)
    assert text == tokenizer.decode(ids)
    assert "".join(pieces) == text
    assert sum(map(bool, pieces)) >= len(ids) - 1


def test_the_buffer_of_a_stream_does_not_grow(tokenizer):
    stream = TextStream(tokenizer)
    for token in tokenizer("ab, " * 300)["input_ids"]:
        stream.add(token)
        assert len(stream._window) < 8


def test_stopping_within_a_character_gives_the_same_as_decode(tokenizer):
    ids = tokenizer("a🦙")["input_ids"][:-1]
    text, pieces = streamed(tokenizer, ids)
    assert text == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(pieces)


def test_a_label_of_llama_changes_nothing(tokenizer, tmp_path):
    shutil.copytree(tokenizer.name_or_path, tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    again = load_tokenizer(tmp_path / "t")
    ids = list(range(len(again)))
    assert streamed(again, ids)[0] == again.decode(ids, skip_special_tokens=True)
