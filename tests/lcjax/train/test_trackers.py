"""Where the rows go: --report-to.

wandb and mlflow are not installed here. What is tested is which rows their clients are given, and
the message if they are missing.
"""

from __future__ import annotations

import sys
import types

import pytest

from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.train.reporting import trackers
from lcjax.train.reporting.metrics import RunLog


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("comet",), "report_to='comet' is unknown"),
        (("none", "tensorboard"), "--report-to none tensorboard contradicts itself"),
        (("tensorboard", "wandb"), r"--report-to wandb needs the package wandb, .*: pip install 'lcjax\[wandb\]'"),
        (("mlflow",), r"--report-to mlflow needs the package mlflow, .*: pip install 'lcjax\[mlflow\]'"),
    ],
)
def test_what_is_refused(names, said, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=said):
        trackers.check_trackers(TrainingArguments(report_to=names))


def test_none_writes_no_events(tmp_path):
    log = RunLog(tmp_path, 0, 1, report_to=("none",))
    log.step({"step": 1, "loss": 2.0})
    log.evaluation({"step": 1, "eval_loss": 2.0})
    log.close()
    assert not (tmp_path / "tensorboard").exists()
    assert (tmp_path / "metrics.jsonl").exists()


def test_the_clients_get_every_value_by_its_name(tmp_path, monkeypatch):
    calls = []
    of_wandb = types.SimpleNamespace(
        log=lambda values, step: calls.append(("wandb", values, step)), finish=lambda: calls.append("finished")
    )
    started = []
    wandb = types.SimpleNamespace(init=lambda **options: started.append(options) or of_wandb)
    mlflow = types.SimpleNamespace(
        start_run=lambda run_name: started.append(run_name),
        log_metrics=lambda values, step: calls.append(("mlflow", values, step)),
        end_run=lambda: calls.append("ended"),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    (tmp_path / "run").mkdir()
    for _ in range(2):
        log = RunLog(tmp_path / "run", 0, 1, report_to=("wandb", "mlflow"))
        log.evaluation({"step": 3, "eval_loss": 2.0, "eval_loss_by_position": {"16": 1.5}})
        log.close()
    values = {"eval/eval_loss": 2.0, "eval/eval_loss_by_position/16": 1.5}
    assert calls == [("wandb", values, 3), ("mlflow", values, 3), "finished", "ended"] * 2
    assert started[0]["id"] == started[2]["id"]
    assert (started[0]["resume"], started[0]["name"], started[1]) == ("allow", "run", "run")
