"""Config of models, adapters, RoPE and runs: frozen, validated and hashable; imports no JAX.

families/       families of models: parameters in every file format, and what attention sees
parallel/       how a run is divided over devices and processes
presets/        the shapes of published models
model.py        the shape of a decoder
reading.py      reading of config.json, with the defaults of its family
lora.py         the settings of an adapter
rope.py         the kinds of RoPE, under config.json's names
rope_choice.py  the choice of a kind for longer contexts
memory.py       how layers run in tiles
policies.py     what gradient checkpointing saves
execution.py    how a model runs: the request, and what follows from it
precision.py    the precision of the base weights
training.py     the training arguments
run_record.py   reading of a run's run.yaml
yaml_files.py   strict reading and writing of YAML
"""

from __future__ import annotations

from lcjax.config.execution import Execution as Execution
from lcjax.config.execution import ExecutionRequest as ExecutionRequest
from lcjax.config.lora import ALL_LINEAR as ALL_LINEAR
from lcjax.config.lora import TARGET_MODULES as TARGET_MODULES
from lcjax.config.lora import LoraConfig as LoraConfig
from lcjax.config.lora import target_modules_of as target_modules_of
from lcjax.config.memory import MemorySettings as MemorySettings
from lcjax.config.memory import parse_memory as parse_memory
from lcjax.config.model import EMBEDDING_MODULES as EMBEDDING_MODULES
from lcjax.config.model import LlamaConfig as LlamaConfig
from lcjax.config.rope import RopeScaling as RopeScaling
