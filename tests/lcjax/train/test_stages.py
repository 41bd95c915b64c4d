"""A new run that starts from the checkpoint of an earlier one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import lcjax
from lcjax.config.run_record import read_run_record
from lcjax.errors import InputError
from lcjax.report.records import read_rows
from lcjax.step import TrainState
from lcjax.train.__main__ import main, parse
from lcjax.train.checkpoints.checkpoint import Checkpoints
from lcjax.train.running import computation
from tests.support.processes import contents, metrics_of, records

LENGTHS = (64, 128, 256)  # the model was trained for 128
STEPS = 3


@pytest.fixture
def first_states(monkeypatch) -> list[TrainState]:
    """The states with which the runs of a test begin, copied because a step donates its arrays."""
    states = []
    usual = computation.initial_state

    def initial_state(*arguments):
        state = usual(*arguments)
        states.append(jax.tree.map(np.array, state))
        return state

    monkeypatch.setattr(computation, "initial_state", initial_state)
    return states


def saved_state(run: Path, step: int, like: TrainState) -> TrainState:
    return jax.tree.map(np.array, Checkpoints(run / "checkpoints").restore(step, like)[0])


def assert_equal(tree, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def counts(state: TrainState) -> set[int]:
    """The numbers of steps in the optimizer's state."""
    return {int(leaf) for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim == 0}


def test_a_ladder_of_three_lengths_carries_adapter_and_optimizer_bit_for_bit(
    model_dir, data_dir, tmp_path, first_states, capsys
):
    runs = [tmp_path / str(length) for length in LENGTHS]
    base = f"--max-steps {STEPS} --eval-fraction 0.2 --lora-r 3 --learning-rate 1e-3 --warmup-steps 2"
    for number, (length, run) in enumerate(zip(LENGTHS, runs, strict=True)):
        flags = f"--max-seq-length {length} --output-dir {run}"
        if number == 0:
            flags += f" --model {model_dir} --data {data_dir} {base}"
        else:
            before = runs[number - 1]
            flags += f" --config {before}/run.yaml --start-from {before} --optimizer-state"
        assert main(flags.split()) == 0
        said = capsys.readouterr().err
        line = f"RoPE was default, base 10,000 in {runs[1]}/checkpoints/{STEPS}, and is now yarn, factor 2, base 10,000"
        start = f"starting from checkpoint {run.parent / str(length // 2)}/checkpoints/{STEPS}; "
        assert f"{start}the optimizer has its state after {number * STEPS} steps" in said or not number
        assert said.count("RoPE was ") == said.count(line) == (length == 256)
        rates = [row["learning_rate"] for row in metrics_of(run)]
        np.testing.assert_allclose(rates, [0, 5e-4, 1e-3])  # each stage has its own warm-up
    for number in (1, 2):
        carried = saved_state(runs[number - 1], STEPS, first_states[number])
        assert_equal(first_states[number].trainable, carried.trainable)
        assert_equal(first_states[number].optimizer, carried.optimizer)
        assert counts(first_states[number]) == {number * STEPS}
        moments = [leaf for leaf in jax.tree.leaves(carried.optimizer) if leaf.ndim]
        assert all(leaf.any() for leaf in moments)
        assert int(first_states[number].step) == 0
    records_of_runs = [read_run_record(run) for run in runs]
    assert [record["model"]["config"]["rope_scaling"]["rope_type"] for record in records_of_runs] == [
        "default",
        "default",
        "yarn",
    ]
    origin = records_of_runs[2]["origin"]
    assert origin["checkpoint"] == f"{runs[1]}/checkpoints/{STEPS}"
    assert (origin["optimizer_state"], origin["optimizer_steps"]) == (True, 2 * STEPS)
    card = (runs[2] / "adapter" / "README.md").read_text()
    assert (
        f"| started from | checkpoint 3 of 128, with the optimizer's state, fingerprint {origin['fingerprint']}" in card
    )


@pytest.fixture(scope="module")
def one_row(tmp_path_factory) -> Path:
    """A file that fills one row, so that all steps have the same batch."""
    path = tmp_path_factory.mktemp("data") / "row.txt"
    path.write_text("the old river carried seven small boats past a quiet town ")
    return path


@pytest.mark.parametrize("kind", ["--lora-r 2", "--full-finetuning --dtype bfloat16"])
def test_two_stages_on_the_same_batch_are_one_run(kind, model_dir, one_row, tmp_path):
    """With the optimizer's state, also in the arithmetic of a step; without it, they differ."""
    whole, first, second, other = (tmp_path / name for name in ("whole", "first", "second", "other"))
    words = f"--model {model_dir} --data {one_row} --max-seq-length 24 --eval-fraction 0 --lr-scheduler-type constant "
    words += f"--learning-rate 1e-2 {kind}"
    assert main([*words.split(), "--max-steps", "4", "--output-dir", str(whole)]) == 0
    assert main([*words.split(), "--max-steps", "2", "--output-dir", str(first)]) == 0
    before = contents(first)
    start = [*words.split(), "--max-steps", "2", "--start-from", str(first)]
    assert main([*start, "--optimizer-state", "--output-dir", str(second)]) == 0
    assert main([*start, "--output-dir", str(other)]) == 0
    assert contents(first) == before
    losses = [row["loss"] for row in read_rows(whole / "metrics.jsonl")]
    stages = [row["loss"] for run in (first, second) for row in read_rows(run / "metrics.jsonl")]
    assert stages == losses
    others = [row["loss"] for row in read_rows(other / "metrics.jsonl")]
    assert others[0] == losses[2]
    assert others[1] != losses[3]
    [results] = [name for name in ("adapter", "model") if (whole / name).exists()]
    weights = [next((run / results).glob("*.safetensors")).read_bytes() for run in (whole, second, other)]
    assert weights[0] == weights[1] != weights[2]


def test_a_second_stage_with_other_data_begins_with_the_loss_of_the_first_and_resumes_exactly(
    short, finished, texts, tmp_path
):
    """The model and the adapter's settings are those of the checkpoint."""
    other, run, cut = tmp_path / "other.txt", tmp_path / "run", tmp_path / "cut"
    other.write_text("".join(texts[:8]))
    same = [word for word in short if word not in ("--lora-r", "2")]
    assert (
        main([*short, "--max-steps", "1", "--start-from", str(finished), "--output-dir", str(tmp_path / "same")]) == 0
    )
    last, start = read_rows(finished / "evaluation.jsonl")[-1], read_rows(tmp_path / "same" / "evaluation.jsonl")[0]
    assert {**start, "step": 4} == last
    flags = f"--data {other} --max-seq-length 48 --max-steps 4 --save-steps 2 --learning-rate 1e-3 --optimizer-state"
    words = [*flags.split(), "--start-from", str(finished / "checkpoints" / "2"), "--output-dir"]
    assert main([*words, str(run)]) == 0
    arguments = read_run_record(run)["arguments"]
    assert (arguments["model"], arguments["lora_r"]) == (same[1], 2)
    shutil.copytree(run, cut)
    shutil.rmtree(cut / "checkpoints" / "4")
    shutil.rmtree(cut / "adapter")
    assert main(["--output-dir", str(cut), "--resume-from-checkpoint", "latest"]) == 0
    assert records(cut) == records(run)
    assert read_run_record(cut)["origin"] == read_run_record(run)["origin"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "--data d --start-from {run} --lora-r 16",
            "--lora-r 16 contradicts the checkpoint {run}/checkpoints/4, which",
        ),
        ("--data d --start-from {run} --full-finetuning", "--full-finetuning contradicts the checkpoint {run}/check"),
        ("--start-from {run}", "the checkpoint {run}/checkpoints/4 is given without --data; give both"),
        ("--data d --start-from {run}/adapter", "--start-from {run}/adapter is an adapter; give it with --adapter"),
        ("--data d --start-from {run}/tensorboard", "has no checkpoint to start from; start without --start-from"),
        ("--data d --start-from {run}/missing", "--start-from {run}/missing does not exist; give a folder such as"),
        ("--data d --start-from {run}/checkpoints/3", "{run}/checkpoints/3 does not exist"),
        ("--data d --start-from {run} --adapter {run}/adapter", "contradict each other; give one of them"),
        (
            "--data d --start-from {run} --output-dir {run}/x",
            "--output-dir {run}/x is in the folder of --start-from {run}",
        ),
        ("--data d --start-from {run} --output-dir {run}", "{run} has a run with checkpoints; resume it with"),
        ("--optimizer-state", "--optimizer-state has no effect without --start-from; give both, or omit it"),
    ],
)
def test_what_does_not_suit_the_checkpoint_is_refused(flags, said, finished, data_dir, capsys):
    before = contents(finished)
    assert main(flags.replace("--data d", f"--data {data_dir}").format(run=finished).split()) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert said.format(run=finished) in line
    assert contents(finished) == before


def test_a_damaged_checkpoint_is_not_started_from(finished, data_dir, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    with (run / "checkpoints" / "4" / "metrics.jsonl").open("a") as file:
        file.write("x")
    assert main(["--data", str(data_dir), "--start-from", str(run), "--output-dir", str(tmp_path / "y")]) == 2
    assert "checkpoint 4 in" in (said := capsys.readouterr().err)
    assert f"the newest undamaged one is 2: --start-from {run}/checkpoints/2" in said
    assert not (tmp_path / "y").exists()


def test_from_python_the_adapter_must_have_the_same_shape(finished, model_dir, data_dir, tmp_path):
    model, tokenizer = lcjax.from_pretrained(model_dir, 48)
    call = {"data": [data_dir], "start_from": finished, "output_dir": tmp_path / "run", "max_steps": 1}
    with pytest.raises(InputError, match="its adapter has LoraConfig"):
        lcjax.train(lcjax.get_peft_model(model, r=3), tokenizer, **call)
    with pytest.raises(InputError, match="it has an adapter, and this run trains every weight"):
        lcjax.train(model, tokenizer, **call)
    result = lcjax.train(lcjax.get_peft_model(model, r=2), tokenizer, **call)
    assert read_run_record(result.output_dir)["origin"]["checkpoint"] == f"{finished}/checkpoints/4"


def test_a_file_of_settings_does_not_say_what_a_later_stage_starts_from(finished, model_dir, data_dir, tmp_path):
    """A run.yaml has the start of its own run, which the next stage replaces."""
    path = tmp_path / "settings.yaml"
    path.write_text(f"model: {model_dir}\ndata: [{data_dir}]\nadapter: {finished / 'adapter'}\n")
    config = ["--config", str(path)]
    assert parse(config).adapter == finished / "adapter"
    started = parse([*config, "--start-from", str(finished)])
    assert (started.adapter, started.start_from, started.lora_r) == (None, finished, 2)
    assert dataclasses.replace(started, start_from=None).lora_r == 2


def test_an_optimizers_state_of_another_form_is_refused(finished, data_dir, tmp_path, capsys):
    words = (
        f"--data {data_dir} --start-from {finished} --max-steps 1 --max-seq-length 48 --output-dir {tmp_path / 'run'}"
    )
    assert main([*words.split(), "--optimizer-state", "--optimizer-memory", "host"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "has another form of the optimizer's state than this run" in line
    assert "--optimizer-memory" in line
