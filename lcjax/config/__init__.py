"""What a model and an adapter are, before any array exists: frozen, validated, hashable.

model.py    a decoder of the Llama family
lora.py     an adapter
reading.py  config.json, with each family's own defaults
"""

from __future__ import annotations

from lcjax.config.lora import ALL_LINEAR as ALL_LINEAR
from lcjax.config.lora import TARGET_MODULES as TARGET_MODULES
from lcjax.config.lora import LoraConfig as LoraConfig
from lcjax.config.model import LlamaConfig as LlamaConfig
from lcjax.rope_scaling import RopeScaling as RopeScaling
