"""Interprets PEFT's adapter_config.json, and rejects unsupported adapters.

Source: PEFT 0.21, `tuners/lora/config.py` and `check_target_module_exists` of
`tuners/tuners_utils.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.errors import InputError
from lcjax.model.params import places
from lcjax.weights.assembly import abridged
from lcjax.weights.peft.fused import PARAMETERS, parameter_keys
from lcjax.weights.peft.names import CONFIG_FILE, REMEDY, WEIGHTS_FILE, Factor, module_name, module_of
from lcjax.weights.peft.ranks import is_readable, largest_rank

# Keys of adapter_config.json that do not change what a trained adapter computes, or that are read
# below. Any other key that is set means a variant of LoRA (use_dora, modules_to_save, ...) and is
# rejected. So are variants that do not exist yet.
_PLAIN_KEYS = """
    peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode r
    target_modules exclude_modules lora_alpha lora_dropout use_rslora init_lora_weights rank_pattern
    alpha_pattern target_parameters layers_to_transform layers_pattern megatron_config megatron_core
    loftq_config eva_config corda_config lora_ga_config qalora_group_size runtime_config
""".split()
# Other initializations (pissa, olora, corda, loftq, ...) also change the base weights.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")


def read_adapter_config(path: Path) -> dict[str, Any]:
    """The content of adapter_config.json.

    Raises:
      InputError: it cannot be read, or it describes more than plain LoRA.
    """
    parsed = _read_json(path)
    if parsed.get("peft_type") != "LORA":
        raise InputError(f"{path} says peft_type={parsed.get('peft_type')!r}; only LORA is supported: {REMEDY}")
    variants = [key for key, value in parsed.items() if key not in _PLAIN_KEYS and not _is_unset(value)]
    for key, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        if not is_readable(parsed.get(key) or {}) and not _is_idle(parsed[key], parsed.get(default)):
            variants.append(key)
    if not _of_experts(parsed.get("target_parameters") or []):
        variants.append("target_parameters")
    if parsed.get("init_lora_weights", True) not in _PLAIN_INITS:
        variants.append("init_lora_weights")
    if variants:
        named = ", ".join(f"{key}={repr(parsed[key])[:100]}" for key in variants)
        raise InputError(f"{path} says {named}; only plain LoRA is supported: train without it, or {REMEDY}")
    return parsed


def _modules(config: LlamaConfig) -> dict[str, tuple[int | None, str]]:
    """The layer and the name of every linear map that can be adapted, by its name in the model."""
    return {
        module_name(row, layer, expert): (layer, module)
        for module, row in config.family.adaptable.items()
        for layer, expert in places(row, config)
    }


def lora_config(
    parsed: dict[str, Any], factors: Mapping[str, Factor], directory: Path, config: LlamaConfig
) -> tuple[LoraConfig, dict[str, int]]:
    """The adapter's LoraConfig, with the modules of the family that its tensors name.

    Returns:
      (config, ranks): the config has the largest rank. `ranks` are those of the linear maps by
      their names in the model.

    Raises:
      InputError: there are no such modules, a number is missing or out of range, or their ratios
        of `lora_alpha` to rank differ.
    """
    # PEFT's target_modules may be a list, a pattern or "all-linear"; the tensors show the result.
    all_modules = _modules(config)
    modules = {all_modules[name][1] for name in _stored_modules(factors, all_modules)}
    if not modules:
        raise InputError(
            f"{directory / WEIGHTS_FILE} adapts no linear map of a Llama layer (it has "
            f"{abridged(list(factors)) or 'no tensors'}); choose target_modules from "
            f"{', '.join(config.family.adaptable)}"
        )
    path = directory / CONFIG_FILE
    try:
        rank, alpha, ranks = largest_rank(parsed, factors, path)
        lora = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=tuple(modules),
            use_rslora=bool(parsed.get("use_rslora")),
            lora_dropout=parsed.get("lora_dropout") or 0.0,
        )
        return lora, ranks
    except KeyError as error:
        raise InputError(f"{path} lacks {error}; download the adapter again") from None
    except TypeError:
        raise InputError(
            f"{path}: r, lora_alpha and lora_dropout must be numbers; download the adapter again"
        ) from None


def adapted_modules(parsed: dict[str, Any], factors: Mapping[str, Factor], config: LlamaConfig) -> set[str]:
    """The linear maps that the adapter has according to its config, by names in the model.

    If the config has a pattern of names, which is not evaluated, the tensors of the file decide. So
    a missing tensor is detected except with patterns.
    """
    modules = _modules(config)
    found = _stored_modules(factors, modules)
    parameters: Any = parsed.get("target_parameters") or []
    targets: Any = parsed.get("target_modules") or ([] if parameters else None)
    excluded: Any = parsed.get("exclude_modules") or []
    chosen = parsed.get("layers_to_transform")
    numbers = [chosen] if isinstance(chosen, int) else chosen or range(config.num_hidden_layers)
    plain = isinstance(targets, list) and isinstance(excluded, list) and isinstance(numbers, list | range)
    if not plain or parsed.get("layers_pattern"):
        return found
    kinds = {modules[name][1] for name in found}
    # PEFT looks at neither layers_to_transform nor exclude_modules for parameters.
    of_parameters = {name for name, key in parameter_keys(config).items() if parameters and _names(parameters, key)}
    return of_parameters | {
        name
        for name, (layer, module) in modules.items()
        if module in kinds and layer in numbers and _names(targets, name) and not _names(excluded, name)
    }


def named_base(parsed: dict[str, Any]) -> str:
    """The base model that the config names, in parentheses, or nothing."""
    base = parsed.get("base_model_name_or_path")
    return f" ({base[:200]})" if isinstance(base, str) and base else ""


def _stored_modules(factors: Mapping[str, Factor], modules: Mapping[str, Any]) -> set[str]:
    """Those of the linear maps, by their names in the model, that the tensors adapt."""
    return modules.keys() & {module for name in factors if (module := module_of(name))}


def _names(entries: list[Any], key: str) -> bool:
    """Whether a list of modules names this one, by its path or by the end of its path."""
    return any(f".{key}".endswith(f".{entry}") for entry in entries)


def _is_unset(value: Any) -> bool:
    # Not by truth value: layers_to_transform=0 names the first layer.
    return value is None or value is False or value in ("none", [], {})


def _is_idle(pattern: Any, default: Any) -> bool:
    """Whether a pattern of ranks or alphas gives every module its default value."""
    return isinstance(pattern, dict) and all(value == default for value in pattern.values())


def _of_experts(parameters: Any) -> bool:
    """Whether all parameters are those of experts, or of a router, whose tensors are refused."""
    return isinstance(parameters, list) and all(
        f".{name}".endswith((".gate.weight", *(f".{parameter}" for parameter in PARAMETERS))) for name in parameters
    )


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
