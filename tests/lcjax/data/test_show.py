"""`lcjax data show`: rows as text, the notation of what is learned, and the summary."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lcjax.data.__main__ import main
from lcjax.data.show.texts import Span, spans, visible
from tests.support.tokenizers_of_all_kinds import tokenizer_of

DOCS = Path(__file__).parents[3] / "docs" / "data.md"
CHAT = [
    {"messages": [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "Paris."}]},
    {"messages": [{"role": "user", "content": "And of Peru?"}, {"role": "assistant", "content": "Lima."}]},
    {"messages": [{"role": "user", "content": "No answer."}]},
]


@pytest.fixture
def chat(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("chat.jsonl").write_text("".join(json.dumps(record) + "\n" for record in CHAT))
    return "chat.jsonl"


def shown(capsys, *words):
    assert main(["show", *words]) == 0
    return capsys.readouterr().out


def test_the_page_shows_what_is_printed(chat, capsys):
    out = shown(capsys, "--data", chat, "--max-seq-length", "128", "--eval-fraction", "0", "--rows", "1")
    page = DOCS.read_text(encoding="utf-8")
    example = page.partition("lcjax data show --data chat.jsonl")[2].partition("```\n\n```\n")[2]
    assert example.partition("\n```")[0].rstrip() == out.rstrip()


def test_long_documents_are_cut_and_abridged(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("seven small boats " * 100)
    out = shown(
        capsys, "--data", str(tmp_path / "a.txt"), "--max-seq-length", "64", "--eval-fraction", "0", "--rows", "99"
    )
    assert "a.txt, cut: 1 to 64 of 302 tokens: 64 tokens, 63 learned" in out
    assert "a.txt, cut: 257 to 302 of 302 tokens: 46 tokens, 46 learned" in out
    assert "row 5 of 5: 64 tokens of 1 document, 0 of padding" in out
    assert "cut: 1 of 1 documents are longer than 64 tokens" in out
    assert "packed: 0 of 5 rows have several documents, 0 in all" in out
    short = shown(capsys, "--data", str(tmp_path / "a.txt"), "--eval-fraction", "0", "--most-tokens", "4")
    assert "seven{+ small+}\n[... 298 tokens ...]\n" in short


def test_control_characters_never_reach_the_terminal(tmp_path, capsys):
    text = "a\x1b[31mred\x07\u202e\u2028 b\r\n" * 3
    (tmp_path / "bad\x1b[2J.jsonl").write_text(
        json.dumps({"text": text}) + "\n" + json.dumps({"text": "\x9b1m b"}) + "\nno\n"
    )
    out = shown(capsys, "--data", str(tmp_path), "--eval-fraction", "0")
    assert not set(out) & set("\x1b\x07\u202e\u2028\r\x9b")
    assert all(escape in out for escape in ("\\x1b[31mred\\x07\\u202e\\u2028", "\\r\n", "\\x9b1m", "bad\\x1b[2J.jsonl"))


def on_a_terminal(words, **environment):
    """What a command prints on a terminal."""
    parent, child = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "lcjax.data", "show", *words],
        stdout=child,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm-256color"} | environment,
    ) as process:
        os.close(child)
        out = b""
        while True:
            try:
                block = os.read(parent, 65536)
            except OSError:  # the other end is closed
                break
            if not block:
                break
            out += block
    os.close(parent)
    assert process.returncode == 0
    return out.decode()


def test_a_terminal_has_colors_unless_they_are_refused(chat):
    words = ["--data", chat, "--eval-fraction", "0", "--rows", "1"]
    out = on_a_terminal(words)
    assert "\x1b[32mParis.<|im_end|>\x1b[0m" in out
    assert "{+" not in out
    plain = on_a_terminal(words, NO_COLOR="1")
    assert "\x1b[32m" not in plain
    assert "{+Paris.<|im_end|>+}" in plain


@pytest.mark.parametrize("kind", ["llama 3", "qwen 2"])
def test_spans_are_the_whole_text_whatever_is_learned(kind):
    tokenizer = tokenizer_of(kind)
    text = "the river é 漢字 carried\n\nseven boats 🙂 past"
    ids = np.array(tokenizer(text)["input_ids"])
    whole = tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
    for seed in range(20):
        learned = np.random.default_rng(seed).random(len(ids)) < 0.5
        assert "".join(span.text for span in spans(ids, learned, tokenizer)) == whole
    assert spans(ids, np.ones(len(ids), bool), tokenizer) == [Span(whole, True)]
    assert spans(ids[:0], np.ones(0, bool), tokenizer) == []


def test_visible_text_is_unchanged():
    assert visible("é\t漢\n🙂") == "é\t漢\n🙂"
    assert visible("a\nb", stay="") == "a\\nb"
    assert visible("\ud800") == "\\ud800"


def test_a_held_out_end_is_not_another_document(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("seven small boats " * 100)
    out = shown(capsys, "--data", str(tmp_path / "a.txt"), "--max-seq-length", "64", "--eval-fraction", "0.4")
    assert "\n1 document, " in out
    assert "\ncut: 1 of 1 documents are longer than 64 tokens" in out


def test_a_closed_pipe_ends_it_quietly(chat):
    """Rich raises SystemExit(1) for a closed pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "lcjax.data", "show", "--data", chat, "--max-seq-length", "128"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 141
    assert "Error" not in done.stderr


def test_cut_conversations_are_named(chat, capsys):
    words = ("--data", chat, "--eval-fraction", "0", "--rows", "1", "--max-seq-length")
    assert (
        "\n2 of 2 conversations and completions are longer than 32 tokens, and are cut, so their later turns do not "
        "see the first; the longest: chat.jsonl:2 (39), chat.jsonl:1 (38); --max-seq-length 39 cuts none\n"
    ) in shown(capsys, *words, "32")
    assert "are cut" not in shown(capsys, *words, "39")
