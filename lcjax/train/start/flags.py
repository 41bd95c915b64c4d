"""The arguments of a run that starts from an adapter: some follow from it, and none contradicts it.

The rank, `lora_alpha` and the target modules of trained weights cannot be chosen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from lcjax import weights
from lcjax.config import LlamaConfig, LoraConfig, target_modules_of
from lcjax.errors import InputError, flag
from lcjax.train.arguments import RunArguments
from lcjax.weights.peft import CONFIG_FILE


def arguments_from_start(
    given: RunArguments, default: RunArguments, parse: Callable[[RunArguments], RunArguments]
) -> RunArguments:
    """The arguments of a run that starts from an adapter.

    Args:
      given: the flags over the usual defaults.
      default: the arguments without any flag.
      parse: reads the flags over other defaults.

    Raises:
      InputError: the model or the adapter cannot be read, they do not match, or a flag contradicts
        the adapter.
    """
    assert given.adapter is not None
    if (inner := given.adapter / "adapter").is_dir() and not (given.adapter / CONFIG_FILE).exists():
        raise InputError(f"--adapter {given.adapter} is the folder of a run; give {inner}")
    config = _model_config(str(given.model or default.model))
    own = weights.load_adapter_config(given.adapter, config)
    arguments = parse(dataclasses.replace(default, **_flags_of(own)))
    _refuse_contradiction(arguments, own, config, f"the adapter in {given.adapter}")
    # The same adapter may be described in two ways: rsLoRA of experts is written as LoRA.
    return dataclasses.replace(arguments, **_flags_of(own) | {"lora_dropout": arguments.lora_dropout})


def refuse_other_start(given: RunArguments, saved: RunArguments) -> None:
    """Raises InputError if a flag says that a resumed run had started from something else."""
    now, before = given.adapter, saved.adapter
    if now is not None and (before is None or before.absolute().resolve() != now.absolute().resolve()):
        started = "did not start from an adapter" if before is None else f"started from {before}"
        raise InputError(f"--adapter {now} cannot be given now, because the resumed run {started}; omit it")


def _model_config(name: str) -> LlamaConfig:
    """The config of a model, whose weights need not be here yet."""
    path = weights.resolve_model(name, with_weights=False)
    return weights.open_model_files(path).config if Path(name).expanduser().exists() else weights.load_config(path)


def _flags_of(lora: LoraConfig) -> dict[str, object]:
    return {
        "lora_r": lora.r,
        "lora_alpha": float(lora.lora_alpha),
        "lora_dropout": float(lora.lora_dropout),
        "use_rslora": lora.use_rslora,
        "target_modules": lora.target_modules,
    }


def _refuse_contradiction(arguments: RunArguments, own: LoraConfig, config: LlamaConfig, source: str) -> None:
    modules = target_modules_of(config.family, arguments.target_modules)
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
