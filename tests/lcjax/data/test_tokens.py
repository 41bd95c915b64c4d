import copy
import io
import logging
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lcjax.data import Document, read_documents, stdlib_sources, tokenize
from lcjax.data.tokenizing import encoding, progress
from lcjax.errors import InputError

WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "c": 5}


def word_tokenizer(template="$A", **kwargs):
    """Returns a tokenizer with six words that adds special tokens by the template."""
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{"bos_token": "<s>", "eos_token": "</s>", **kwargs})


def documents(*texts):
    return [Document(f"d{i}", text) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def sources():
    """Every tenth file of the standard library, argparse, and difficult texts."""
    paths = [path for i, path in enumerate(stdlib_sources()) if i % 10 == 0 or path.name == "argparse.py"]
    awkward = [
        "x",
        " ",
        "\r\n\r\n",
        "a" * 10_000,
        "<|im_start|>user\nhi<|im_end|>",
        "e\u0301 \u00e9 日本語 \U0001f600",
        "\ufffd\x01",
    ]
    return read_documents(paths) + documents(*awkward)


def test_ids_equal_those_of_transformers(smol_tokenizer, sources, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 100_000)  # many batches
    corpus = tokenize(
        sources, smol_tokenizer, append_eos=False, vocab_size=len(smol_tokenizer), progress=Console(quiet=True)
    )
    assert corpus.tokens.dtype == np.int32
    assert corpus.offsets.dtype == np.int64
    assert corpus.names == tuple(document.name for document in sources)
    assert corpus.offsets[0] == 0
    assert corpus.offsets[-1] == len(corpus.tokens)
    assert len(corpus) == len(sources)
    for i, document in enumerate(sources):
        assert corpus.document(i).tolist() == smol_tokenizer(document.text)["input_ids"], document.name


def test_every_document_ends_in_one_eos(smol_tokenizer, sources):
    bare = tokenize(sources, smol_tokenizer, append_eos=False)
    corpus = tokenize(sources, smol_tokenizer)
    eos = smol_tokenizer.eos_token_id
    for i, document in enumerate(sources):
        expected = bare.document(i).tolist()
        if not document.text.endswith("<|im_end|>"):
            expected.append(eos)
        assert corpus.document(i).tolist() == expected
        assert corpus.document(i)[-1] == eos
    assert np.array_equal(corpus.lengths, np.diff(corpus.offsets))


def test_special_tokens_are_those_that_the_tokenizer_adds():
    for template, expected in [("$A", [3, 4, 2]), ("<s> $A", [1, 3, 4, 2]), ("<s> $A </s>", [1, 3, 4, 2])]:
        assert tokenize(documents("a b"), word_tokenizer(template)).tokens.tolist() == expected


def test_split_special_tokens_is_respected():
    for split in (False, True):
        tokenizer = word_tokenizer(split_special_tokens=split)
        ids = tokenize(documents("</s>x a"), tokenizer, append_eos=False).tokens.tolist()
        assert ids == tokenizer("</s>x a")["input_ids"]
        assert ids == ([0, 3] if split else [2, 0, 3])


def test_tokenizer_settings_have_no_effect_and_are_not_changed():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    before = tokenizer.backend_tokenizer.to_str()
    assert tokenize(documents("a b c a"), tokenizer).tokens.tolist() == [3, 4, 5, 3, 2]
    assert tokenizer.backend_tokenizer.to_str() == before


def test_long_documents_give_no_warning(smol_tokenizer):
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        tokenizer = copy.deepcopy(smol_tokenizer)
        tokenizer.model_max_length = 4
        assert len(tokenize(documents("one two three four five six"), tokenizer).tokens) > 4
        assert messages == []
        tokenizer("one two three four five six")
        assert "longer than the specified maximum sequence length" in messages[0]
    finally:
        logger.removeHandler(handler)


def shown(monkeypatch, *, is_terminal, short):
    monkeypatch.setattr(progress, "SHORT_CHARACTERS", 0 if not short else 100)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 1)
    console = Console(file=(out := io.StringIO()), force_terminal=is_terminal, width=100)
    tokenize(documents("a b", "a", "b b b b"), word_tokenizer(), progress=console)
    return out.getvalue()


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(capfd, monkeypatch):
    tokenize(documents("a b"), word_tokenizer())
    assert capfd.readouterr() == ("", "")
    assert "100 %" in shown(monkeypatch, is_terminal=True, short=False)
    lines = shown(monkeypatch, is_terminal=False, short=False).splitlines()
    assert lines == ["tokenizing 11 characters of text", "tokenizing: 27%", "tokenizing: 36%"]
    assert shown(monkeypatch, is_terminal=False, short=True).splitlines()[0] == "tokenizing: 27%"


def test_refusals():
    with pytest.raises(
        InputError, match="produces id 5 in d1, but the model's vocab_size is 5; use the tokenizer that came"
    ):
        tokenize(documents("a b", "c a"), word_tokenizer(), vocab_size=5)
    assert len(tokenize(documents("a b", "c a"), word_tokenizer(), vocab_size=6)) == 2
    with pytest.raises(InputError, match="vocab_size is 2"):  # the appended EOS counts
        tokenize(documents("<s>"), word_tokenizer(), vocab_size=2)
    with pytest.raises(InputError, match="has no EOS token; set eos_token"):
        tokenize(documents("a"), word_tokenizer(eos_token=None))
    with pytest.raises(InputError, match="object is not a fast tokenizer"):
        tokenize(documents("a"), object())
    for rendered in (False, True):
        broken = [*documents("a b"), Document("d1", "a \ud800 b", is_rendered=rendered)]
        with pytest.raises(InputError, match="character 3 of d1 is half of a surrogate pair"):
            tokenize(broken, word_tokenizer())


def test_a_long_document_takes_little_memory(smollm2):
    # In a separate process, because the peak never decreases. Encoding 4 MB at once takes 500 MB.
    script = textwrap.dedent("""
        import resource, sys
        from lcjax.data import Document, tokenize
        from lcjax.weights import load_tokenizer
        tokenizer = load_tokenizer(sys.argv[1])
        text = "".join(f"line {i} of {i * 7919 % 1000} seven small boats\\\\n" for i in range(120_000))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tokenize([Document("long", text)], tokenizer)
        print(len(text), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    """)
    finished = subprocess.run([sys.executable, "-c", script, str(smollm2)], capture_output=True, text=True, check=True)
    characters, memory = map(int, finished.stdout.split())
    assert characters > 4_000_000
    assert memory < 200_000_000
