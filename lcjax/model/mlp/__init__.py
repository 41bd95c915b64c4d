"""What a layer computes after attention, position by position: a gated MLP, or a mixture of them.

dense.py           one gated MLP for all tokens
experts.py         a router, and gated MLPs; each token has some of them
grouped_linear.py  a linear map for each expert
activations.py     the activations of families
"""

from __future__ import annotations

from typing import Any

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.model.mlp.dense import MLP as MLP
from lcjax.model.mlp.experts import MixtureOfExperts as MixtureOfExperts

Tree = dict[str, Any]


def new_mlp(tree: Tree, config: LlamaConfig, lora: LoraConfig | None) -> MLP | MixtureOfExperts:
    """The one that the parameters are of."""
    return (MixtureOfExperts if "experts" in tree else MLP)(tree, config, lora)
