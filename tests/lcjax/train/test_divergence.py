"""If the loss is not finite, the run stops before the loss is used."""

from __future__ import annotations

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

import lcjax
from lcjax import weights
from lcjax.train import TrainingDiverged, train
from lcjax.train.__main__ import main
from tests.support.processes import complete_saves, lines


@pytest.fixture
def diverge(model_dir, data_dir, tmp_path, capsys):
    """Runs with additional flags; returns (error line, folder of the run)."""

    def run(*flags, model=model_dir):
        fixed = "--max-seq-length 48 --max-steps 8 --seed 3 --lora-r 2".split()
        folder = tmp_path / "run"
        code = main(["--model", str(model), "--data", str(data_dir), *fixed, *flags, "--output-dir", str(folder)])
        last = capsys.readouterr().err.splitlines()[-1]
        assert code == 1
        return last, folder

    return run


def assert_checkpoints_are_finite(folder):
    """Asserts that all arrays of all checkpoints are finite."""
    import orbax.checkpoint as ocp

    for number in complete_saves(folder / "checkpoints"):
        state = ocp.StandardCheckpointer().restore((folder / "checkpoints" / str(number) / "state").absolute())
        assert all(np.isfinite(leaf).all() for leaf in state.values())


def test_a_learning_rate_that_is_too_large(diverge, data_dir):
    last, folder = diverge("--learning-rate", "1e30", "--save-steps", "1", "--eval-fraction", "0")
    said = re.fullmatch(
        r"error: the loss is (\S+) and the norm of its gradient (\S+) at step (\d+), in a batch of (.*); last good "
        r"checkpoint: none; lower --learning-rate, or omit that text",
        last,
    )
    assert said, last
    assert not np.isfinite([float(said[1]), float(said[2])]).all()
    step = int(said[3])
    assert step > 1
    assert all(name.startswith(str(data_dir)) for name in re.split(", | and ", said[4]) if "more" not in name)
    assert lines(folder / "metrics.jsonl") == step - 1
    assert complete_saves(folder / "checkpoints")[-1] == step - 1
    assert_checkpoints_are_finite(folder)
    assert not (folder / "adapter").exists()


def test_the_last_good_checkpoint_is_one_with_a_successful_next_step(diverge):
    # The rate increases from 0, so steps 1 and 2 are harmless.
    last, folder = diverge(
        "--learning-rate", "3e38", "--warmup-steps", "8", "--save-steps", "1", "--max-grad-norm", "0"
    )
    step = int(re.search(r"at step (\d+)", last)[1])
    assert f"last good checkpoint: {folder}/checkpoints/{step - 2};" in last
    assert_checkpoints_are_finite(folder)


def test_a_held_out_loss_counts_too(diverge):
    last, folder = diverge("--learning-rate", "1e30", "--eval-steps", "1", "--eval-fraction", "0.2")
    assert re.match(r"error: the held-out loss is nan at step \d, in a batch of ", last) or "norm of its" in last
    rows = (folder / "evaluation.jsonl").read_text().splitlines()
    assert rows
    assert all(np.isfinite(json.loads(row)["eval_loss"]) for row in rows)


@pytest.mark.parametrize(("fraction", "what"), [("0", "at step 1,"), ("0.2", "the held-out loss is inf at step 0,")])
def test_weights_whose_logits_overflow(fraction, what, diverge, model_dir, tmp_path):
    config, params, _ = weights.load_model_files(model_dir, jnp.float32)
    # Still finite, which loading requires.
    params["norm"]["weight"] = params["norm"]["weight"].at[:].set(1e38)
    broken = tmp_path / "broken"
    weights.save_checkpoint(broken, params, config, weights.load_tokenizer(model_dir))
    last, folder = diverge("--learning-rate", "1e30", "--eval-fraction", fraction, model=broken)
    assert what in last
    assert last.endswith("last good checkpoint: none; check the model's weights, or omit that text")
    assert complete_saves(folder / "checkpoints") == []


def test_a_program_gets_the_error(model_dir, data_dir, tmp_path):
    model, tokenizer = lcjax.from_pretrained(model_dir, 48)
    model = lcjax.get_peft_model(model, r=2)
    with pytest.raises(TrainingDiverged, match="lower --learning-rate"):
        train(model, tokenizer, [data_dir], output_dir=tmp_path / "run", max_steps=8, learning_rate=1e30)
