"""The flags of `lcjax data show`."""

from __future__ import annotations

import dataclasses

from lcjax.config.rope import LONGEST
from lcjax.config.training import DEFAULT_MAX_SEQ_LENGTH, UNITS, check_weights, parse_columns
from lcjax.errors import InputError, flag, unknown


@dataclasses.dataclass(frozen=True)
class ShowArguments:
    """Show the first rows that lcjax.train would train on, and what was cut, packed and skipped.

    What is learned is green. Without color it is between {+ and +}. Examples:

      lcjax data show --data chat.jsonl --model DIR_OR_HUB_ID --max-seq-length 8192
      lcjax data show --data faq.csv --columns instruction=question output=answer --rows 1
    """

    data: tuple[str, ...] = ()
    """The data, as in lcjax.train."""
    model: str | None = None
    """Whose tokenizer: a Hugging Face directory or hub id, or a .gguf file; SmolLM2's if not given.
    Its weights are not loaded.
    """
    max_seq_length: int = DEFAULT_MAX_SEQ_LENGTH
    """Tokens in a row."""
    columns: tuple[str, ...] = ()
    """Columns with other names than the fields of a record, as field=column, as in lcjax.train."""
    documents: str = "file"
    """What counts as a document: file, folder (its text files, in order), repository (its files,
    after what they import), or related (similar texts joined up to the length).
    """
    data_weights: tuple[float, ...] = ()
    """A share of the tokens for each path, as in lcjax.train."""
    eval_fraction: float = 0.05
    """Fraction of the documents held out, as in lcjax.train."""
    seed: int = 42
    """Seed of the held-out split and of the order, as in lcjax.train."""
    rows: int = 2
    """Number of rows to show, in the order of training."""
    most_tokens: int = 500
    """The most tokens of a document to show, half of them from its end; 0 shows all."""

    def __post_init__(self):
        if not self.data:
            raise InputError("no data is given; give --data with files, folders or a data set of the hub")
        if not 2 <= self.max_seq_length <= LONGEST:
            raise InputError(
                f"--max-seq-length {self.max_seq_length} is out of range; it must be from 2 to {LONGEST:,}"
            )
        for name, least in (("rows", 1), ("most_tokens", 0), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"{flag(name)} {value} is out of range; it must be at least {least}")
        if self.documents not in UNITS:
            raise InputError(unknown("--documents", self.documents, UNITS))
        if self.data_weights:
            check_weights(self.data_weights, len(self.data))
        parse_columns(self.columns)
