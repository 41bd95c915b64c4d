"""What the commands that look at data are told, and the corpus that they look at."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from lcjax import weights
from lcjax.cli import check_outputs, say
from lcjax.data import UNITS, ChatTemplate, TokenizedCorpus, check_data_paths, read_documents, tokenize
from lcjax.errors import InputError, unknown
from lcjax.rope import LONGEST
from lcjax.train.arguments import RunArguments, demo_model
from lcjax.train.reporting.terminal import shown_warnings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class CorpusArguments:
    """Data, a tokenizer and a length.

    Raises:
      InputError: a value out of range.
    """

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...")]
    """The data, as lcjax.train takes them: files, tables of records, folders."""
    model: str | None = None
    """Whose tokenizer: a Hugging Face directory or hub id, or a .gguf file; SmolLM2's when not given. No weights are loaded."""
    max_seq_length: int = RunArguments.max_seq_length
    """Tokens of context that you mean to train at; lcjax.train's default when not given."""
    documents: str = "file"
    """What is a document where a path is a folder: file or repository."""
    json: str | None = None
    """Write the figures as JSON to this file, or to standard output for -."""
    plot: Path | None = None
    """Draw a picture to this .png."""

    def __post_init__(self):
        if not 2 <= self.max_seq_length <= LONGEST:
            raise InputError(
                f"--max-seq-length {self.max_seq_length} is out of range; it must be from 2 to {LONGEST:,}"
            )
        if self.documents not in UNITS:
            raise InputError(unknown("--documents", self.documents, UNITS))
        check_outputs([*self.paths, self.model or ""], json=self.json, plot=self.plot)


def load(arguments: CorpusArguments, console: Console) -> TokenizedCorpus:
    """Reads and encodes the data, and says on `console` how far it is.

    Raises:
      InputError: a model without a tokenizer, or data that cannot be read.
    """
    check_data_paths(arguments.paths)
    with shown_warnings(console):
        tokenizer = _tokenizer(arguments.model)
        say(console, "reading the data")
        documents = read_documents(arguments.paths, ChatTemplate(tokenizer), arguments.documents)
        return tokenize(documents, tokenizer, progress=console, stored=True)


def _tokenizer(model: str | None) -> PreTrainedTokenizerFast:
    return weights.load_tokenizer(weights.resolve_model(model or demo_model(), with_weights=False))
