"""The memory engine: layers that run in tiles of the sequence, write their results over what they have read, and keep their inputs
in host memory.

    settings.py   what can be chosen
    tiles.py      loops over tiles of the sequence
    parts.py      what a layer is: functions of its parameters, position by position
    layer.py      a layer and its backward pass, tile by tile and in place
    grouped_layer.py  the same, with attention one group of heads after another
    embeddings.py embedding and head in host memory
    stacked.py    one layer's arrays out of the stacks of all layers'
    stack.py      all layers: one saved input each, fetched from the host ahead of its use
"""

from __future__ import annotations

from lcjax.config.memory import MemorySettings as MemorySettings
from lcjax.config.memory import parse_memory as parse_memory
from lcjax.config.memory import resolve_memory as resolve_memory
from lcjax.memory.embeddings import fetched as fetched
from lcjax.memory.embeddings import fetched_for as fetched_for
from lcjax.memory.embeddings import place_embeddings as place_embeddings
from lcjax.memory.stack import run_stack as run_stack
from lcjax.memory.stack import tiled_stack as tiled_stack
from lcjax.memory.stacked import layer_at as layer_at
from lcjax.memory.stacked import layer_numbers as layer_numbers
from lcjax.memory.trainable import Parameters as Parameters
