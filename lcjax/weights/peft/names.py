"""The names of adapters' tensors in PEFT's files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lcjax.config import LlamaConfig
from lcjax.config.families import Parameter
from lcjax.errors import InputError
from lcjax.model.params import places
from lcjax.weights.assembly import Shape
from lcjax.weights.safetensors_files import StoredTensor
from lcjax.weights.spelling import in_language_model

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

_ROOT, _HEADLESS_ROOT = "base_model.model.model.", "base_model.model."
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_[AB]\.weight")
REMEDY = "merge it into its base with PEFT (merge_and_unload) and load the merged model"


@dataclasses.dataclass(frozen=True)
class Factor:
    """One factor of the adapter of one linear map, A [r, in] or B [out, r], which is not read yet.

    Attributes:
      shape: its own, with the map's own rank.
      key: what PEFT calls the map, or the parameter that contains it, in `rank_pattern`.
      read: fills an array with the rows from a given one on, and casts to the array's dtype.
      parts: the number of maps that share the rank and the alpha of `key` equally.
    """

    shape: Shape
    key: str
    read: Callable[[np.ndarray, int], None]
    parts: int = 1


def plain_names(stored: Mapping[str, StoredTensor], path: Path, config: LlamaConfig) -> dict[str, StoredTensor]:
    """The adapter's tensors by the names of a model with a head.

    An adapter of transformers' LlamaModel, which has no head, omits one `model.`. One of a larger
    model, such as one for images too, has its language model's prefix.

    Raises:
      InputError: a tensor belongs to the embedding, the head or a router, or to another part of a
        larger model.
    """
    stored = _of_language_model(stored, path, config)
    rooted = any(name.startswith(_ROOT) for name in stored)
    named = {
        name if rooted or not name.startswith(_HEADLESS_ROOT) else _ROOT + name.removeprefix(_HEADLESS_ROOT): tensor
        for name, tensor in stored.items()
    }
    routers = _routers(config)
    for name, original in zip(named, stored, strict=True):
        if module_of(name) in routers:
            raise InputError(
                f"{path} adapts the router of experts ({original}); only linear maps can be adapted: train without "
                f"it, or {REMEDY}"
            )
        module = next((module for module in ("embed_tokens", "lm_head") if f".{module}." in name), None)
        if module is not None and "lora_" in name:
            raise InputError(
                f"{path} adapts {module} ({original}); only linear maps of the layers can be adapted: {REMEDY}"
            )
        if module is not None:
            raise InputError(
                f"{path} contains all of {module} ({original}), which PEFT saves with "
                "save_embedding_layers or modules_to_save; only LoRA is supported: if it was "
                f"not trained, save with save_embedding_layers=False, otherwise {REMEDY}"
            )
    return named


def _routers(config: LlamaConfig) -> set[str]:
    """The maps of the layers that cannot be adapted, by their names in the model."""
    rows = [row for row in config.family.parameters if row.in_layers and row.matmul and not row.adaptable]
    return {module_name(row, layer, expert) for row in rows for layer, expert in places(row, config)}


def _of_language_model(stored: Mapping[str, StoredTensor], path: Path, config: LlamaConfig) -> dict[str, StoredTensor]:
    named = {}
    for name, tensor in stored.items():
        own = in_language_model(name.removeprefix(_HEADLESS_ROOT), config)
        if own is None:
            raise InputError(f"{path} adapts {name}, which is not in the language model: {REMEDY}")
        named[_HEADLESS_ROOT + own if name.startswith(_HEADLESS_ROOT) else name] = tensor
    return named


def tensor_name(row: Parameter, layer: int | None, expert: int | None, factor: str) -> str:
    """PEFT's name of one factor, `lora_A` or `lora_B`, of the adapter on a layer's weight."""
    return f"base_model.model.{module_name(row, layer, expert)}.{factor}.weight"


def module_of(name: str) -> str | None:
    """The module that a tensor adapts, by its name in the model; None if it is not of LoRA."""
    return match[1] if (match := _TENSOR.fullmatch(name)) else None


def module_name(row: Parameter, layer: int | None, expert: int | None) -> str:
    """The name in the model of the linear map of a layer, or of one of its experts."""
    return row.hugging_face.format(layer=layer, expert=expert).removesuffix(".weight")
