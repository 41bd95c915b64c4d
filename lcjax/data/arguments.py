"""The flags shared by commands that examine data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from lcjax.cli.outputs import check_outputs
from lcjax.config.rope import LONGEST
from lcjax.config.training import DEFAULT_MAX_SEQ_LENGTH, UNITS, parse_columns
from lcjax.errors import InputError, unknown


@dataclasses.dataclass(frozen=True)
class CorpusArguments:
    """Data, a tokenizer and a length.

    Raises:
      InputError: a value is out of range.
    """

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...")]
    """The data, as lcjax.train takes it: files, tables of records, folders."""
    model: str | None = None
    """Whose tokenizer: a Hugging Face directory or hub id, or a .gguf file; SmolLM2's if not given.
    Its weights are not loaded.
    """
    max_seq_length: int = DEFAULT_MAX_SEQ_LENGTH
    """Context length, in tokens, to train with; if not given, the default of lcjax.train."""
    documents: str = "file"
    """What counts as a document: file, folder (its text files, in order), repository (its files,
    after what they import), or related (similar texts joined up to the length).
    """
    columns: tuple[str, ...] = ()
    """Columns with other names than the fields of a record, as field=column, as in lcjax.train."""
    json: str | None = None
    """Write the numbers as JSON to this file, or to standard output for -."""
    plot: Path | None = None
    """Draw a picture to this .png file."""

    def __post_init__(self):
        if not 2 <= self.max_seq_length <= LONGEST:
            raise InputError(
                f"--max-seq-length {self.max_seq_length} is out of range; it must be from 2 to {LONGEST:,}"
            )
        if self.documents not in UNITS:
            raise InputError(unknown("--documents", self.documents, UNITS))
        parse_columns(self.columns)
        check_outputs([*self.paths, self.model or ""], json=self.json, plot=self.plot)
