"""`lcjax doctor`, and the same advice in lcjax.train before its first step."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from typing import cast

import numpy as np
import pytest

from lcjax.audit.advice import advice_before_training
from lcjax.config import LlamaConfig
from lcjax.data import TokenizedCorpus
from lcjax.doctor.__main__ import main
from lcjax.doctor.findings import Finding
from lcjax.doctor.memory import by_plan
from lcjax.doctor.train_command import train_command
from lcjax.plan.choosing.budget import Budget
from lcjax.plan.planner import Plan, Planner
from lcjax.plan.workload import Workload
from lcjax.train.__main__ import parse as parse_train


@pytest.fixture
def doctor(capsys, model_dir, data_dir):
    """Runs the command on the tiny model; returns the exit code, the findings and the command."""

    def run(*flags: object) -> tuple[int, dict[str, str], list[str]]:
        asked = "--model", model_dir, "--data", data_dir, "--json", "-", *flags
        code = main([str(flag) for flag in asked])
        content = json.loads(capsys.readouterr().out)
        words = shlex.split(content["command"])
        assert words[:2] == ["lcjax", "train"]
        return code, {finding["question"]: finding["answer"] for finding in content["findings"]}, words[2:]

    return run


def test_without_a_gpu_the_rules_decide(doctor, model_dir, data_dir):
    code, found, words = doctor("--max-seq-length", 512, "--lora-r", 4)
    assert code == 0
    assert "RoPE is now yarn, factor 4" in found["beyond the trained context?"]
    assert "up to 32,768 tokens activations may stay on the GPU (none)" in found["does it fit, and how?"]
    arguments = parse_train(words)
    assert (arguments.model, arguments.data) == (str(model_dir), (str(data_dir),))
    assert (arguments.max_seq_length, arguments.lora_r) == (512, 4)
    # Such a small text has few steps per epoch, so there are several epochs.
    steps = found["how many tokens per step?"]
    assert arguments.gradient_accumulation_steps == 1
    assert arguments.num_train_epochs == 4
    assert "from 1 sequence per step; about 24 steps in 4 passes over the data" in steps


def test_a_short_context_is_judged_by_its_own_length(doctor):
    """The documents, with 20 to 200 words, are compared with half of the requested length."""
    _, found, _ = doctor("--max-seq-length", 128)
    assert "longer than 64: " in found["do the documents justify the length?"]


def test_long_contexts_go_to_the_host(doctor):
    _, found, words = doctor("--max-seq-length", 40_960, "--lora-r", 0, "--documents", "repository")
    # 2 layers x 40,960 tokens x 32 x 2 bytes
    assert (
        "every layer's input is saved in pinned host memory, 0.0 GiB in bfloat16 (offload)"
        in found["does it fit, and how?"]
    )
    arguments = parse_train(words)
    assert arguments.full_finetuning
    assert arguments.documents == "repository"


def test_a_gpu_is_planned_for(doctor):
    code, found, words = doctor("--max-seq-length", 256, "--gpu", "rtx4090", "--lora-r", 4)
    assert code == 0
    assert "256 tokens, rtx4090: fits" in found["does it fit, and how?"]
    assert "weights in bfloat16" in found["does it fit, and how?"]
    assert parse_train(words).quantize is None


class Planned:
    """A planner with given plans: for the requested length, and the longest that fits."""

    def __init__(self, plan: Plan, longest: Plan | None):
        self._plan, self._longest = plan, longest

    def plan(self, tokens: int) -> Plan:
        return self._plan

    def longest(self, below: int) -> Plan | None:
        return self._longest


@pytest.fixture(scope="module")
def fitting(model_dir) -> Plan:
    config = LlamaConfig.from_json(model_dir / "config.json")
    return Planner(Workload("tiny", config, "rtx4090", lora_r=4)).plan(256)


def test_four_bits_are_tried_before_less_context(fitting):
    too_large = dataclasses.replace(fitting, budget=Budget(1))
    quantized = dataclasses.replace(fitting, workload=dataclasses.replace(fitting.workload, quantize="nf4"))
    plans = {None: Planned(too_large, None), "nf4": Planned(quantized, None)}
    found = by_plan(fitting.workload, 256, lambda workload: cast(Planner, plans[workload.quantize]))
    assert "256 tokens, rtx4090: fits" in found.answer
    assert (found.flags, found.stops) == ({"quantize": "nf4"}, False)


def test_a_length_that_does_not_fit_is_reduced(fitting):
    too_large = dataclasses.replace(fitting, budget=Budget(1))
    found = by_plan(fitting.workload, 9_999, lambda workload: cast(Planner, Planned(too_large, fitting)))
    assert "256 tokens, rtx4090: does not fit" in found.answer
    assert "256 tokens fit: tiny, 256 tokens, rtx4090: fits" in found.answer
    assert (found.flags, found.stops) == ({"max-seq-length": "256"}, True)
    nowhere = by_plan(fitting.workload, 9_999, lambda workload: cast(Planner, Planned(too_large, None)))
    assert nowhere.answer.startswith("no, at no length:")
    assert nowhere.stops


def test_findings_override_the_request():
    line = train_command(
        {"model": "m", "max-seq-length": "9", "full-finetuning": ""},
        ["a b", "c"],
        [Finding("?", "!", {"max-seq-length": "8"}), Finding("?", "!", {"quantize": "nf4"})],
    )
    assert re.fullmatch(
        r"lcjax train --model m --data 'a b' c --max-seq-length 8 --full-finetuning --quantize nf4 "
        r"--output-dir runs/m-\d{8}-\d{6}",
        line,
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max-seq-length", "1"), "--max-seq-length 1 is out of range"),
        (("--max-seq-length", "64", "--gpu", "rtx409"), "rtx4090"),
        (("--max-seq-length", "64", "--lora-r", "-1"), "--lora-r -1 is out of range"),
        (("--max-seq-length", "64", "--host-gb", "0"), "--host-gb 0.0 is out of range"),
        (("--max-seq-length", "64", "--data", "nowhere"), "nowhere does not exist"),
    ],
)
def test_invalid_arguments_give_one_line(flags, message, model_dir, data_dir, capsys):
    assert main(["--model", str(model_dir), "--data", str(data_dir), *flags]) == 2
    *phases, line = capsys.readouterr().err.strip().splitlines()
    assert set(phases) <= {"reading the data"}
    assert line.startswith("error:")
    assert message in line


def test_training_gives_the_same_advice_for_long_contexts_only():
    tokens = np.random.default_rng(0).integers(0, 30_000, 20 * 4096).astype(np.int32)
    corpus = TokenizedCorpus(tokens, np.arange(21) * 4096, [str(i) for i in range(20)])
    assert "there is nothing to learn at a distance" in advice_before_training(corpus, 4096, 16)[0]
    assert advice_before_training(corpus, 2048, 16) == []


def test_the_command_as_a_file_of_settings(doctor, model_dir, data_dir, tmp_path):
    _, _, words = doctor("--max-seq-length", 64, "--write-config", tmp_path / "my.yaml")
    from_file = parse_train(["--config", str(tmp_path / "my.yaml")])
    assert dataclasses.replace(from_file, config=None) == parse_train(words)
