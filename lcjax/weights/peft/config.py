"""Interprets PEFT's adapter_config.json and tensor names, and rejects unsupported adapters.

Source: PEFT 0.21, `tuners/lora/config.py` and `check_target_module_exists` of
`tuners/tuners_utils.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.config.families import Parameter
from lcjax.errors import InputError
from lcjax.model.params import places
from lcjax.weights.assembly import abridged
from lcjax.weights.safetensors_files import StoredTensor
from lcjax.weights.spelling import in_language_model

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

_ROOT, _HEADLESS_ROOT = "base_model.model.model.", "base_model.model."
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_[AB]\.weight")
# Keys of adapter_config.json that do not change what a trained adapter computes, or that are read
# below. Any other key that is set means a variant of LoRA (use_dora, modules_to_save, ...) and is
# rejected. So are variants that do not exist yet.
_PLAIN_KEYS = """
    peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode r
    target_modules exclude_modules lora_alpha lora_dropout use_rslora init_lora_weights
    layers_to_transform layers_pattern megatron_config megatron_core loftq_config eva_config
    corda_config lora_ga_config qalora_group_size runtime_config
""".split()
# Other initializations (pissa, olora, corda, loftq, ...) also change the base weights.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")
_REMEDY = "merge it into its base with PEFT (merge_and_unload) and load the merged model"


def read_adapter_config(path: Path) -> dict[str, Any]:
    """The content of adapter_config.json.

    Raises:
      InputError: it cannot be read, or it describes more than plain LoRA.
    """
    parsed = _read_json(path)
    if parsed.get("peft_type") != "LORA":
        raise InputError(f"{path} says peft_type={parsed.get('peft_type')!r}; only LORA is supported: {_REMEDY}")
    variants = [
        key
        for key, value in parsed.items()
        if key not in _PLAIN_KEYS and not _is_unset(value) and not _is_idle(parsed, key)
    ]
    if parsed.get("init_lora_weights", True) not in _PLAIN_INITS:
        variants.append("init_lora_weights")
    if variants:
        named = ", ".join(f"{key}={repr(parsed[key])[:100]}" for key in variants)
        raise InputError(f"{path} says {named}; only plain LoRA is supported: train without it, or {_REMEDY}")
    return parsed


def plain_names(stored: Mapping[str, StoredTensor], path: Path, config: LlamaConfig) -> dict[str, StoredTensor]:
    """The adapter's tensors by the names of a model with a head.

    An adapter of transformers' LlamaModel, which has no head, omits one `model.`. One of a larger
    model, such as one for images too, has its language model's prefix.

    Raises:
      InputError: a tensor belongs to the embedding or the head, or to another part of a larger
        model.
    """
    stored = _of_language_model(stored, path, config)
    rooted = any(name.startswith(_ROOT) for name in stored)
    named = {
        name if rooted or not name.startswith(_HEADLESS_ROOT) else _ROOT + name.removeprefix(_HEADLESS_ROOT): tensor
        for name, tensor in stored.items()
    }
    for name, original in zip(named, stored, strict=True):
        module = next((module for module in ("embed_tokens", "lm_head") if f".{module}." in name), None)
        if module is not None and "lora_" in name:
            raise InputError(
                f"{path} adapts {module} ({original}); only linear maps of the layers can be adapted: {_REMEDY}"
            )
        if module is not None:
            raise InputError(
                f"{path} contains all of {module} ({original}), which PEFT saves with "
                "save_embedding_layers or modules_to_save; only LoRA is supported: if it was "
                f"not trained, save with save_embedding_layers=False, otherwise {_REMEDY}"
            )
    return named


def _of_language_model(stored: Mapping[str, StoredTensor], path: Path, config: LlamaConfig) -> dict[str, StoredTensor]:
    named = {}
    for name, tensor in stored.items():
        own = in_language_model(name.removeprefix(_HEADLESS_ROOT), config)
        if own is None:
            raise InputError(f"{path} adapts {name}, which is not in the language model: {_REMEDY}")
        named[_HEADLESS_ROOT + own if name.startswith(_HEADLESS_ROOT) else name] = tensor
    return named


def tensor_name(row: Parameter, layer: int | None, expert: int | None, factor: str) -> str:
    """PEFT's name of one factor, `lora_A` or `lora_B`, of the adapter on a layer's weight."""
    return f"base_model.model.{_module_name(row, layer, expert)}.{factor}.weight"


def module_of(name: str) -> str | None:
    """The module that a tensor adapts, by its name in the model; None if it is not of LoRA."""
    return match[1] if (match := _TENSOR.fullmatch(name)) else None


def _module_name(row: Parameter, layer: int | None, expert: int | None) -> str:
    return row.hugging_face.format(layer=layer, expert=expert).removesuffix(".weight")


def _modules(config: LlamaConfig) -> dict[str, tuple[int | None, str]]:
    """The layer and the name of every linear map that can be adapted, by its name in the model."""
    return {
        _module_name(row, layer, expert): (layer, module)
        for module, row in config.family.adaptable.items()
        for layer, expert in places(row, config)
    }


def lora_config(
    parsed: dict[str, Any], stored: Mapping[str, StoredTensor], directory: Path, config: LlamaConfig
) -> LoraConfig:
    """The adapter's LoraConfig, with the modules of the family that its tensors name.

    Raises:
      InputError: there are none, or a number is missing or out of range.
    """
    # PEFT's target_modules may be a list, a pattern or "all-linear"; the tensors show the result.
    modules = {_modules(config)[name][1] for name in _stored_modules(stored, config)}
    if not modules:
        raise InputError(
            f"{directory / WEIGHTS_FILE} adapts no linear map of a Llama layer (it has "
            f"{abridged(list(stored)) or 'no tensors'}); choose target_modules from "
            f"{', '.join(config.family.adaptable)}"
        )
    path = directory / CONFIG_FILE
    try:
        return LoraConfig(
            r=parsed["r"],
            lora_alpha=parsed["lora_alpha"],
            target_modules=tuple(modules),
            use_rslora=bool(parsed.get("use_rslora")),
            lora_dropout=parsed.get("lora_dropout") or 0.0,
        )
    except KeyError as error:
        raise InputError(f"{path} lacks {error}; download the adapter again") from None
    except TypeError:
        raise InputError(
            f"{path}: r, lora_alpha and lora_dropout must be numbers; download the adapter again"
        ) from None


def adapted_modules(parsed: dict[str, Any], stored: Mapping[str, StoredTensor], config: LlamaConfig) -> set[str]:
    """The linear maps that the adapter has according to its config, by names in the model.

    If the config has a pattern of names, which is not evaluated, the tensors of the file decide. So
    a missing tensor is detected except with patterns.
    """
    found = _stored_modules(stored, config)
    targets: Any = parsed.get("target_modules")
    excluded: Any = parsed.get("exclude_modules") or []
    chosen = parsed.get("layers_to_transform")
    numbers = [chosen] if isinstance(chosen, int) else chosen or range(config.num_hidden_layers)
    plain = isinstance(targets, list) and isinstance(excluded, list) and isinstance(numbers, list | range)
    if not plain or parsed.get("layers_pattern"):
        return found
    modules = _modules(config)
    kinds = {modules[name][1] for name in found}
    return {
        name
        for name, (layer, module) in modules.items()
        if module in kinds and layer in numbers and _names(targets, name) and not _names(excluded, name)
    }


def named_base(parsed: dict[str, Any]) -> str:
    """The base model that the config names, in parentheses, or nothing."""
    base = parsed.get("base_model_name_or_path")
    return f" ({base[:200]})" if isinstance(base, str) and base else ""


def _stored_modules(stored: Mapping[str, StoredTensor], config: LlamaConfig) -> set[str]:
    """The linear maps that the tensors adapt, by their names in the model."""
    return _modules(config).keys() & {module for name in stored if (module := module_of(name))}


def _names(entries: list[Any], key: str) -> bool:
    """Whether a list of modules names this one, by its path or by the end of its path."""
    return any(f".{key}".endswith(f".{entry}") for entry in entries)


def _is_unset(value: Any) -> bool:
    # Not by truth value: layers_to_transform=0 names the first layer.
    return value is None or value is False or value in ("none", [], {})


def _is_idle(parsed: dict[str, Any], key: str) -> bool:
    """Whether a pattern of ranks or alphas gives every module its default value."""
    default = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}.get(key)
    if default is None or not isinstance(parsed[key], dict):
        return False
    return all(value == parsed.get(default) for value in parsed[key].values())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist; an adapter's directory needs it in addition to {WEIGHTS_FILE}"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    except RecursionError:
        raise InputError(f"{path} is not valid JSON (nested too deeply); download the adapter again") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); download the adapter again") from None
    if not isinstance(parsed, dict):
        raise InputError(f"{path} is a {type(parsed).__name__}, not an object; download the adapter again")
    return parsed
