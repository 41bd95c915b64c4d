"""The shapes and dtypes of a model's parameters, without its weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.config.families import Parameter
from lcjax.model import lora
from lcjax.model.params import check_quantizable
from lcjax.ops import mxfp4, nf4
from lcjax.parallel.weights import part_bytes

Tree = dict[str, Any]
FourBits = dict[str, tuple[tuple[int, ...], Any]]


def abstract_params(config: LlamaConfig, adapter: LoraConfig | None, quantize: str | None) -> Tree:
    """The tree of `lcjax.model.params` with ShapeDtypeStructs as leaves.

    Weights are bfloat16, adapters float32. With `quantize`, the layers' linear maps are quantized.

    Raises:
      InputError: the kind of quantization is unknown, or a weight's rows cannot be quantized.
    """
    check_quantizable(config, quantize)
    params: Tree = {}
    for row in config.family.stored(config):
        node = params
        for part in row.path[:-1]:
            node = node.setdefault(part, {})
        types = _format_of(row, config, quantize)
        leaves = {
            name: jax.ShapeDtypeStruct((*row.stacks(config), *shape), dtype) for name, (shape, dtype) in types.items()
        }
        node[row.path[-1]] = leaves or jax.ShapeDtypeStruct(row.stacked_shape(config), jnp.bfloat16)
    if adapter is None:
        return params
    fresh = jax.eval_shape(lambda: lora.init_adapter(config, adapter, jax.random.key(0)))
    return lora.attach(params, fresh)


def _format_of(row: Parameter, config: LlamaConfig, quantize: str | None) -> FourBits:
    """The leaves of a weight in 4 bits; none if it is not quantized."""
    if row.quantizable and row.in_experts and config.experts.stored_format == "mxfp4":
        return mxfp4.leaf_types(*row.shape(config))
    return nf4.leaf_types(*row.shape(config)) if row.quantizable and quantize is not None else {}


def tree_bytes(tree: Any) -> int:
    """The bytes of a device's parts of all leaves."""
    return sum(part_bytes(leaf) for leaf in jax.tree.leaves(tree))
