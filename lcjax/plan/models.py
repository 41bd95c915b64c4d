"""The shape of the model to plan for, from its name."""

from __future__ import annotations

import re
from pathlib import Path

from lcjax import weights
from lcjax.config import LlamaConfig
from lcjax.config.presets import PRESETS, resolve_config
from lcjax.weights.demo import PACKAGE

# Models that differ from the base model in their weights, but not in their shape.
_VERSIONS = re.compile(r"-(?:base|instruct|it|pt)$")


def config_of(model: str) -> LlamaConfig:
    """The shape of a model: that of a preset, a config.json, a directory, a .gguf file, a hub id.

    A hub id whose name is that of a preset, such as meta-llama/Llama-3.1-8B-Instruct, has the
    preset's shape, so no network is needed. The config.json of another one is downloaded.

    Raises:
      InputError: it is none of these, or it cannot be downloaded.
    """
    name = model.rpartition("/")[2].lower()
    if model == PACKAGE or (model.lower().endswith(".gguf") and Path(model).is_file()):
        return weights.open_model_files(weights.resolve_model(model)).config
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or Path(model).exists() or model.startswith("."):
        return resolve_config(model)
    for preset in (name, _VERSIONS.sub("", name)):
        if preset in PRESETS:
            return PRESETS[preset]
    return weights.load_config(weights.resolve_model(model, with_weights=False))
