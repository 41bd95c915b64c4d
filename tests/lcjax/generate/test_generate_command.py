"""The command `lcjax generate`."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal

import pytest

import lcjax
from lcjax.generate import stop_ids
from lcjax.generate.__main__ import main
from lcjax.weights import load_tokenizer

PROMPT = "the old river carried seven small boats"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def generate(capsys, monkeypatch):
    """Runs the command with a given standard input; returns exit code, stdout and stderr."""

    def run(*flags: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = main([str(flag) for flag in flags])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def chat_dir(model_dir, tmp_path_factory):
    """The tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    shutil.copytree(model_dir, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


SHORT = ("--max-new-tokens", 6)


def test_a_prompt_from_the_command_line_and_from_a_file(generate, model_dir, tmp_path):
    code, out, err = generate("--model", model_dir, "--prompt", PROMPT, *SHORT)
    assert code == 0, err
    assert out.strip()
    assert re.search(r"\d+ tokens read in [\d.]+ s, 6 written, [\d.]+ per second", err)
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT)
    assert generate("--model", model_dir, "--prompt-file", path, *SHORT)[1] == out
    assert generate("--model", model_dir, "--prompt-file", "-", *SHORT, stdin=PROMPT)[1] == out
    assert generate("--model", model_dir, "--prompt", PROMPT, "--max-seq-length", 96, *SHORT)[1] == out


def test_a_fresh_adapter_changes_nothing(generate, model_dir, tmp_path):
    model, _ = lcjax.from_pretrained(model_dir, max_seq_length=64)
    lcjax.save_pretrained(lcjax.get_peft_model(model, r=2), tmp_path)
    plain = generate("--model", model_dir, "--prompt", PROMPT, *SHORT)[1]
    # B is zero.
    assert generate("--model", model_dir, "--adapter", tmp_path, "--prompt", PROMPT, *SHORT)[1] == plain


def test_a_conversation_reads_only_new_tokens(generate, chat_dir):
    code, out, err = generate("--model", chat_dir, *SHORT, stdin=f"{PROMPT}\n\nand then\n")
    assert code == 0, err
    assert len(re.findall("6 written", err)) == 2
    assert out.count("\n") >= 2
    # A single turn with --chat equals the first turn of a conversation.
    first = generate("--model", chat_dir, "--prompt", PROMPT, "--chat", *SHORT)[1]
    assert out.startswith(first)
    assert generate("--model", chat_dir, "--prompt", PROMPT, "--chat", "--system", "be brief", *SHORT)[0] == 0


class InterruptedOnce(io.StringIO):
    """An output that simulates Ctrl-C during the answer."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        if self.writes == 3:  # the first two are the prompt and the first token
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


class InterruptedAtTheEnd(io.StringIO):
    """A standard input that simulates Ctrl-C at the prompt after the last line."""

    def readline(self, *size: int) -> str:
        line = super().readline(*size)
        if not line:
            signal.raise_signal(signal.SIGINT)
        return line


def test_ctrl_c_stops_the_answer_and_at_the_prompt_the_conversation(chat_dir, monkeypatch, capsys):
    flags = ["--model", str(chat_dir), *map(str, SHORT)]
    monkeypatch.setattr("sys.stdin", InterruptedAtTheEnd(f"{PROMPT}\nand then\n"))
    monkeypatch.setattr("sys.stdout", InterruptedOnce())
    assert main(flags) == 130
    said = capsys.readouterr().err
    assert said.count("stopped; Ctrl-C at the prompt") == 1
    assert len(re.findall("6 written", said)) == 1  # the second answer
    assert said.splitlines()[-1] == "interrupted"


@pytest.mark.parametrize(
    "template", ["{{ 'a' + 1 }}", "{{ messages[7].content }}", "{% for i in range(10**9) %}{% endfor %}"]
)
def test_a_template_that_fails_is_one_line(template, generate, chat_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(chat_dir, folder)
    (folder / "chat_template.jinja").write_text(template)
    code, _, err = generate("--model", folder, "--prompt", PROMPT, "--chat", *SHORT)
    assert code == 2
    assert err.splitlines()[-1].startswith("error: the chat template ")


def test_what_ends_a_text(generate, model_dir, tmp_path):
    """Tokens in generation_config.json also end a text, here one that the model writes."""
    tokenizer = load_tokenizer(model_dir)
    assert stop_ids(tokenizer, model_dir) == {tokenizer.eos_token_id}
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    plain = generate("--model", folder, "--prompt", PROMPT, *SHORT)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(320))}))
    assert stop_ids(tokenizer, folder) == set(range(320))
    stopped = generate("--model", folder, "--prompt", PROMPT, *SHORT)
    assert ("6 written" in plain[2], "1 written" in stopped[2]) == (True, True)
    (folder / "generation_config.json").write_text("{")
    assert "is not a JSON object" in generate("--model", folder, "--prompt", PROMPT, *SHORT)[2]


def test_a_seed_determines_the_text(generate, model_dir):
    def drawn(seed):
        flags = ("--temperature", 2, "--top-p", 0.95, "--seed", seed)
        return generate("--model", model_dir, "--prompt", PROMPT, *flags, *SHORT)[1]

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prompt", "x", "--prompt-file", "y"), "--prompt and --prompt-file contradict each other"),
        (("--prompt", ""), "--prompt is empty"),
        (("--prompt-file", "no/such.txt"), "--prompt-file no/such.txt cannot be read"),
        (("--prompt-file", "-"), "--prompt-file - is empty"),
        (("--prompt", "x", "--max-new-tokens", "0"), "--max-new-tokens 0 is out of range"),
        (("--prompt", "x", "--temperature", "-1"), "--temperature -1.0 is out of range"),
        (("--prompt", "x", "--top-p", "2"), "--top-p 2.0 is out of range"),
        (("--prompt", "x", "--seed", "-1"), "--seed -1 is out of range"),
        (("--prompt", "x", "--system", "y"), "--system needs a chat"),
        (("--prompt", "x", "--chat"), "this model's tokenizer has no chat template"),
        ((), "this model's tokenizer has no chat template"),
        (("--prompt", PROMPT, "--max-seq-length", "3"), "does not fit into the 3 of --max-seq-length"),
        (("--prompt", "x", "--attention", "cudnn"), "--attention cudnn is for training only"),
        (("--prompt", "x", "--adapter", "no/adapter"), "no/adapter"),
    ],
)
def test_bad_input_is_one_line(generate, model_dir, flags, message):
    code, out, err = generate("--model", model_dir, *flags)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in err
    assert "loading" not in err  # no weights


def test_a_conversation_that_fills_the_window_says_what_can_be_done(generate, chat_dir):
    turns = f"{PROMPT}\n{PROMPT * 9}\n"
    code, _, err = generate("--model", chat_dir, *SHORT, "--max-seq-length", "60", stdin=turns)
    assert code == 2
    last = err.splitlines()[-1]
    assert "tokens, more than the 60 of --max-seq-length; start a new conversation, with a larger" in last
    assert "tokens read in" in err  # the first turn was answered


def test_a_turn_that_is_not_text_is_named(generate, chat_dir):
    """In the C locale, Python accepts any bytes. The message used to blame the template."""
    code, out, err = generate("--model", chat_dir, *SHORT, stdin="a\udcff\n")
    assert (code, out) == (2, "")
    assert "error: standard input is not UTF-8 (byte 1 of a line); give text" in err
