"""The memory engine runs layers over tiles of the sequence.

Layers overwrite their inputs with their results, and save their inputs in host memory.

    tiles.py          loops over tiles of the sequence
    parts.py          a layer as functions of its parameters, position by position
    position_wise.py  what both forms of a layer compute tile by tile
    layer.py          a layer and its backward pass, tile by tile and in place
    grouped_layer.py  the same, with attention for one group of heads after another
    embeddings.py     embedding and head in host memory
    stacked.py        the scan over layers, and one layer's arrays from the stacked arrays of all
    stack.py          all layers: one saved input each, fetched from the host before its use
    trainable.py      a layer's parameters, split into trainable and frozen
    checkpoint.py     what each gradient checkpointing policy saves, without tiles
    allocators.py     limits of JAX's memory allocators
"""

from __future__ import annotations

from lcjax.config.memory import MemorySettings as MemorySettings
from lcjax.config.memory import parse_memory as parse_memory
from lcjax.memory.embeddings import fetched as fetched
from lcjax.memory.embeddings import fetched_for as fetched_for
from lcjax.memory.embeddings import place_embeddings as place_embeddings
from lcjax.memory.stack import run_stack as run_stack
from lcjax.memory.stack import tiled_stack as tiled_stack
from lcjax.memory.stacked import layer_at as layer_at
from lcjax.memory.stacked import layer_numbers as layer_numbers
from lcjax.memory.stacked import scan_layers as scan_layers
from lcjax.memory.trainable import Parameters as Parameters
