"""Reads and writes PEFT's adapter directories (adapter_config.json, adapter_model.safetensors).

Source: the developer guide "PEFT checkpoint format" in the documentation of PEFT.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import DTypeLike

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.config.families import DEFAULT_FAMILY, Family, Parameter
from lcjax.errors import InputError
from lcjax.model.params import TensorName
from lcjax.weights.assembly import Shape, assemble, check_tensors, parameter_dtype, tree_leaves
from lcjax.weights.cards.card import write_card
from lcjax.weights.hf import refuse_pickles, write_json
from lcjax.weights.peft.config import adapted_modules, lora_config, named_base, read_adapter_config
from lcjax.weights.peft.fused import file_array, file_shape, file_tensors, separated, target_parameters
from lcjax.weights.peft.names import CONFIG_FILE, WEIGHTS_FILE, Factor, module_of, plain_names, tensor_name
from lcjax.weights.safetensors_files import read_header, write_file
from lcjax.weights.staging import staged
from lcjax.weights.tokenizer import TOKENIZER_FILES, save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Not config.json: transformers treats a directory with both files as one with the base weights.
BASE_CONFIG_FILE = "base_config.json"


def adapter_names(lora: LoraConfig, config: LlamaConfig) -> list[TensorName]:
    """Every tensor of the adapter of a model, under PEFT's names, stack by stack."""
    rows = [config.family.adaptable[module] for module in lora.target_modules]
    return _names(lora, [(row, row.stacks(config), row.shape(config)) for row in rows])


def _names(lora: LoraConfig, modules: Sequence[tuple[Parameter, Shape, Shape]]) -> list[TensorName]:
    """As `adapter_names`, given the stacks and (out, in) features of each target module."""
    names = []
    for row, stacks, (out_features, in_features) in modules:
        for factor, shape in (("lora_A", (lora.r, in_features)), ("lora_B", (out_features, lora.r))):
            path = (*row.path[:-1], factor)
            for index in itertools.product(*map(range, stacks)):
                layer, expert = (*index, None)[:2]
                names.append(TensorName(tensor_name(row, layer, expert, factor), path, layer, shape, expert))
    return names


def save_adapter(
    directory: str | os.PathLike[str],
    adapter: dict[str, Any],
    lora: LoraConfig,
    base_model: str,
    config: LlamaConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: str | None = None,
) -> None:
    """Saves an adapter as `peft.PeftModel.from_pretrained` reads it; all or nothing.

    Args:
      directory: created if missing; in an existing one, a former adapter is replaced and other
        files stay.
      adapter: `{"layers": {"self_attn": {"q_proj": {"lora_A": [L, r, in], "lora_B": [L, out, r]}},
        "mlp": {...}}}` for the target modules, float32 or bfloat16; those of experts have an
        axis of experts after that of layers.
      lora: the adapter's rank, scaling and target modules. That of experts is written with the same
        scaling, but without `use_rslora` and `lora_dropout`, which PEFT does not support for them.
      base_model: where PEFT should load the base model from, a hub id or a path.
      config: the base model as the adapter was trained on it, for base_config.json. Its RoPE may
        differ from the base's own files (see `base_config`). If None, the base is assumed to be of
        the default family.
      tokenizer: saved with the adapter, if given, as is usual with PEFT; see `save_tokenizer`.
      card: the text of README.md, if there is to be one; see `lcjax.weights.cards`.

    Raises:
      InputError: the directory cannot be written or the disk is full; the former content is intact.
      ValueError: adapter is not the tree of `lora`.
    """
    family = DEFAULT_FAMILY if config is None else config.family
    names = _names_of_tree(adapter, lora, family)
    leaves, parts = tree_leaves(adapter, names), file_tensors(names)

    def fetch(name: str) -> np.ndarray:
        found = [leaves[part.name] for part in parts[name]]
        return file_array(parts[name], [np.asarray(leaf[place.index]) for leaf, place in found])

    tensors = {name: (parameter_dtype(leaves[of[0].name][0].dtype), file_shape(of)) for name, of in parts.items()}
    former = () if tokenizer is None else TOKENIZER_FILES
    with staged(Path(directory), sum(leaf.nbytes for leaf in jax.tree.leaves(adapter)), replaces=former) as staging:
        write_file(staging / WEIGHTS_FILE, tensors, fetch, metadata={"format": "pt"})
        write_json(staging / CONFIG_FILE, _to_peft(_as_peft_applies(lora, family), base_model, family))
        if config is not None:
            write_json(staging / BASE_CONFIG_FILE, config.to_dict())
        if tokenizer is not None:
            save_tokenizer(tokenizer, staging)
        write_card(staging, Path(directory), card)


def base_config(directory: str | os.PathLike[str], config: LlamaConfig) -> LlamaConfig:
    """`config` with the adapter's own RoPE and context length, if `save_adapter` recorded them.

    Raises:
      InputError: it recorded a model that consists of other parameters. Their sizes may be equal.
    """
    path = Path(directory) / BASE_CONFIG_FILE
    if not path.is_file():
        return config
    base = LlamaConfig.from_json(path)
    parameters, others = ({row.path for row in x.family.stored(x) if row.matmul} for x in (config, base))
    if parameters != others:
        raise InputError(
            f"{directory} is an adapter of a {base.model_type} model, and the model is {config.model_type}; load it "
            "with the model that it was trained on"
        )
    return config.with_rope_of(base)


def _names_of_tree(adapter: dict[str, Any], lora: LoraConfig, family: Family) -> list[TensorName]:
    modules = []
    for module in lora.target_modules:
        row, node = family.adaptable[module], adapter
        try:
            for key in row.path[:-1]:
                node = node[key]
            (*stacks, _, in_features), (*_, out_features, _) = node["lora_A"].shape, node["lora_B"].shape
        except (KeyError, ValueError) as error:
            raise ValueError(f"the adapter lacks {error} of target_modules={lora.target_modules}") from error
        if len(stacks) != 1 + row.in_experts:
            raise ValueError(f"the adapter of {module} has shape {node['lora_A'].shape}")
        modules.append((row, tuple(stacks), (out_features, in_features)))
    return _names(lora, modules)


def load_adapter(
    directory: str | os.PathLike[str], config: LlamaConfig, dtype: DTypeLike = np.float32
) -> tuple[LoraConfig, dict[str, Any]]:
    """Loads an adapter that PEFT or `save_adapter` saved.

    Args:
      directory: contains adapter_config.json and adapter_model.safetensors.
      config: the model that the adapter belongs to.
      dtype: float32 or bfloat16.

    Returns:
      The LoraConfig, with the target modules that the tensors name, and the tree in the form that
      `save_adapter` takes, JAX arrays on the default device. Layers that the adapter omits
      (`layers_to_transform`) have factors of zeros. The rank is the largest of the adapter; maps
      of smaller rank (`rank_pattern`) have rows of A and columns of B that are zero, and training
      leaves them zero.

    Raises:
      InputError: a file is missing or corrupt, the adapter is not plain LoRA on the layers' linear
        maps, or its tensors do not match the model.
    """
    lora, adapted, factors = _opened(Path(directory), config)

    def read(name: TensorName, out: np.ndarray, start: int = 0) -> None:
        out[...] = 0  # A = B = 0 adds exactly zero, and no gradient changes it
        if module_of(name.name) in adapted:
            _read(factors[name.name], out, start)

    return lora, assemble(adapter_names(lora, config), read, parameter_dtype(dtype))


def load_adapter_config(directory: str | os.PathLike[str], config: LlamaConfig) -> LoraConfig:
    """The LoraConfig that `load_adapter` returns, hardly reading more than the tensors' names.

    Raises:
      InputError: as `load_adapter`.
    """
    return _opened(Path(directory), config)[0]


def _opened(directory: Path, config: LlamaConfig) -> tuple[LoraConfig, set[str], dict[str, Factor]]:
    """The adapter's config, the linear maps that it has, and their factors, which are not read."""
    if not (directory / WEIGHTS_FILE).exists():
        refuse_pickles(directory, WEIGHTS_FILE)
    parsed = read_adapter_config(directory / CONFIG_FILE)
    stored = plain_names(read_header(directory / WEIGHTS_FILE), directory / WEIGHTS_FILE, config)
    factors = separated(stored, config, use_rslora=bool(parsed.get("use_rslora")))
    lora, ranks = lora_config(parsed, factors, directory, config)
    adapted = adapted_modules(parsed, factors, config)
    names = [name for name in adapter_names(lora, config) if module_of(name.name) in adapted]
    check_tensors(
        {name: factor.shape for name, factor in factors.items()},
        {name.name: _own_shape(name, ranks) for name in names},
        source=directory / WEIGHTS_FILE,
        remedy=f"load the adapter with the base model it was trained on{named_base(parsed)}",
    )
    return lora, adapted, factors


def _own_shape(name: TensorName, ranks: Mapping[str, int]) -> Shape:
    """The shape of a factor with the rank of its linear map, instead of the largest."""
    rank = ranks.get(str(module_of(name.name)))
    if rank is None:
        return name.shape
    return (rank, name.shape[1]) if name.path[-1] == "lora_A" else (name.shape[0], rank)


def _read(factor: Factor, out: np.ndarray, start: int) -> None:
    """Reads the rows from `start` on into the first rows and columns of `out`."""
    rows, columns = factor.shape
    part = np.empty((max(0, min(len(out), rows - start)), columns), out.dtype)
    factor.read(part, start)
    out[: len(part), :columns] = part


def _as_peft_applies(lora: LoraConfig, family: Family) -> LoraConfig:
    """The settings with which PEFT computes the same.

    With transformers 5, it joins two maps of experts to one with twice the rank and `lora_alpha`,
    also with `use_rslora`, where that changes the scaling by the root of 2. It does not load such
    an adapter with dropout, which has no effect after training.
    """
    if not any(family.adaptable[module].in_experts for module in lora.target_modules):
        return lora
    alpha = lora.scaling * lora.r if lora.use_rslora else lora.lora_alpha
    return dataclasses.replace(lora, lora_alpha=alpha, use_rslora=False, lora_dropout=0.0)


def _to_peft(lora: LoraConfig, base_model: str, family: Family) -> dict[str, Any]:
    parameters = target_parameters(lora.target_modules, family)
    modules = [module for module in lora.target_modules if not family.adaptable[module].is_joint]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "use_rslora": lora.use_rslora,
        "target_modules": modules,
        **({"target_parameters": parameters} if parameters else {}),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
