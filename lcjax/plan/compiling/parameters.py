"""The shapes and dtypes of a model's parameters, without its weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.model import lora
from lcjax.model.params import check_quantizable
from lcjax.ops import nf4
from lcjax.parallel.weights import part_bytes

Tree = dict[str, Any]


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
        quantized = quantize is not None and row.quantizable
        types = nf4.leaf_types(*row.shape(config)) if quantized else {}
        leaves = {
            name: jax.ShapeDtypeStruct((*row.stacks(config), *shape), dtype) for name, (shape, dtype) in types.items()
        }
        node[row.path[-1]] = leaves or jax.ShapeDtypeStruct(row.stacked_shape(config), jnp.bfloat16)
    if adapter is None:
        return params
    fresh = jax.eval_shape(lambda: lora.init_adapter(config, adapter, jax.random.key(0)))
    return lora.attach(params, fresh)


def tree_bytes(tree: Any) -> int:
    """The bytes of a device's parts of all leaves."""
    return sum(part_bytes(leaf) for leaf in jax.tree.leaves(tree))
