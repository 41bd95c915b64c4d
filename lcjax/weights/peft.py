"""PEFT's adapter directories (adapter_config.json, adapter_model.safetensors), in and out.

Source: the developer guide "PEFT checkpoint format" in the documentation of PEFT.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import DTypeLike

from lcjax.config import TARGET_MODULES, LlamaConfig, LoraConfig
from lcjax.errors import InputError
from lcjax.weights.assembly import abridged, assemble, check_tensors, parameter_dtype, require_finite, tree_leaves
from lcjax.weights.hf import refuse_pickles, write_json
from lcjax.weights.names import TensorName, linear_path
from lcjax.weights.safetensors_files import StoredTensor, read_header, read_into, write_file
from lcjax.weights.staging import staged

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# Not config.json: transformers takes a directory with both for one that holds the base weights as well.
BASE_CONFIG_FILE = "base_config.json"

_KEY = re.compile(r"base_model\.model\.model\.layers\.\d+\.(?:self_attn|mlp)\.(\w+)\.lora_[AB]\.weight")
# Keys of adapter_config.json that do not change what a trained adapter computes, or that are read below. Any other
# that is set to something is a variant of LoRA (use_dora, rank_pattern, modules_to_save, ...) and refused, also one
# not invented yet.
_PLAIN_KEYS = """
    peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules
    exclude_modules lora_alpha lora_dropout use_rslora init_lora_weights layers_pattern megatron_config megatron_core
    loftq_config eva_config corda_config lora_ga_config qalora_group_size runtime_config
"""
# Other ways to draw the first values (pissa, olora, corda, loftq, ...) also change the base weights.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")


def adapter_names(lora: LoraConfig, layers: int, shapes: Mapping[str, tuple[int, int]]) -> list[TensorName]:
    """Every tensor of the adapter, under PEFT's names, stack by stack.

    Args:
      lora: the rank and the target modules.
      layers: the number of layers.
      shapes: (out_features, in_features) of each target module.
    """
    names = []
    for module in lora.target_modules:
        out_features, in_features = shapes[module]
        for factor, shape in (("lora_A", (lora.r, in_features)), ("lora_B", (out_features, lora.r))):
            path = (*linear_path(module), factor)
            prefix, suffix = "base_model.model.model.layers", f"{'.'.join(path[1:])}.weight"
            names += [TensorName(f"{prefix}.{layer}.{suffix}", path, layer, shape) for layer in range(layers)]
    return names


def save_adapter(
    directory: str | os.PathLike[str],
    adapter: dict[str, Any],
    lora: LoraConfig,
    base_model: str,
    config: LlamaConfig | None = None,
) -> None:
    """Saves an adapter as `peft.PeftModel.from_pretrained` reads it; all or nothing.

    Args:
      directory: made if it does not exist; there, a former adapter is replaced and other files stay.
      adapter: `{"layers": {"self_attn": {"q_proj": {"lora_A": [L, r, in], "lora_B": [L, out, r]}}, "mlp": {...}}}` for
        the target modules, float32 or bfloat16.
      lora: the adapter's rank, scaling and target modules.
      base_model: what PEFT should load the base model from, a hub id or a path.
      config: the base model as the adapter was trained on it, for base_config.json: its RoPE may not be that of the base's own
        files (see `base_config`).

    Raises:
      InputError: the directory cannot be written or the disk is full; what was there before is intact.
      ValueError: adapter is not the tree of `lora`.
    """
    leaves = tree_leaves(adapter, _names_of_tree(adapter, lora))

    def fetch(name: str) -> np.ndarray:
        leaf, place = leaves[name]
        return np.asarray(leaf[place.layer])

    tensors = {name: (parameter_dtype(leaf.dtype), place.shape) for name, (leaf, place) in leaves.items()}
    with staged(Path(directory), sum(leaf.nbytes for leaf in jax.tree.leaves(adapter))) as staging:
        write_file(staging / WEIGHTS_FILE, tensors, fetch, metadata={"format": "pt"})
        write_json(staging / CONFIG_FILE, _to_peft(lora, base_model))
        if config is not None:
            write_json(staging / BASE_CONFIG_FILE, config.to_dict())


def base_config(directory: str | os.PathLike[str], config: LlamaConfig) -> LlamaConfig:
    """`config` with the RoPE and the context that an adapter was trained with, where `save_adapter` wrote them down."""
    path = Path(directory) / BASE_CONFIG_FILE
    return config.with_rope_of(LlamaConfig.from_json(path)) if path.is_file() else config


def _names_of_tree(adapter: dict[str, Any], lora: LoraConfig) -> list[TensorName]:
    try:
        modules = {
            module: adapter[path[0]][path[1]][path[2]]
            for module in lora.target_modules
            for path in [linear_path(module)]
        }
        shapes = {module: (pair["lora_B"].shape[1], pair["lora_A"].shape[2]) for module, pair in modules.items()}
        layers = modules[lora.target_modules[0]]["lora_A"].shape[0]
    except (KeyError, IndexError) as error:
        raise ValueError(f"the adapter lacks {error} of target_modules={lora.target_modules}") from error
    return adapter_names(lora, layers, shapes)


def load_adapter(
    directory: str | os.PathLike[str], config: LlamaConfig, dtype: DTypeLike = np.float32
) -> tuple[LoraConfig, dict[str, Any]]:
    """Loads an adapter that PEFT or `save_adapter` saved.

    Args:
      directory: holds adapter_config.json and adapter_model.safetensors.
      config: the model that the adapter belongs to.
      dtype: float32 or bfloat16.

    Returns:
      Its LoraConfig, with the target modules that its tensors name, and the tree as `save_adapter` takes it, jax
      Arrays on the default device.

    Raises:
      InputError: a file is missing or corrupt, the adapter is not plain LoRA on the seven linear maps of every layer,
        or its tensors do not match the model.
    """
    directory = Path(directory)
    if not (directory / WEIGHTS_FILE).exists():
        refuse_pickles(directory, WEIGHTS_FILE)
    parsed = _parse_config(directory / CONFIG_FILE)
    stored = read_header(directory / WEIGHTS_FILE)
    lora = _from_peft(parsed, stored, directory / CONFIG_FILE)
    names = adapter_names(lora, config.num_hidden_layers, config.linear_shapes())
    check_tensors(
        {name: tensor.shape for name, tensor in stored.items()},
        {name.name: name.shape for name in names},
        source=directory / WEIGHTS_FILE,
        mend="load the adapter with the base model it was trained on",
    )

    def read(name: TensorName, out: np.ndarray) -> None:
        read_into(stored[name.name], out)
        require_finite(out, directory / WEIGHTS_FILE, name.name)

    return lora, assemble(names, read, config.num_hidden_layers, parameter_dtype(dtype))


def _parse_config(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; an adapter's directory needs it beside {WEIGHTS_FILE}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); download the adapter again") from None
    if not isinstance(parsed, dict):
        raise InputError(f"{path} holds a {type(parsed).__name__}, not an object; download the adapter again")
    if parsed.get("peft_type") != "LORA":
        raise InputError(f"{path} says peft_type={parsed.get('peft_type')!r}; only LORA is supported")
    variants = [key for key, value in parsed.items() if key not in _PLAIN_KEYS.split() and not _is_unset(value)]
    if parsed.get("init_lora_weights", True) not in _PLAIN_INITS:
        variants.append("init_lora_weights")
    if variants:
        named = ", ".join(f"{key}={parsed[key]!r}" for key in variants)
        raise InputError(f"{path} says {named}; only plain LoRA is supported: train without it, or merge it with PEFT")
    return parsed


def _is_unset(value: Any) -> bool:
    # Not by truth: layers_to_transform=0 names the first layer.
    return value is None or value is False or value in ("none", [], {})


def _from_peft(parsed: dict[str, Any], stored: dict[str, StoredTensor], path: Path) -> LoraConfig:
    # PEFT's target_modules may be a list, a pattern or "all-linear"; the tensors say what it came to.
    matches = [_KEY.fullmatch(name) for name in stored]
    modules = {match[1] for match in matches if match and match[1] in TARGET_MODULES}
    if not modules:
        raise InputError(
            f"{path.parent / WEIGHTS_FILE} adapts no linear map of a Llama layer "
            f"(it holds {abridged(list(stored)) or 'nothing'}); choose target_modules from {', '.join(TARGET_MODULES)}"
        )
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


def _to_peft(lora: LoraConfig, base_model: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "use_rslora": lora.use_rslora,
        "target_modules": list(lora.target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
