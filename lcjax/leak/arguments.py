"""The flags of `lcjax leak`."""

from __future__ import annotations

import dataclasses

from lcjax.config.training import UNITS, parse_columns
from lcjax.errors import InputError, unknown


@dataclasses.dataclass(frozen=True)
class LeakArguments:
    """Check that documents in the same row do not see each other.

    Other tokens in one document must change no logit in another, bit for bit. Exits with 0 if
    nothing leaks, 1 if something does, 2 if a flag is invalid. Example:

      lcjax leak --model DIR_OR_HUB_ID --data PATH... --max-seq-length 8192
    """

    model: str
    """A Hugging Face directory or hub id, or a .gguf file."""
    data: tuple[str, ...]
    """As in lcjax.train."""
    max_seq_length: int = 2048
    """Tokens in a row."""
    rows: int = 4
    """Number of rows to probe; each takes one forward pass, plus one for each document."""
    documents: str = "file"
    """As in lcjax.train: file, folder, repository or related."""
    columns: tuple[str, ...] = ()
    """As in lcjax.train: field=column."""
    dtype: str = "auto"
    """dtype of the weights: float32, bfloat16, or auto."""
    quantize: str | None = None
    """nf4: as in lcjax.train."""
    attention: str = "auto"
    """The implementation to probe: auto, pallas, mosaic, cudnn, fa3 or xla."""
    memory: str = "auto"
    """How layers run in tiles, as in lcjax.train."""

    def __post_init__(self):
        for flag, value, least in (("--max-seq-length", self.max_seq_length, 2), ("--rows", self.rows, 1)):
            if value < least:
                raise InputError(f"{flag} {value} is out of range; it must be at least {least}")
        if self.documents not in UNITS:
            raise InputError(unknown("--documents", self.documents, UNITS))
        parse_columns(self.columns)
