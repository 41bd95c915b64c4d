"""The arguments of a run: values, the demo's defaults and the help."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError, flag
from lcjax.train.__main__ import main, parse
from lcjax.train.arguments import SECTIONS, RunArguments
from lcjax.train.demo import demo
from lcjax.train.refusals import check_policy_early


@pytest.mark.parametrize(
    ("given", "rows", "steps"),
    [
        ({"max_steps": 7, "num_train_epochs": 3.0}, 10, 7),
        ({}, 10, 10),
        ({"num_train_epochs": 2.5, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}, 10, 5),
        ({"num_train_epochs": 0.001}, 10, 1),
    ],
)
def test_the_number_of_steps(given, rows, steps):
    assert TrainingArguments(**given).number_of_steps(rows) == steps


def test_a_program_gets_the_same_errors_as_the_command():
    with pytest.raises(InputError, match="--seed -1 is out of range"):
        TrainingArguments(seed=-1)
    with pytest.raises(InputError, match="--warmup-steps 3 exceeds --max-steps 2"):
        dataclasses.replace(TrainingArguments(warmup_steps=3), max_steps=2)


def test_the_demo():
    arguments = parse([])
    assert arguments == demo()
    assert Path(arguments.model or "").suffix == ".gguf"
    assert len(arguments.data) > 500
    assert all(Path(path).suffix == ".py" for path in arguments.data)
    assert parse(["--max-steps", "3"]) == dataclasses.replace(demo(), max_steps=3)


def test_flags_override_defaults():
    arguments = parse("--model m --data a b --lora-r 8 --target-modules q_proj v_proj --output-dir runs/x".split())
    expected = RunArguments(
        model="m", data=("a", "b"), lora_r=8, target_modules=("q_proj", "v_proj"), output_dir=Path("runs/x")
    )
    assert arguments == expected


def test_the_help_has_every_flag_in_one_section_and_common_flags_first(capsys):
    in_sections = [name for names in SECTIONS.values() for name in names]
    assert sorted(in_sections) == sorted(field.name for field in dataclasses.fields(RunArguments))
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    first = [shown.index(f"{flag(name)} ") for name in ("model", "data", "max_seq_length", "output_dir")]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lcjax train ")
    assert first[-1] < shown.index("--learning-rate FLOAT")


def test_flags_override_the_numbers_of_the_demo():
    assert parse(["--max-steps", "1"]).warmup_steps == 1
    assert (parse(["--warmup-ratio", "0.5"]).warmup_steps, parse(["--num-train-epochs", "2"]).max_steps) == (0, -1)


def test_the_help_names_every_flag_and_gives_examples(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(RunArguments):
        assert flag(field.name) in shown
    assert "lcjax train --model DIR_OR_HUB_ID --data book.txt" in shown
    assert "lcjax train --output-dir runs/x --resume-from-checkpoint latest" in shown


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"max_steps": "10"}, "--max-steps '10' is of type str; give a whole number"),
        ({"max_steps": 1.5}, "--max-steps 1.5 is of type float; give a whole number"),
        ({"save_steps": True}, "--save-steps True is of type bool; give a whole number"),
        ({"learning_rate": "1e-4"}, "--learning-rate '1e-4' is of type str; give a number"),
        ({"documents": 3}, "--documents 3 is of type int; give a word"),
        ({"lr_scheduler_type": None}, "--lr-scheduler-type None is of type NoneType; give a word"),
        ({"skip_leak_check": "no"}, "--skip-leak-check 'no' is of type str; give True or False"),
    ],
)
def test_a_value_of_another_type_is_named(given, named):
    with pytest.raises(InputError, match=named):
        TrainingArguments(**given)
    assert TrainingArguments(learning_rate=1).learning_rate == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"use_gradient_checkpointing": "none", "memory": "tile=64"},
            "use_gradient_checkpointing='none' does not run in tiles; use 'full' or 'offload'",
        ),
        (
            {"use_gradient_checkpointing": "offload_attn", "memory": "head_groups=2"},
            "use_gradient_checkpointing='offload_attn' does not run in tiles in groups of heads",
        ),
        (
            {"use_gradient_checkpointing": "none", "max_seq_length": 65_536, "context_parallel_size": 1},
            "use_gradient_checkpointing='none' at 65,536 tokens on a device",
        ),
    ],
)
def test_contradictions_are_refused_before_anything_is_read(given, message):
    with pytest.raises(InputError, match=message):
        RunArguments(**given)


def test_a_policy_is_judged_when_the_devices_are_known(monkeypatch):
    explicit = {"use_gradient_checkpointing": "none", "max_seq_length": 65_536}
    check_policy_early(RunArguments(**explicit, context_parallel_size=8))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    check_policy_early(RunArguments(**explicit))
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    check_policy_early(RunArguments(**explicit))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(InputError, match="use_gradient_checkpointing='none' at 65,536 tokens on a device"):
        check_policy_early(RunArguments(**explicit))
