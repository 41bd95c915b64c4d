"""Reads and writes the adapters of PEFT.

adapter.py  whole directories
config.py   adapter_config.json
names.py    the names of tensors
base.py     whether an adapter belongs to another base model
fused.py    adapters of experts that share a parameter, as in transformers 5
ranks.py    ranks that differ between linear maps
"""

from __future__ import annotations

from lcjax.weights.peft.adapter import adapter_names as adapter_names
from lcjax.weights.peft.adapter import base_config as base_config
from lcjax.weights.peft.adapter import load_adapter as load_adapter
from lcjax.weights.peft.adapter import load_adapter_config as load_adapter_config
from lcjax.weights.peft.adapter import save_adapter as save_adapter
from lcjax.weights.peft.base import other_base as other_base
from lcjax.weights.peft.names import CONFIG_FILE as CONFIG_FILE
from lcjax.weights.peft.names import WEIGHTS_FILE as WEIGHTS_FILE
