"""Reads and encodes the data that a command examines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from lcjax import weights
from lcjax.cli.terminal import say, show_warnings
from lcjax.data.arguments import CorpusArguments
from lcjax.data.formats.chat import ChatTemplate
from lcjax.data.joining.corpora import join_related
from lcjax.data.reading.sources import check_data_paths
from lcjax.data.tokens import TokenizedCorpus, tokenize_sources
from lcjax.weights.demo import demo_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load(arguments: CorpusArguments, console: Console) -> TokenizedCorpus:
    """Reads and encodes the data, with progress on `console`.

    Raises:
      InputError: the model has no tokenizer, or the data cannot be read.
    """
    check_data_paths(arguments.paths)
    with show_warnings(console):
        tokenizer = _tokenizer(arguments.model)
        say(console, "reading the data")
        sources = tokenize_sources(
            arguments.paths,
            tokenizer,
            ChatTemplate(tokenizer),
            documents=arguments.documents,
            columns=arguments.columns,
            progress=console,
        )
        if arguments.documents == "related":
            sources = join_related(sources, arguments.max_seq_length)
        return sources.corpus


def _tokenizer(model: str | None) -> PreTrainedTokenizerFast:
    return weights.load_tokenizer(weights.resolve_model(model or demo_model(), with_weights=False))
