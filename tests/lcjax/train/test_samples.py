"""Samples of the model's own text during a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import lcjax
from lcjax.generate.generator import Generator
from lcjax.generate.sampling import Sampling
from lcjax.generate.text import TextStream
from lcjax.report.records import read_rows
from lcjax.train.__main__ import main
from lcjax.train.sampling.prompts import read_prompts
from tests.support.processes import records

PROMPTS = ["the lazy dog", "a question [red] about <b>"]
TOKENS = 5


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS) + "\n")
    return path


def flags(prompts: Path) -> list[str]:
    return ["--sample-prompts", str(prompts), "--sample-tokens", str(TOKENS)]


def test_samples_are_the_models_own_and_change_no_number(short, finished, prompts, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*short, *flags(prompts), "--output-dir", str(run)]) == 0
    said = capsys.readouterr().err
    assert records(run) == records(finished)
    rows = read_rows(run / "samples.jsonl")
    assert [(row["step"], row["prompt"]) for row in rows] == [(n, prompt) for n in (0, 2, 4) for prompt in PROMPTS]
    for row in rows:
        shown = json.dumps(" ".join(row["text"].split()), ensure_ascii=False)
        assert f'sample at step {row["step"]}: "{row["prompt"]}" -> {shown[:60]}' in said

    # A resumed run drops the samples after its checkpoint and takes them again.
    shutil.rmtree(run / "checkpoints" / "4")
    shutil.rmtree(run / "adapter")
    assert main(["--output-dir", str(run), "--resume-from-checkpoint", "latest"]) == 0
    assert read_rows(run / "samples.jsonl") == rows
    assert records(run) == records(finished)


def test_the_text_is_that_of_the_generator(model_dir, data_dir, prompts, tmp_path):
    model, tokenizer = lcjax.from_pretrained(str(model_dir), 48)
    model = lcjax.get_peft_model(model, r=2, random_state=7)
    options = {"max_steps": 3, "eval_fraction": 0.2, "sample_steps": 2, "sample_prompts": prompts, "learning_rate": 0.1}
    result = lcjax.train(model, tokenizer, [data_dir], output_dir=tmp_path / "run", sample_tokens=TOKENS, **options)
    rows = read_rows(tmp_path / "run" / "samples.jsonl")
    assert [row["step"] for row in rows] == [0, 0, 2, 2, 3, 3]
    assert rows[0]["text"] != rows[4]["text"]
    generator = Generator(result.model, 40)
    for row in rows[4:]:
        ids = tokenizer(row["prompt"])["input_ids"]
        stream = TextStream(tokenizer)
        found = list(generator.generate(ids, Sampling(), max_new_tokens=TOKENS, stop=[tokenizer.eos_token_id]))
        assert len(found) <= TOKENS
        assert row["text"] == "".join(map(stream.add, found)) + stream.finish()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", b"\n \n", "has no prompts; write one on each line"),
        ("p.txt", b"\xff", "is not UTF-8 (byte 0); give text"),
        ("p.txt", None, "cannot be read (No such file or directory); check the path"),
        (
            "p.jsonl",
            b'{"messages": [{"role": "user", "content": "x"}]}\nx\n',
            'line 2 is not an object with "messages"',
        ),
        ("p.jsonl", b'{"prompt": "x"}\n', 'line 1 is not an object with "messages"'),
        ("p.jsonl", b'{"messages": []}\n', 'line 1 has messages without a "role" and a "content"'),
        ("p.jsonl", b'{"messages": [{"role": "user", "content": 3}]}\n', 'line 1 has messages without a "role"'),
    ],
)
def test_prompts_are_checked_before_anything_is_read(name, content, said, short, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main([*short, "--sample-prompts", str(tmp_path / name), "--output-dir", str(tmp_path / "run")]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("importing")]
    assert said in line
    assert not (tmp_path / "run").exists()


def test_conversations(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital of Peru?"}]
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": messages}) + "\n\n")
    assert read_prompts(tmp_path / "p.jsonl") == [messages]


def test_a_prompt_that_is_too_long(short, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("word " * 200)
    assert main([*short, "--sample-prompts", str(tmp_path / "p.txt"), "--output-dir", str(tmp_path / "run")]) == 2
    assert "tokens, more than the 48 of --max-seq-length; shorten it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_conversation_without_a_template(short, tmp_path, capsys):
    message = {"role": "user", "content": "Capital of Peru?"}
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": [message]}))
    assert main([*short, "--sample-prompts", str(tmp_path / "p.jsonl"), "--output-dir", str(tmp_path / "run")]) == 2
    assert "has conversations, but the model's tokenizer has no chat template" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
