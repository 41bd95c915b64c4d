"""The arguments of a run that starts from trained weights: some follow, and none contradicts them.

The rank, `lora_alpha` and the target modules of trained weights cannot be chosen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lcjax import weights
from lcjax.config import ALL_LINEAR, LlamaConfig, LoraConfig, target_modules_of
from lcjax.config.run_record import path_from
from lcjax.errors import InputError, flag
from lcjax.train.arguments import RunArguments
from lcjax.train.start.point import Start, find_start
from lcjax.weights.peft import CONFIG_FILE


def arguments_from_start(
    given: RunArguments, default: RunArguments, parse: Callable[[RunArguments], RunArguments]
) -> RunArguments:
    """The arguments of a run that starts from an adapter or from a checkpoint.

    Args:
      given: the flags over the usual defaults.
      default: the arguments without any flag.
      parse: reads the flags over other defaults.

    Raises:
      InputError: the model, the adapter or the checkpoint cannot be read, they do not match, or a
        flag contradicts them.
    """
    start = find_start(given)
    own = _from_adapter(given, default) if start is None else _from_checkpoint(start, given)
    if given.full_finetuning and own.lora is not None:
        raise InputError(f"--full-finetuning contradicts {own.name}, which is of an adapter; omit it")
    arguments = parse(dataclasses.replace(default, **own.flags))
    if not arguments.data:
        raise InputError(f"{own.name} is given without --data; give both")
    if own.lora is None:
        if not arguments.full_finetuning:
            raise InputError(f"--no-full-finetuning contradicts {own.name}, which is of every weight; omit it")
        return arguments
    _refuse_contradiction(arguments, own.lora, str(arguments.model), own.name)
    # The same adapter may be described in two ways: rsLoRA of experts is written as LoRA.
    return dataclasses.replace(arguments, **_flags_of(own.lora) | {"lora_dropout": arguments.lora_dropout})


class _Own(NamedTuple):
    """What a run starts from: its name, its adapter, and the flags that follow."""

    name: str
    lora: LoraConfig | None
    flags: dict[str, Any]


def _from_adapter(given: RunArguments, default: RunArguments) -> _Own:
    assert given.adapter is not None
    if (inner := given.adapter / "adapter").is_dir() and not (given.adapter / CONFIG_FILE).exists():
        raise InputError(f"--adapter {given.adapter} is the folder of a run; give {inner}")
    lora = weights.load_adapter_config(given.adapter, _model_config(str(given.model or default.model)))
    return _Own(f"the adapter in {given.adapter}", lora, _flags_of(lora))


def _from_checkpoint(start: Start, given: RunArguments) -> _Own:
    """The model and how its weights are stored are those of the checkpoint by default."""
    saved = start.saved["arguments"]
    if given.model is None and "model" not in saved:
        raise InputError(f"--start-from {start.point} was written by lcjax.train() in a program; give --model too")
    names = ("dtype", "quantize", *(["optimizer_memory"] if start.optimizer_state else ()))
    flags = {name: saved[name] for name in names if name in saved}
    if "model" in saved:
        flags["model"] = path_from(start.saved["working_directory"], saved["model"])
    else:
        flags["model"] = given.model
    flags |= {"start_from": given.start_from, "full_finetuning": start.lora is None}
    return _Own(
        f"the checkpoint {start.point}", start.lora, flags | ({} if start.lora is None else _flags_of(start.lora))
    )


def refuse_other_start(given: RunArguments, saved: RunArguments) -> None:
    """Raises InputError if a flag says that a resumed run had started from something else."""
    for name in ("adapter", "start_from"):
        now, before = getattr(given, name), getattr(saved, name)
        if now is not None and (before is None or before.absolute().resolve() != now.absolute().resolve()):
            started = f"started without {flag(name)}" if before is None else f"started from {before}"
            raise InputError(f"{flag(name)} {now} cannot be given now, because the resumed run {started}; omit it")


def _model_config(name: str) -> LlamaConfig:
    """The config of a model, whose weights need not be here yet."""
    path = weights.resolve_model(name, with_weights=False)
    is_here = path.suffix == ".gguf" or Path(name).expanduser().exists()
    return weights.open_model_files(path).config if is_here else weights.load_config(path)


def _flags_of(lora: LoraConfig) -> dict[str, Any]:
    return {
        "lora_r": lora.r,
        "lora_alpha": float(lora.lora_alpha),
        "lora_dropout": float(lora.lora_dropout),
        "use_rslora": lora.use_rslora,
        "target_modules": lora.target_modules,
    }


def _refuse_contradiction(arguments: RunArguments, own: LoraConfig, model: str, source: str) -> None:
    modules = arguments.target_modules
    if ALL_LINEAR in modules:
        modules = target_modules_of(_model_config(model).family, modules)
    asked = LoraConfig(arguments.lora_r, arguments.lora_alpha, modules, arguments.use_rslora)
    if asked.r != own.r:
        name, has = "lora_r", f"rank {own.r}"
    elif asked.target_modules != own.target_modules:
        name, has = "target_modules", f"the target modules {' '.join(own.target_modules)}"
    elif math.isclose(asked.scaling, own.scaling, rel_tol=1e-9):
        return
    elif asked.use_rslora != own.use_rslora:
        name, has = "use_rslora", f"use_rslora={own.use_rslora}"
    else:
        name, has = "lora_alpha", f"lora_alpha {own.lora_alpha:g}"
    value = getattr(arguments, name)
    shown = " ".join(value) if isinstance(value, tuple) else value
    raise InputError(f"{flag(name)} {shown} contradicts {source}, which has {has}; omit it")
