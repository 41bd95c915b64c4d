"""Two processes with the same data: one encodes it, the other waits and uses what it stored."""

import io
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from lcjax.data import ChatTemplate, read_documents, tokenize
from lcjax.data.tokenizing import store
from lcjax.data.tokenizing.locking import alone_with
from lcjax.data.tokens import tokenize_sources
from tests.support.tokenizers_of_all_kinds import tokenizer_of

pytestmark = pytest.mark.usefixtures("empty_cache")

# Says when it has encoded the first part, and waits for an answer before it continues.
WORKER = """
    import sys
    from transformers import PreTrainedTokenizerFast
    from lcjax.data import ChatTemplate
    from lcjax.data.tokenizing.growing import GrowingTokens
    from lcjax.data.tokens import tokenize_sources

    add = GrowingTokens.add
    def slowly(self, *arguments, **options):
        add(self, *arguments, **options)
        print("encoding", flush=True)
        sys.stdin.readline()

    GrowingTokens.add = slowly
    tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
    print(tokenize_sources([sys.argv[2]], tokenizer, ChatTemplate(tokenizer)).corpus.was_stored)
"""


class Answering(io.StringIO):
    """A console's file; the message that the process waits makes it act."""

    def __init__(self, act):
        super().__init__()
        self._act = act

    def write(self, text):
        if "waiting" in text and "waiting" not in self.getvalue():
            self._act()
        return super().write(text)


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_second_process_waits_for_the_first(tmp_path, monkeypatch, is_killed):
    monkeypatch.delenv(store.LIMIT_VARIABLE)
    monkeypatch.setattr(store, "UNLOCKED_SECONDS", -1)
    folder, data = tmp_path / "tokenizer", tmp_path / "data.txt"
    tokenizer_of("llama 3").save_pretrained(folder)
    data.write_text("the boat of the seven rivers\n" * 100)
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(folder), str(data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        answers, lines = worker.stdin, worker.stdout
        assert answers is not None
        assert lines is not None
        assert lines.readline() == "encoding\n"
        assert {path.suffix for path in store.folder().iterdir()} == {store.LOCK_SUFFIX, ".unfinished"}

        def act():
            if is_killed:
                os.kill(worker.pid, signal.SIGKILL)
            else:
                answers.write("\n")
                answers.flush()

        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        shown = Answering(act)
        console = Console(file=shown, width=200)
        found = tokenize_sources([data], tokenizer, ChatTemplate(tokenizer), progress=console).corpus
        assert found.was_stored == (not is_killed)
        assert lines.read() == ("" if is_killed else "False\n")
    assert worker.returncode == (-signal.SIGKILL if is_killed else 0)
    assert "another process is tokenizing the same data; waiting for it" in shown.getvalue()
    assert np.array_equal(found.tokens, tokenize(read_documents([data]), tokenizer).tokens)
    assert {path.suffix for path in store.folder().iterdir()} == {".tokens", store.CONTENTS_SUFFIX}


def test_a_lock_that_is_left_behind_is_free():
    store.folder().mkdir(parents=True)
    (store.folder() / f"a{store.LOCK_SUFFIX}").touch()
    with alone_with("a", None) as has_waited:
        assert not has_waited
    assert not list(store.folder().iterdir())


def test_without_a_folder_or_a_key_nothing_is_locked(tmp_path, monkeypatch):
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path / "file" / "cache"))
    (tmp_path / "file").touch()
    for key in ("a", None):
        with alone_with(key, None) as has_waited:
            assert not has_waited


def test_tokens_are_stored_in_the_folder_of_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv(store.LIMIT_VARIABLE)
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path / "tokens here"))
    (tmp_path / "data.txt").write_text("the boat\n")
    tokenizer = tokenizer_of("llama 3")
    first, second = (
        tokenize_sources([tmp_path / "data.txt"], tokenizer, ChatTemplate(tokenizer)).corpus for _ in range(2)
    )
    assert (first.was_stored, second.was_stored) == (False, True)
    assert len(list((tmp_path / "tokens here").iterdir())) == 2
