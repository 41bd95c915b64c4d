"""Resuming a finished run reports this; a longer run continues if the numbers would be the same."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import lcjax
from lcjax.report.records import read_rows
from lcjax.train.__main__ import main
from lcjax.weights.tokenizer import TOKENIZER_FILES
from tests.support.processes import SHORT, contents, metrics_of, records


def resume_flags(run: Path, *flags: str) -> list[str]:
    return ["--output-dir", str(run), "--resume-from-checkpoint", "latest", *flags]


@pytest.fixture(scope="module")
def short_level_run(model_dir, data_dir, tmp_path_factory):
    """A run of 4 steps with a constant rate after 2 warm-up steps."""
    run = tmp_path_factory.mktemp("level") / "run"
    schedule = ["--lr-scheduler-type", "constant_with_warmup", "--warmup-steps", "2", "--save-total-limit", "9"]
    assert main(["--model", str(model_dir), "--data", str(data_dir), *SHORT, *schedule, "--output-dir", str(run)]) == 0
    return run


def test_resuming_a_finished_run_reports_it_and_changes_nothing(finished, capsys):
    before = contents(finished)
    assert main(resume_flags(finished)) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{finished} is finished: all of its 4 steps were already taken; nothing is trained"
    losses = [row["eval_loss"] for row in read_rows(finished / "evaluation.jsonl")]
    shown = dict(line.split(maxsplit=1) for line in lines[1:])
    assert list(shown) == ["model", "data", "time", "loss", "held", "adapter", "report", "also"]
    assert shown["held"] == f"out    {losses[0]:.4f} before, {losses[-1]:.4f} after"
    steps = read_rows(finished / "metrics.jsonl")
    assert shown["loss"] == f"{steps[0]['loss']:.4f} in the first step, {steps[-1]['loss']:.4f} in the last"
    assert re.fullmatch(r"tiny, float32; LoRA r=2, [\d,]+ trainable parameters", shown["model"])
    assert re.fullmatch(r"24 documents, [\d,]+ tokens; \d+ rows of 48, \d+ held out", shown["data"])
    tokens = sum(row["tokens"] for row in steps)
    assert re.fullmatch(rf"4 steps, {tokens:,} tokens, [\d.]+ epochs in [\d.]+ s", shown["time"])
    assert shown["adapter"] == str(finished / "adapter")
    assert all((finished / name).exists() for name in shown["also"].removeprefix("there  ").split(", "))
    assert contents(finished) == before


def test_resuming_a_finished_run_from_python_returns_its_result(finished, model_dir, data_dir, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    model, tokenizer = lcjax.from_pretrained(str(model_dir), 48)
    model = lcjax.get_peft_model(model, r=2, random_state=7)
    flags = {"max_steps": 4, "eval_fraction": 0.2, "eval_steps": 2, "seed": 7}
    result = lcjax.train(model, tokenizer, [data_dir], output_dir=run, resume_from_checkpoint="latest", **flags)
    assert "is finished: all of its 4 steps were already taken; nothing is trained" in capsys.readouterr().err
    losses = [row["eval_loss"] for row in read_rows(run / "evaluation.jsonl")]
    assert (result.steps, result.loss_before, result.loss_after) == (4, losses[0], losses[-1])
    assert records(run) == records(finished)


def test_an_extended_run_equals_an_uninterrupted_longer_one(short_level_run, model_dir, data_dir, tmp_path, capsys):
    extended, whole = tmp_path / "extended", tmp_path / "whole"
    shutil.copytree(short_level_run, extended)
    assert main(resume_flags(extended, "--max-steps", "8")) == 0
    assert f"the adapter of step 4 is now {extended}/adapter.step-4" in capsys.readouterr().err
    assert contents(extended / "adapter.step-4") == contents(short_level_run / "adapter")
    schedule = ["--lr-scheduler-type", "constant_with_warmup", "--warmup-steps", "2"]
    flags = ["--model", str(model_dir), "--data", str(data_dir), *SHORT, *schedule, "--max-steps", "8"]
    assert main([*flags, "--output-dir", str(whole)]) == 0
    assert records(extended) == records(whole)
    assert len(metrics_of(extended)) == 8


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--max-steps 3", "it has taken 4 steps, but --max-steps is now 3; give at least as many"),
        ("--max-steps 8 --warmup-steps 3", "--warmup-steps was 2 and is 3; give the same"),
        (
            "--max-steps 8 --lr-scheduler-type constant",
            "--lr-scheduler-type was 'constant_with_warmup' and is 'constant'",
        ),
    ],
)
def test_a_run_with_other_arguments_is_not_extended(flags, said, short_level_run, capsys):
    before = contents(short_level_run)
    assert main(resume_flags(short_level_run, *flags.split())) == 2
    [line] = capsys.readouterr().err.splitlines()  # nothing was loaded
    assert said in line
    assert contents(short_level_run) == before


@pytest.mark.parametrize("flags", ["--max-steps 9", "--max-steps -1 --num-train-epochs 1"])
def test_a_run_with_a_decaying_rate_is_not_extended(flags, finished, capsys):
    before = contents(finished)
    assert main(resume_flags(finished, *flags.split())) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "its learning rate falls (linear) over 4 steps, not " in line
    assert "; give the same number (only constant and constant_with_warmup" in line
    assert contents(finished) == before


def test_the_adapter_has_the_tokenizer_byte_for_byte(finished, model_dir):
    names = [path.name for pattern in TOKENIZER_FILES for path in model_dir.glob(pattern)]
    assert "tokenizer.json" in names
    for name in names:
        assert (finished / "adapter" / name).read_bytes() == (model_dir / name).read_bytes()
