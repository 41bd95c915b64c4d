"""Loads a model, with an optional adapter, for commands that do not train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcjax import api, weights
from lcjax.cli.model_arguments import ModelArguments
from lcjax.model import Llama

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def check_adapter(arguments: ModelArguments) -> None:
    """Reads the adapter, which is small, before the model's weights, which load slowly.

    Raises:
      InputError: as in `load_model`.
    """
    if arguments.adapter:
        weights.load_adapter(arguments.adapter, weights.open_model_files(weights.resolve_model(arguments.model)).config)


def load_model(
    arguments: ModelArguments, max_seq_length: int | None
) -> tuple[Llama, Llama | None, PreTrainedTokenizerFast]:
    """(base model, model with adapter or None, tokenizer), for sequences up to that length.

    Raises:
      InputError: there is no such model or adapter, or they do not match.
    """
    base, tokenizer = api.from_pretrained(
        arguments.model,
        max_seq_length,
        arguments.dtype,
        attention=arguments.attention,
        quantize=arguments.quantize,
        rope_scaling=arguments.rope_scaling,
        rope_theta=arguments.rope_theta,
    )
    return base, api.load_adapter(base, arguments.adapter) if arguments.adapter else None, tokenizer
