"""Low-rank adapters: their initial values, the mask that makes them trainable, and merging.

Shapes: L layers, E experts, R rank, I in, O out features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.errors import InputError, unknown
from lcjax.model.params import TensorName
from lcjax.ops import four_bits

Tree = dict[str, Any]

ADAPTER_LEAVES = ("lora_A", "lora_B")


def check_targets(config: LlamaConfig, modules: Iterable[str], lora_dropout: float) -> None:
    """Checks the target modules of an adapter for a model of this config.

    Raises:
      InputError: models of this family do not have one of them, or it is one of experts, whose
        adapters have no dropout.
    """
    adaptable = config.family.adaptable
    for module in modules:
        if module not in adaptable:
            raise InputError(unknown("target_modules", module, adaptable))
        if adaptable[module].in_experts and lora_dropout:
            others = ", ".join(name for name, row in adaptable.items() if not row.in_experts)
            raise InputError(
                f"lora_dropout={lora_dropout} is not supported for {module} of experts; set it to 0, or choose "
                f"target_modules from {others}"
            )


def init_adapter(config: LlamaConfig, lora: LoraConfig, key: jax.Array) -> Tree:
    """A new float32 adapter: A uniform in +-1/sqrt(I), B zero.

    A has the Kaiming distribution with a = sqrt 5, as in PEFT.

    Returns:
      For the target modules `{"layers": {"self_attn": {"q_proj": {"lora_A": [L, R, I], "lora_B":
      [L, O, R]}, ...}, "mlp": {...}}}`; those of experts are [L, E, R, I] and [L, E, O, R].

    Raises:
      InputError: models of this family do not have a target module, or it cannot have dropout.
    """
    adapter: Tree = {}
    adaptable = config.family.adaptable
    check_targets(config, lora.target_modules, lora.lora_dropout)
    for module, module_key in zip(lora.target_modules, jax.random.split(key, len(lora.target_modules)), strict=True):
        row = adaptable[module]
        (out_features, in_features), stacks = row.shape(config), row.stacks(config)
        bound = 1 / math.sqrt(in_features)
        *parents, name, _ = row.path
        node = adapter
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = {
            "lora_A": jax.random.uniform(module_key, (*stacks, lora.r, in_features), jnp.float32, -bound, bound),
            "lora_B": jnp.zeros((*stacks, out_features, lora.r), jnp.float32),
        }
    return adapter


def merge_weight(weight_OI: jax.Array, lora_A_RI: jax.Array, lora_B_OR: jax.Array, scaling: float) -> jax.Array:
    """`W + scaling * B A`, computed in float32 and rounded once to W's dtype.

    Leading axes broadcast, for stacked layers.
    """
    update = jnp.matmul(lora_B_OR.astype(jnp.float32), lora_A_RI.astype(jnp.float32), precision="highest")
    return (weight_OI.astype(jnp.float32) + scaling * update).astype(weight_OI.dtype)


def attach(params: Tree, adapter: Tree) -> Tree:
    """The parameters with the adapter's leaves next to the weights that they adapt; no copies."""
    joined = dict(params)
    for name, value in adapter.items():
        joined[name] = attach(params.get(name, {}), value) if isinstance(value, dict) else value
    return joined


def detach(params: Tree) -> tuple[Tree, Tree]:
    """(base, adapter): the inverse of `attach`."""
    base, adapter = {}, {}
    for name, value in params.items():
        if isinstance(value, dict):
            inner_base, inner_adapter = detach(value)
            base[name] = inner_base
            if inner_adapter:
                adapter[name] = inner_adapter
        else:
            (adapter if name in ADAPTER_LEAVES else base)[name] = value
    return base, adapter


def merge(params: Tree, scaling: float) -> Tree:
    """The base parameters with every adapter added to its weight, one weight at a time."""
    if "lora_A" in params:
        merged = merge_weight(params["weight"], params["lora_A"], params["lora_B"], scaling)
        return {"weight": merged, **{name: params[name] for name in params if name == "bias"}}
    return {name: merge(value, scaling) if isinstance(value, dict) else value for name, value in params.items()}


def merged_tensor(params: Tree, name: TensorName, scaling: float) -> jax.Array:
    """One tensor of the result of `merge`: a checkpoint's tensor plus its adapter, if it has one.

    A quantized weight is dequantized to float32.
    """
    module = params
    for key in name.path[:-1]:
        module = module[key]
    tensors = module if name.layer is None else jax.tree.map(lambda stack: stack[name.index], module)
    tensor = tensors[name.path[-1]]
    if four_bits.is_quantized(tensor):
        tensor = four_bits.dequantize(tensor, jnp.float32)
    if name.path[-1] != "weight" or "lora_A" not in module:
        return tensor
    return merge_weight(tensor, tensors["lora_A"], tensors["lora_B"], scaling)


def adapters_only(path: tuple[str, ...]) -> bool:
    """The selection for LoRA: `trainable_mask` selects only adapters."""
    return path[-1] in ADAPTER_LEAVES


def everything(path: tuple[str, ...]) -> bool:
    """The selection for full fine-tuning: all parameters."""
    return True


def trainable_mask(params: Tree, trains: Callable[[tuple[str, ...]], bool]) -> Tree:
    """A tree of bools like `params`, true where `trains(path)`; it alone defines what is trained.

    `partition` splits the parameters by it, and `optax.masked` (in `lcjax.optim`) uses it directly.

    Raises:
      InputError: `trains` selects a quantized weight.
    """

    def learns(path, leaf) -> bool:
        chosen = trains(tuple(key.key for key in path))
        if chosen and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InputError(
                f"{'.'.join(key.key for key in path[:-1])} is quantized and cannot be trained "
                "itself; put an adapter on the model (get_peft_model), or load it without "
                "quantize"
            )
        return chosen

    return jax.tree.map_with_path(learns, params)


def partition(params: Tree, mask: Tree) -> tuple[Tree, Tree]:
    """(trainable, frozen): two trees like `params`, each with the leaves that the other lacks.

    A missing leaf is replaced by `optax.MaskedNode()`, which has no leaves. So differentiation with
    respect to the first tree cannot produce a gradient of a frozen weight.
    """
    masked = optax.MaskedNode()
    trainable = jax.tree.map(lambda leaf, learns: leaf if learns else masked, params, mask)
    frozen = jax.tree.map(lambda leaf, learns: masked if learns else leaf, params, mask)
    return trainable, frozen


def combine(trainable: Tree, frozen: Tree) -> Tree:
    """The inverse of `partition`."""
    is_masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(lambda t, f: f if is_masked(t) else t, trainable, frozen, is_leaf=is_masked)
