"""Loading a model, perhaps with an adapter, for commands that do not train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcjax import api, weights
from lcjax.cli.model_arguments import ModelArguments
from lcjax.model import Llama

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def check_adapter(arguments: ModelArguments) -> None:
    """Reads the adapter, which is small, before the slow loading of the model's weights.

    Raises:
      InputError: as `load_model` does.
    """
    if arguments.adapter:
        weights.load_adapter(arguments.adapter, weights.open_model_files(weights.resolve_model(arguments.model)).config)


def load_model(
    arguments: ModelArguments, max_seq_length: int | None
) -> tuple[Llama, Llama | None, PreTrainedTokenizerFast]:
    """(the base model, the same weights under the adapter or None, the tokenizer), for sequences up to that length.

    Raises:
      InputError: there is no such model or adapter, or they do not belong together.
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
