"""Mixtures of experts: what a layer's router chooses, and what an expert computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

STORED_FORMAT = "quantization"
"""Not a key of config.json: the format of the experts' matrices, "mxfp4" or None."""

_MOST = 4096
"""Experts of a layer, so that the list of tensors is bounded before any of them is read."""


@dataclasses.dataclass(frozen=True)
class Experts:
    """The experts of a layer. The router chooses some of them for each token.

    Attributes:
      count: their number.
      per_token: how many of them each token has.
      width: the intermediate size of an expert.
      sums_to_one: whether the weights of a token's experts are divided by their sum. Otherwise they
        are the probabilities among all experts.
      router_aux_loss_coef: the weight of the loss that balances experts, if the router is trained.
      limit: an expert computes `(up + 1) gate sigmoid(sharpness gate)` with gate at most `limit`
        and up within it; None for the family's activation of gate, times up.
      sharpness: see `limit`.
      stored_format: "mxfp4" if checkpoints have the experts' matrices in this format; None if they
        are not quantized.
    """

    count: int
    per_token: int
    width: int
    sums_to_one: bool
    router_aux_loss_coef: float
    limit: float | None = None
    sharpness: float = 1.0
    stored_format: str | None = None


def refusal(config: LlamaConfig, count: str, width: str | None = None) -> str | None:
    """Why a model's experts are not supported; None if they are.

    Args:
      config: the model's.
      count: the key of config.json with the number of experts.
      width: the key with their intermediate size, if it is not that of dense models.
    """
    coef: Any = config.own_value("router_aux_loss_coef")
    if isinstance(coef, bool) or not isinstance(coef, int | float) or not 0 <= coef < 1e6:
        return f"router_aux_loss_coef={coef!r} is not a number of at least 0"
    keys = count, "num_experts_per_tok", *([width] if width else [])
    return refusal_of(count, {key: config.own_value(key) for key in keys})


def refusal_of(count: str, values: Mapping[str, Any]) -> str | None:
    """Why experts with these numbers are not supported; None if they are.

    Args:
      count: the key of the number of experts.
      values: the numbers by key, with `num_experts_per_tok`.
    """
    for key, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            return f"{key}={value!r} is not a positive number"
    if (number := values[count]) > _MOST:
        return f"{count}={number} is above {_MOST}"
    if (chosen := values["num_experts_per_tok"]) > number:
        return f"num_experts_per_tok={chosen} is above {count}={number}"
    return None
