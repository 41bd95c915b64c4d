"""Reads the flags of `lcjax plan`, with `--config FILE` over the settings of a run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from lcjax.cli.config_file import ConfigFile, given_config
from lcjax.cli.flags import parse as parse_flags
from lcjax.config.training import DEFAULT_MAX_SEQ_LENGTH, TrainingArguments
from lcjax.errors import InputError
from lcjax.plan.arguments import PlanArguments


class RunSettings(TrainingArguments):
    """The names and types of all settings of `lcjax.train`, which this package does not import."""

    config: Path | None
    model: str | None
    data: tuple[str, ...]
    max_seq_length: int
    rope_scaling: str
    rope_theta: float | None
    dtype: str
    quantize: str | None
    adapter: Path | None
    lora_r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    full_finetuning: bool
    use_gradient_checkpointing: str
    memory: str
    loss_chunk: int | None
    attention: str
    coordinator: str | None
    num_processes: int | None
    process_id: int | None


def parse(argv: list[str] | None = None) -> PlanArguments:
    """The arguments of a plan: flags that override the file of settings and the defaults.

    Raises:
      InputError: as `lcjax.cli.config_file.read_config`, or a flag or setting is invalid.
    """
    words = sys.argv[1:] if argv is None else argv
    file = given_config(argv, RunSettings, "lcjax train")
    if file is None:
        return parse_flags(PlanArguments, argv, "lcjax plan")
    try:
        arguments = parse_flags(PlanArguments, argv, "lcjax plan", PlanArguments(**planned(file, words)))
    except InputError as error:
        raise file.blamed(error, words) from None
    if not arguments.model:
        raise InputError(f"--model is not given, and {file.path} has no model; give one")
    return arguments


def planned(file: ConfigFile, words: list[str]) -> dict:
    """The fields of `PlanArguments` that follow from a file of settings.

    A setting that does not change the memory of a step, such as the data, has no field. A search
    for the longest context ignores the file's length.

    Raises:
      InputError: the file's dtype is float32, with which nothing is planned.
    """
    settings = dict(file.values)
    if settings.get("dtype") == "float32":
        raise InputError(f"dtype: float32 in {file.path} cannot be planned; remove it, or use bfloat16")
    fields = {field.name for field in dataclasses.fields(PlanArguments)}
    values = {"model": "", "max_seq_length": DEFAULT_MAX_SEQ_LENGTH}
    values |= {name: value for name, value in settings.items() if name in fields and value is not None}
    if settings.get("full_finetuning"):
        values["lora_r"] = 0
    if {"--find-max", "--table"} & {*words}:
        del values["max_seq_length"]
    return values
