"""A linear map `y = x W^T + b`, quantized or not, with an optional low-rank adapter.

Shapes: a map's weight is [O, I] (out, in), its adapter A [R, I] and B [O, R].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lcjax.config import LoraConfig
from lcjax.ops import nf4
from lcjax.ops.dropout import DropoutKey, dropout
from lcjax.ops.parts import part_of as part_of_array
from lcjax.ops.residuals import LOW_RANK, name_residual

Tree = dict[str, Any]


class Linear(nnx.Module):
    """`y = x W^T + b`, plus the adapter `scaling * (dropout(x) A^T) B^T` if one is attached.

    If W is quantized (see `lcjax.ops.nf4.format`), every call dequantizes it. Under the layer's
    checkpoint the values are recomputed in the backward pass and never saved.
    """

    def __init__(self, tree: Tree, lora: LoraConfig | None = None):
        weight = tree["weight"]
        self.weight = nnx.Dict(jax.tree.map(nnx.Param, weight)) if nf4.is_quantized(weight) else nnx.Param(weight)
        self.bias = nnx.Param(tree["bias"]) if "bias" in tree else None
        self.lora_A = nnx.LoRAParam(tree["lora_A"]) if "lora_A" in tree else None
        self.lora_B = nnx.LoRAParam(tree["lora_B"]) if "lora_B" in tree else None
        self.lora = lora

    def __call__(self, x: jax.Array, dropout_key: DropoutKey | None = None) -> jax.Array:
        """x [..., I] to [..., O], in x's dtype; products accumulate in float32."""
        weight = self._weight()
        y = _times_transposed(x, nf4.dequantize(weight, x.dtype) if nf4.is_quantized(weight) else weight)
        if self.bias is not None:
            y = y + jnp.expand_dims(self.bias[...], range(x.ndim - 1))
        if self.lora is not None and self.lora_A is not None and self.lora_B is not None:
            # Adapters are float32 master weights; their products use the dtype of the activations.
            low_rank = _times_transposed(self._dropout(x, dropout_key), self.lora_A[...].astype(x.dtype))
            low_rank = name_residual(low_rank, LOW_RANK)
            y = y + _expand(low_rank * self.lora.scaling, self.lora_B[...].astype(x.dtype))
        return y

    def rows(self, part: jax.Array, parts: int, sections: Sequence[int] | None = None) -> Linear:
        """The map to one of `parts` equal parts of the outputs, or of every section of them."""
        return Linear(self._sliced(part, parts, {"weight": 0, "bias": 0, "lora_B": 0}, sections), self.lora)

    def columns(self, part: jax.Array, parts: int) -> Linear:
        """The map from one of `parts` equal parts of the inputs; the results sum to the whole."""
        tree = self._sliced(part, parts, {"weight": 1, "lora_A": 1})
        if "bias" in tree:  # only the first part adds the bias
            tree["bias"] = jnp.where(part == 0, tree["bias"], jnp.zeros_like(tree["bias"]))
        return Linear(tree, self.lora)

    def _sliced(self, part: jax.Array, parts: int, axes: dict[str, int], sections: Sequence[int] | None = None) -> Tree:
        """The parameters; those named in `axes` are cut along the given axis."""
        leaves = {"weight": self._weight()}
        leaves |= {name: x[...] for name in ("bias", "lora_A", "lora_B") if (x := getattr(self, name)) is not None}
        return {
            name: part_of(x, part, parts, axes[name], sections) if name in axes else x for name, x in leaves.items()
        }

    @property
    def is_quantized(self) -> bool:
        """Whether the weight is quantized, so that every call dequantizes it."""
        return isinstance(self.weight, nnx.Dict)

    def _weight(self) -> Any:
        """The weight's array, or the dictionary of a quantized weight."""
        if self.is_quantized:
            return {name: leaf[...] for name, leaf in self.weight.items()}
        return self.weight[...]

    def _dropout(self, x: jax.Array, key: DropoutKey | None) -> jax.Array:
        if key is None or self.lora is None or self.lora.lora_dropout == 0.0:
            return x
        return dropout(x, self.lora.lora_dropout, key)


def part_of(x: Any, part: jax.Array, parts: int, axis: int, sections: Sequence[int] | None = None) -> Any:
    """One of `parts` equal parts, along an axis, of an array or a quantized weight.

    `sections` are as in `lcjax.ops.parts`.
    """
    slice_of = nf4.part_of if nf4.is_quantized(x) else part_of_array
    return slice_of(x, part, parts, axis, sections)


def outputs_of(
    maps: Sequence[Linear], x: jax.Array, keys: Sequence[DropoutKey | None], sizes: Sequence[int]
) -> Iterator[jax.Array]:
    """Several outputs [..., size] of the same input: of a map for each, or of one map for all.

    The one map has the rows of the first output, then those of the next, and one adapter. `keys`
    are those of the maps' dropout.
    """
    for apply, key in zip(maps, keys, strict=True):
        y = apply(x, key)
        yield from (y,) if len(maps) == len(sizes) else jnp.split(y, np.cumsum(sizes[:-1]), axis=-1)


def _times_transposed(x: jax.Array, weight_OI: jax.Array) -> jax.Array:
    """x [..., I] times W^T, [..., O]."""
    return lax.dot_general(x, weight_OI, (((x.ndim - 1,), (1,)), ((), ())))


@jax.custom_vjp
def _expand(low_rank: jax.Array, lora_B_OR: jax.Array) -> jax.Array:
    """low_rank [..., R] times B^T, [..., O].

    The custom backward rule changes the order of one product. Computing dB as `(low_rank^T dy)^T`
    transposes the narrow factor. With JAX's `dy^T low_rank` XLA transposes the wide one, which
    takes a quarter of the whole step on a CPU.
    """
    return _times_transposed(low_rank, lora_B_OR)


def _expand_forward(low_rank, lora_B_OR):
    return _expand(low_rank, lora_B_OR), (low_rank, lora_B_OR)


def _expand_backward(residuals, dy):
    low_rank, lora_B_OR = residuals
    tokens = tuple(range(dy.ndim - 1))
    dB_RO = lax.dot_general(low_rank, dy, ((tokens, tokens), ((), ())))
    return jnp.matmul(dy, lora_B_OR), dB_RO.T


_expand.defvjp(_expand_forward, _expand_backward)
