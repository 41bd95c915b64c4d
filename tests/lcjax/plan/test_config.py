"""`lcjax plan --config`: the settings of a run, and the model that they name."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

import lcjax
from lcjax.config.presets import PRESETS
from lcjax.config.yaml_files import as_yaml
from lcjax.errors import InputError
from lcjax.plan.arguments import PlanArguments
from lcjax.plan.command import workload_of
from lcjax.plan.config_file import RunSettings, parse
from lcjax.plan.models import config_of
from lcjax.train.arguments import RunArguments
from lcjax.weights.demo import PACKAGE

RUN = {
    "model": "llama-3.1-8b", "data": ["a.txt"], "max-seq-length": 4096, "quantize": "nf4", "lora_r": 8,
    "lora_alpha": 16, "learning_rate": 1e-4, "memory": "tile=1024", "output_dir": "runs/x",
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    """Writes a file of settings; returns its path as text."""

    def write(**settings: object) -> str:
        (tmp_path / "my.yaml").write_text(as_yaml(settings))
        return str(tmp_path / "my.yaml")

    return write


def test_every_setting_of_a_run_may_be_in_the_file():
    """If this fails, add the new flag of lcjax train to RunSettings, with the same type."""
    assert typing.get_type_hints(RunSettings) == typing.get_type_hints(RunArguments)


def test_the_settings_of_a_run_are_those_of_the_plan(file):
    path = file(**RUN)
    expected = PlanArguments(
        "llama-3.1-8b", Path(path), max_seq_length=4096, quantize="nf4", lora_r=8, memory="tile=1024", gpu="rtx4090"
    )
    assert parse(["--config", path, "--gpu", "rtx4090"]) == expected
    changed = parse([f"--config={path}", "--lora-r", "4", "--max-seq-length", "8192", "--model", "qwen3-8b"])
    assert (changed.model, changed.lora_r, changed.max_seq_length) == ("qwen3-8b", 4, 8192)


def test_every_weight_is_no_adapter(file):
    path = file(model="llama-3.2-1b", full_finetuning=True, data=["x"])
    assert parse(["--config", path]).lora_r == 0
    assert parse(["--config", path]).max_seq_length == RunArguments.max_seq_length


def test_a_search_ignores_the_length_of_the_file(file):
    assert parse(["--config", file(**RUN), "--find-max"]).max_seq_length is None


def test_a_record_of_a_run_can_be_planned(file):
    arguments = {"model": "llama-3.2-1b", "lora_r": 4, "output_dir": "x", "programs_dir": None, "max_seq_length": 99}
    assert parse(["--config", file(format=2, arguments=arguments)]).lora_r == 4


def test_micro_batches_are_those_of_the_run(file):
    settings = RUN | {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2}
    workload = workload_of(parse(["--config", file(**settings)]))
    assert (workload.training.gradient_accumulation_steps, workload.training.per_device_train_batch_size) == (4, 2)
    assert workload.rows == 8


def test_an_adapter_to_train_further_has_its_own_rank(file, model_dir, tmp_path):
    model, _ = lcjax.from_pretrained(str(model_dir), 64)
    lcjax.save_pretrained(lcjax.get_peft_model(model, r=3, target_modules=["q_proj"]), tmp_path / "adapter")
    path = file(model=str(model_dir), adapter=str(tmp_path / "adapter"), lora_r=16)
    workload = workload_of(parse(["--config", path]))
    assert (workload.lora_r, workload.target_modules) == (3, ("q_proj",))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (RUN | {"gpu": "h200"}, "gpu in {} is no flag of lcjax train"),
        (RUN | {"lora_q": 1}, "lora_q in {} is no flag of lcjax train; did you mean lora_r?"),
        (RUN | {"learning_rate": "fast"}, "learning_rate: 'fast' in {} is text; give a number"),
        (RUN | {"dtype": "float32"}, "dtype: float32 in {} cannot be planned"),
        (RUN | {"max-seq-length": 1}, "--max-seq-length 1 is out of range; it must be from 2 to"),
        ({"lora_r": 8}, "--model is not given, and {} has no model"),
    ],
)
def test_what_is_refused(settings, said, file):
    path = file(**settings)
    with pytest.raises(InputError) as caught:
        parse(["--config", path])
    assert said.replace("{}", path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("Llama-3.1-8B", "llama-3.1-8b"),
    ],
)
def test_a_hub_id_has_the_shape_of_the_preset_of_that_name(name, preset):
    assert config_of(name) == PRESETS[preset]


def test_the_demo_has_the_shape_in_its_file(smollm2):
    assert config_of(PACKAGE) == config_of(str(smollm2))
    assert config_of(PACKAGE).hidden_size == PRESETS["smollm2-135m"].hidden_size


def test_a_name_that_is_none_of_these(tmp_path):
    with pytest.raises(InputError, match=r"model='llama-3.1-9b' is unknown; did you mean"):
        config_of("llama-3.1-9b")
    with pytest.raises(InputError, match=r"neither|is unknown|cannot be downloaded"):
        config_of("./nothing/here")
