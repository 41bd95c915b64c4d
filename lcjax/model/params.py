"""The tensors of a checkpoint, from the table of the model's family; it serves loading and saving alike.

The tree is a nested dictionary. The layers' tensors are stacked: `model.layers.3.mlp.up_proj.weight` [out, in] is
`tree["layers"]["mlp"]["up_proj"]["weight"][3]` of [L, out, in]. Weights keep Hugging Face's [out, in] orientation: no transposition
on the way in or out, and block-quantized formats, whose blocks run along `in`, can be stored as they come.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lcjax.config import LlamaConfig


@dataclasses.dataclass(frozen=True)
class TensorName:
    """One tensor of a checkpoint: its Hugging Face name, its place in the tree, and its shape there.

    `layer` is the index along the stacked leading axis, or None for a tensor outside the layers. `shape` is the tensor's
    own, without that axis.
    """

    name: str
    path: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]


def tensor_names(config: LlamaConfig) -> Iterator[TensorName]:
    """Every tensor that a checkpoint of this model holds, stack by stack: all layers of one kind before the next kind."""
    for row in config.family.stored(config):
        for layer in range(config.num_hidden_layers) if row.in_layers else [None]:
            yield TensorName(row.hugging_face.format(layer=layer), row.path, layer, row.shape(config))
