"""Models by name, with the shapes in their published config.json files.

llama.py    Llama, SmolLM2 and TinyLlama
mistral.py  Mistral
qwen.py     Qwen2.5 and Qwen3
olmo.py     OLMo 2
gemma.py    Gemma 2 and 3
smollm.py   SmolLM3
phi.py      Phi-3.5 and Phi-4
gpt_oss.py  gpt-oss
"""

from __future__ import annotations

from pathlib import Path

from lcjax.config.model import LlamaConfig
from lcjax.config.presets.gemma import GEMMA
from lcjax.config.presets.gpt_oss import GPT_OSS
from lcjax.config.presets.llama import LLAMA
from lcjax.config.presets.mistral import MISTRAL
from lcjax.config.presets.olmo import OLMO
from lcjax.config.presets.phi import PHI
from lcjax.config.presets.qwen import QWEN
from lcjax.config.presets.smollm import SMOLLM
from lcjax.errors import InputError, unknown

PRESETS: dict[str, LlamaConfig] = {**LLAMA, **MISTRAL, **QWEN, **OLMO, **GEMMA, **SMOLLM, **PHI, **GPT_OSS}


def resolve_config(model: str) -> LlamaConfig:
    """The shape of a model: of a preset, of a config.json, or of the config.json in a directory.

    Raises:
      InputError: it is none of these, with the nearest presets; or the config.json is incomplete.
    """
    if model.lower() in PRESETS:
        return PRESETS[model.lower()]
    path = Path(model)
    if path.is_dir():
        path /= "config.json"
    elif not path.is_file():
        raise InputError(f"{unknown('model', model, PRESETS)}, or the path of a config.json")
    return LlamaConfig.from_json(path)
