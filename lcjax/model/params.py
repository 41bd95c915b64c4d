"""The tensors of a checkpoint, from the table of the model's family, for both loading and saving.

The tree is a nested dictionary. The layers' tensors are stacked:
`model.layers.3.mlp.up_proj.weight` [out, in] is `tree["layers"]["mlp"]["up_proj"]["weight"][3]` of
[L, out, in]. Those of experts have an axis E of experts after L. Weights have the [out, in]
orientation of Hugging Face. So neither loading nor saving transposes them, and block-quantized
formats, whose blocks run along `in`, can be stored unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lcjax.config import LlamaConfig
from lcjax.config.families import Parameter
from lcjax.config.precision import check_quantize
from lcjax.errors import InputError
from lcjax.ops.nf4 import BLOCK


@dataclasses.dataclass(frozen=True)
class TensorName:
    """A tensor of a checkpoint: its Hugging Face name, its place in the tree, and its shape.

    `layer` is the index along the stacked leading axis, or None for a tensor outside the layers.
    `expert` is the index along the next axis, or None for a tensor that is not of one expert.
    `shape` is the shape of the tensor without these axes.
    """

    name: str
    path: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]
    expert: int | None = None

    @property
    def index(self) -> tuple[int, ...]:
        """The index of the tensor in its leaf, along the leading axes."""
        return tuple(i for i in (self.layer, self.expert) if i is not None)


def tensor_names(config: LlamaConfig) -> Iterator[TensorName]:
    """Every tensor of a checkpoint of this model, stack by stack.

    All layers of one kind of tensor come before the next kind.
    """
    for row in config.family.stored(config):
        for layer, expert in places(row, config):
            name = row.hugging_face.format(layer=layer, expert=expert)
            yield TensorName(name, row.path, layer, row.shape(config), expert)


def places(row: Parameter, config: LlamaConfig) -> Iterator[tuple[int | None, int | None]]:
    """(layer, expert) of every tensor of a row of the table; None for an axis that it lacks."""
    for layer in range(config.num_hidden_layers) if row.in_layers else [None]:
        for expert in range(config.experts.count) if row.in_experts else [None]:
            yield layer, expert


def check_quantizable(config: LlamaConfig, quantize: str | None) -> None:
    """Checks that the layers' linear maps can be stored in 4 bits; None means no quantization.

    Raises:
      InputError: the kind of quantization is unknown, or the rows of a weight do not divide into
        blocks.
    """
    check_quantize(quantize)
    for row in config.family.stored(config) if quantize is not None else ():
        if row.quantizable and (size := row.shape(config)[-1]) % BLOCK:
            raise InputError(
                f"{row.module} has rows of {size} values, and quantize={quantize!r} needs a multiple of {BLOCK}; omit it"
            )
