"""One table between Hugging Face's tensor names and the parameter tree; it serves loading and saving alike.

The tree is a nested dictionary whose path spells the Hugging Face name without `model.` and the layer's number: the
layers' tensors are stacked, so `model.layers.3.mlp.up_proj.weight` [out, in] is `tree["layers"]["mlp"]["up_proj"]["weight"][3]`
of [L, out, in]. Weights keep Hugging Face's [out, in] orientation: no transposition on the way in or out, and block-quantised
formats, whose blocks run along `in`, can be stored as they come.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lcjax.config import LlamaConfig

ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")


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


def linear_path(module: str) -> tuple[str, str, str]:
    """The path of a layer's linear map in the tree, e.g. ("layers", "self_attn", "q_proj")."""
    return ("layers", "self_attn" if module in ATTENTION_MODULES else "mlp", module)


def tensor_names(config: LlamaConfig) -> Iterator[TensorName]:
    """Every tensor that a checkpoint of this model holds, stack by stack: all layers of one kind before the next kind."""
    hidden, vocab = config.hidden_size, config.vocab_size
    yield TensorName("model.embed_tokens.weight", ("embed_tokens", "weight"), None, (vocab, hidden))
    for path, shape in _layer_tensors(config):
        suffix = ".".join(path[1:])
        for layer in range(config.num_hidden_layers):
            yield TensorName(f"model.layers.{layer}.{suffix}", path, layer, shape)
    yield TensorName("model.norm.weight", ("norm", "weight"), None, (hidden,))
    if not config.tie_word_embeddings:
        yield TensorName("lm_head.weight", ("lm_head", "weight"), None, (vocab, hidden))


def _layer_tensors(config: LlamaConfig) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    yield ("layers", "input_layernorm", "weight"), (config.hidden_size,)
    for module, shape in config.linear_shapes().items():
        yield (*linear_path(module), "weight"), shape
        if config.has_bias(module):
            yield (*linear_path(module), "bias"), shape[:1]
    yield ("layers", "post_attention_layernorm", "weight"), (config.hidden_size,)
