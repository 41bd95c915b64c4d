"""A run ends with its best weights, stops early, and does both exactly when it is resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import lcjax
from lcjax.config.training import TrainingArguments
from lcjax.data import load_corpus
from lcjax.errors import InputError
from lcjax.report.records import best_evaluation, read_rows
from lcjax.train.__main__ import main
from lcjax.train.selection.best import evaluations_without_improvement, require_held_out, stops_early
from lcjax.weights import load_tokenizer
from tests.support.processes import complete_saves, contents, finish, metrics_of, records
from tests.support.several_processes import start_together


def rows_of(*losses: float) -> list[dict]:
    return [{"step": 10 * number, "eval_loss": loss} for number, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "best", "without"),
    [
        ((), None, 0),
        ((1.0,), None, 0),
        ((1.0, 4.0), 10, 0),
        ((9.0, 4.0, 3.0, 3.0), 20, 1),
        ((9.0, 4.0, 3.0, 3.5, 2.9, 3.0, 3.1), 40, 2),
        ((9.0, 4.0, 5.0, 6.0), 10, 2),
    ],
)
def test_the_best_evaluation_and_the_patience(losses, best, without):
    """The first loss is that of the untrained weights."""
    rows = rows_of(*losses)
    found = best_evaluation(rows, "eval_loss")
    assert (found and found.step) == best
    assert evaluations_without_improvement(rows, "eval_loss") == without
    for patience in range(1, 4):
        assert stops_early(rows, TrainingArguments(early_stopping_patience=patience)) == (without >= patience)
    assert not stops_early(rows, TrainingArguments())


def test_an_improvement_exceeds_the_threshold():
    rows = rows_of(9.0, 4.0, 3.8, 3.6, 3.4)
    assert evaluations_without_improvement(rows, "eval_loss", 0.1) == 0
    assert evaluations_without_improvement(rows, "eval_loss", 0.3) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"metric_for_best_model": "bleu"},
            "metric_for_best_model='bleu' is unknown; use one of eval_loss",
        ),
        (
            {"early_stopping_threshold": 0.1},
            "--early-stopping-threshold 0.1 has no effect without --early-stopping-pat",
        ),
        (
            {"load_best_model_at_end": True, "eval_fraction": 0.0},
            "--load-best-model-at-end needs held-out text, and --eval-fraction is 0",
        ),
        (
            {"early_stopping_patience": 2, "eval_fraction": 0.0},
            "--early-stopping-patience needs held-out text, and --eval-fraction is 0",
        ),
        ({"early_stopping_patience": -1}, "--early-stopping-patience -1 is out of range; it must be at least 0"),
    ],
)
def test_what_is_refused_at_once(given, said):
    with pytest.raises(InputError, match=said):
        TrainingArguments(**given)


PATIENCE = 2
# The rate is so high that the held-out loss soon rises. Evaluations come at other steps than
# checkpoints.
RUN = (
    "--max-seq-length 48 --max-steps 40 --save-steps 5 --eval-steps 3 --eval-fraction 0.2 --lora-r 4 --seed 7 "
    "--learning-rate 0.1 --lr-scheduler-type constant --lora-dropout 0.1 --save-total-limit 1"
).split()
SELECTION = ["--load-best-model-at-end", "--early-stopping-patience", str(PATIENCE)]


@pytest.fixture(scope="module")
def command(model_dir, data_dir) -> list[str]:
    return ["--model", str(model_dir), "--data", str(data_dir), *RUN, *SELECTION]


@pytest.fixture(scope="module")
def stopped(command, tmp_path_factory) -> Path:
    """The folder of a run that has stopped early."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    assert main([*command, "--output-dir", str(run)]) == 0
    return run


def last_and_best(run: Path) -> tuple[int, int]:
    """Returns the last step and the best evaluated one."""
    best = best_evaluation(read_rows(run / "evaluation.jsonl"), "eval_loss")
    assert best is not None
    return len(metrics_of(run)), best.step


def test_a_run_stops_early_and_ends_with_its_best_weights(stopped, command, tmp_path, capsys):
    last, best = last_and_best(stopped)
    assert best < last < 40
    assert last == best + 3 * PATIENCE
    assert complete_saves(stopped / "checkpoints") == [best, last]
    only_to_best = [word for word in command if word not in SELECTION]
    assert main([*only_to_best, "--max-steps", str(best), "--output-dir", str(tmp_path / "best")]) == 0
    assert records(stopped)["adapter"] == records(tmp_path / "best")["adapter"]
    capsys.readouterr()
    before = contents(stopped)
    assert main(["--output-dir", str(stopped), "--resume-from-checkpoint", "latest"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{stopped} is finished: it was stopped early after step {last}; nothing is trained"
    assert contents(stopped) == before


def test_a_resumed_run_stops_at_the_same_step(stopped, tmp_path):
    """It continues from the best step, whose checkpoint outlives --save-total-limit 1."""
    last, best = last_and_best(stopped)
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / str(last))
    shutil.rmtree(run / "adapter")
    assert main(["--output-dir", str(run), "--resume-from-checkpoint", "latest"]) == 0
    assert records(run) == records(stopped)
    assert complete_saves(run / "checkpoints") == [best, last]


def test_a_run_in_another_folder_takes_the_best_checkpoint_over(stopped, tmp_path):
    last, best = last_and_best(stopped)
    other = ["--output-dir", str(tmp_path / "other")]
    assert main([*other, "--resume-from-checkpoint", str(stopped / "checkpoints" / str(last))]) == 0
    assert records(tmp_path / "other") == records(stopped)
    assert complete_saves(tmp_path / "other" / "checkpoints") == [best]


def test_a_lost_best_checkpoint_is_reported(stopped, tmp_path, capsys):
    last, best = last_and_best(stopped)
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / str(best))
    shutil.rmtree(run / "adapter")
    resumed = ["--output-dir", str(run), "--resume-from-checkpoint", "latest"]
    assert main(resumed) == 2
    said = f"needs the checkpoint of the best step so far, {best}, which is not in {run / 'checkpoints'}; resume with --no-l"
    assert said in capsys.readouterr().err
    assert main([*resumed, "--no-load-best-model-at-end"]) == 0
    assert records(run)["adapter"] != records(stopped)["adapter"]
    assert len(metrics_of(run)) == last


def test_every_weight_of_the_best_step_from_python(model_dir, data_dir, tmp_path):
    model, tokenizer = lcjax.from_pretrained(str(model_dir), 48)
    flags = {"max_steps": 8, "eval_fraction": 0.2, "eval_steps": 2, "learning_rate": 0.05, "save_total_limit": 1}
    flags |= {"load_best_model_at_end": True, "lr_scheduler_type": "constant", "skip_leak_check": True}
    result = lcjax.train(model, tokenizer, [data_dir], output_dir=tmp_path / "run", **flags)
    losses = {row["step"]: row["eval_loss"] for row in read_rows(tmp_path / "run" / "evaluation.jsonl")}
    assert result.best_step == min(list(losses)[1:], key=lambda step: losses[step])
    assert (result.steps, result.loss_after) == (8, losses[result.best_step])
    assert complete_saves(tmp_path / "run" / "checkpoints") == sorted({result.best_step, 8})
    saved, _ = lcjax.from_pretrained(str(tmp_path / "run" / "model"), 48)
    for own, other in zip(*(jax.tree.leaves(m.params) for m in (result.model, saved)), strict=True):
        np.testing.assert_array_equal(own, other)


def test_data_that_hold_nothing_out(model_dir, data_dir):
    data = load_corpus([data_dir], load_tokenizer(model_dir), 48, held_out_fraction=0, seed=1)
    require_held_out(data, TrainingArguments())
    with pytest.raises(InputError, match="--load-best-model-at-end needs held-out text, and the data is too little"):
        require_held_out(data, TrainingArguments(load_best_model_at_end=True))


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step(command, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    two = [*command, "--gradient-accumulation-steps", "2", "--lora-dropout", "0"]
    for code, output in map(finish, start_together([*two, "--output-dir", str(tmp_path / "run")], tmp_path, cache)):
        assert code == 0, output
    last, best = last_and_best(tmp_path / "run")
    assert last == best + 3 * PATIENCE < 40
    assert complete_saves(tmp_path / "run" / "checkpoints") == [best, last]
