"""The tensors of a checkpoint, from the table of the model's family, for both loading and saving.

The tree is a nested dictionary. The layers' tensors are stacked:
`model.layers.3.mlp.up_proj.weight` [out, in] is `tree["layers"]["mlp"]["up_proj"]["weight"][3]` of
[L, out, in]. Weights have the [out, in] orientation of Hugging Face. So neither loading nor saving
transposes them, and block-quantized formats, whose blocks run along `in`, can be stored unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lcjax.config import LlamaConfig


@dataclasses.dataclass(frozen=True)
class TensorName:
    """A tensor of a checkpoint: its Hugging Face name, its place in the tree, and its shape.

    `layer` is the index along the stacked leading axis, or None for a tensor outside the layers.
    `shape` is the shape of the tensor without that axis.
    """

    name: str
    path: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]


def tensor_names(config: LlamaConfig) -> Iterator[TensorName]:
    """Every tensor of a checkpoint of this model, stack by stack.

    All layers of one kind of tensor come before the next kind.
    """
    for row in config.family.stored(config):
        for layer in range(config.num_hidden_layers) if row.in_layers else [None]:
            yield TensorName(row.hugging_face.format(layer=layer), row.path, layer, row.shape(config))
