"""What a model, an adapter, RoPE and a run are, before any array exists: frozen, validated, hashable. No JAX.

families/       what a family of models is: its parameters in every file format, what its attention sees; a file each
model.py        the shape of a decoder; reading.py config.json, with its family's defaults
presets.py      the shapes of published models
lora.py         an adapter
rope.py         the kinds of RoPE, in config.json's spellings; rope_choice.py which one a longer context gets
memory.py       how layers run in tiles; policies.py what gradient checkpointing saves
training.py     how to train; run_record.py a run's run.json
"""

from __future__ import annotations

from lcjax.config.lora import ALL_LINEAR as ALL_LINEAR
from lcjax.config.lora import TARGET_MODULES as TARGET_MODULES
from lcjax.config.lora import LoraConfig as LoraConfig
from lcjax.config.memory import MemorySettings as MemorySettings
from lcjax.config.memory import parse_memory as parse_memory
from lcjax.config.memory import resolve_memory as resolve_memory
from lcjax.config.model import EMBEDDING_MODULES as EMBEDDING_MODULES
from lcjax.config.model import LlamaConfig as LlamaConfig
from lcjax.config.rope import RopeScaling as RopeScaling
