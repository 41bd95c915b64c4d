"""The summary of a run, from its records alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcjax.report.records import RunRecords
from lcjax.report.summary import duration, summary

RECORD = {
    "arguments": {
        "model": "models/tiny", "lora_r": 8, "max_seq_length": 1024, "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
    },
    "resolved": {"dtype": "bfloat16", "quantize": ["nf4"], "trainable_parameters": 12345},
    "data": {"documents": 1, "tokens": 5000, "training_rows": 4, "held_out_rows": 1},
}  # fmt: skip
STEPS = [{"step": n, "loss": 4.0 - n, "tokens": 500, "epoch": n / 4, "elapsed_seconds": 100.0 * n} for n in (1, 2, 3)]


def test_a_summary():
    losses = [{"step": n, "eval_loss": loss} for n, loss in ((0, 5.0), (1, 3.5), (2, 3.0), (3, 3.25))]
    assert summary(RunRecords(Path("runs/x"), RECORD, STEPS, losses)) == {
        "model": "tiny, bfloat16, nf4; LoRA r=8, 12,345 trainable parameters",
        "data": "1 document, 5,000 tokens; 4 rows of 1,024, 1 held out",
        "time": "3 steps, 1,500 tokens, 0.75 epochs in 5 min 0 s",
        "loss": "3.0000 in the first step, 1.0000 in the last",
        "held out": "5.0000 before, 3.0000 at step 2, the best and saved, 3.2500 after",
    }


def test_what_is_not_recorded_is_left_out():
    record = RECORD | {"resolved": {}, "data": RECORD["data"] | {"held_out_rows": 0}}
    assert summary(RunRecords(Path("runs/x"), record, [], [])) == {
        "model": "tiny; LoRA r=8",
        "data": "1 document, 5,000 tokens; 4 rows of 1,024",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7260, "2 h 1 min")],
)
def test_a_duration(seconds, text):
    assert duration(seconds) == text
