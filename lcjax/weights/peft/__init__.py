"""The adapters of PEFT: adapter.py reads and writes them, config.py checks adapter_config.json."""

from __future__ import annotations

from lcjax.weights.peft.adapter import adapter_names as adapter_names
from lcjax.weights.peft.adapter import base_config as base_config
from lcjax.weights.peft.adapter import load_adapter as load_adapter
from lcjax.weights.peft.adapter import save_adapter as save_adapter
from lcjax.weights.peft.config import CONFIG_FILE as CONFIG_FILE
from lcjax.weights.peft.config import WEIGHTS_FILE as WEIGHTS_FILE
