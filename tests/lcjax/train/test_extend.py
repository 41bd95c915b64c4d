"""Resuming a finished run reports this; a longer run continues, and says if the rates differ."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lcjax
from lcjax.config.training import SCHEDULES, TrainingArguments
from lcjax.optim.schedules import make_schedule
from lcjax.report.records import read_rows
from lcjax.train.__main__ import main
from lcjax.train.checkpoints.other_length import line_about_rates
from lcjax.train.checkpoints.resume import ResumePoint
from lcjax.weights.tokenizer import TOKENIZER_FILES
from tests.support.processes import SHORT, contents, metrics_of, records


def resume_flags(run: Path, *flags: str) -> list[str]:
    return ["--output-dir", str(run), "--resume-from-checkpoint", "latest", *flags]


# 44 rows of which a step takes 6, so that the longer runs begin a second epoch. In the second one,
# all steps before the end of the shorter run are of the warm-up.
EXACT = {
    name: f"--lr-scheduler-type {kind} --warmup-steps {warmup} --gradient-accumulation-steps 6".split()
    for name, kind, warmup in (("level", "constant_with_warmup", 2), ("warming up", "linear", 4))
}


@pytest.fixture(scope="module")
def short_level_run(model_dir, data_dir, tmp_path_factory):
    """A run of 4 steps with a constant rate after 2 warm-up steps."""
    return run_of_four_steps(EXACT["level"], model_dir, data_dir, tmp_path_factory.mktemp("level") / "run")


def run_of_four_steps(schedule: list[str], model_dir: Path, data_dir: Path, run: Path) -> Path:
    schedule = [*schedule, "--save-total-limit", "9"]
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


@pytest.mark.parametrize("name", EXACT)
def test_an_extended_run_equals_an_uninterrupted_longer_one(name, model_dir, data_dir, tmp_path, capsys):
    extended, whole = tmp_path / "extended", tmp_path / "whole"
    run_of_four_steps(EXACT[name], model_dir, data_dir, extended)
    adapter = contents(extended / "adapter")
    capsys.readouterr()
    assert main(resume_flags(extended, "--max-steps", "8")) == 0
    said = capsys.readouterr().err
    assert f"the adapter of step 4 is now {extended}/adapter.step-4" in said
    assert "the learning rate (" not in said
    assert contents(extended / "adapter.step-4") == adapter
    flags = ["--model", str(model_dir), "--data", str(data_dir), *SHORT, *EXACT[name], "--max-steps", "8"]
    assert main([*flags, "--output-dir", str(whole)]) == 0
    assert records(extended) == records(whole)
    rows = metrics_of(extended)
    assert len(rows) == 8
    assert rows[-1]["epoch"] > 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--max-steps 3", "has taken 4 steps, more than the 3 of --max-steps; give at least as many"),
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


def test_a_run_whose_rate_falls_is_extended_with_a_line(finished, tmp_path, capsys):
    """From the checkpoint on, its rates are those of the longer run."""
    run = shutil.copytree(finished, tmp_path / "run")
    assert main(resume_flags(run, "--max-steps", "5")) == 0
    said = (
        "the learning rate (linear) is now that of 5 steps instead of 4: 4e-05 in step 5, after 5e-05 in step 4; the "
        "steps so far would have had other rates in a run planned for 5"
    )
    assert capsys.readouterr().err.count(said) == 1
    rates = [row["learning_rate"] for row in metrics_of(run)]
    assert rates == pytest.approx([2e-4, 1.5e-4, 1e-4, 5e-5, 4e-5])
    assert metrics_of(run)[:4] == metrics_of(finished)
    assert main(resume_flags(run)) == 0
    assert "all of its 5 steps were already taken" in capsys.readouterr().err


def schedule_of(kind: str, **flags) -> tuple[TrainingArguments, Callable[[int], Any]]:
    arguments = TrainingArguments(lr_scheduler_type=kind, **flags)
    warmup = {"warmup_steps": arguments.warmup_steps, "warmup_ratio": arguments.warmup_ratio}
    return arguments, lambda steps: make_schedule(kind, arguments.learning_rate, steps, **warmup)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("flags", [{}, {"warmup_steps": 3}, {"warmup_ratio": 0.3}], ids=str)
def test_there_is_a_line_exactly_if_the_steps_so_far_had_other_rates(kind, flags):
    arguments, schedule = schedule_of(kind, **flags)
    for taken, after in itertools.product(range(1, 9), range(9, 15)):
        steps = np.arange(taken)
        differs = bool(np.any(schedule(8)(steps) != schedule(after)(steps)))
        line = line_about_rates(8, after, arguments, ResumePoint(Path("checkpoints"), taken))
        assert (line is not None) == differs, (taken, after)


def test_the_adapter_has_the_tokenizer_byte_for_byte(finished, model_dir):
    names = [path.name for pattern in TOKENIZER_FILES for path in model_dir.glob(pattern)]
    assert "tokenizer.json" in names
    for name in names:
        assert (finished / "adapter" / name).read_bytes() == (model_dir / name).read_bytes()
