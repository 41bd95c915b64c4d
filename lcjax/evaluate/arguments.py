"""What an evaluation can be told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lcjax.errors import InputError, unknown
from lcjax.evaluate.context import SHORTEST
from lcjax.inference import ModelArguments
from lcjax.rope import LONGEST

EVALUATIONS = ("position", "context", "needle")
# Needles, question and answer take about a hundred tokens.
_SHORTEST_NEEDLE = 256
_NEEDLE_LENGTHS = 6


@dataclasses.dataclass(frozen=True)
class EvaluateArguments(ModelArguments):
    """How well a model uses long context, and what an adapter changed: on text that it was not trained on.

    position: loss by how far into its document a token is. context: loss of the same tokens given only the last 16, 32, ... tokens.
    needle: how often a passkey, and one of four key-value pairs, is found in real text, by length and depth. Examples:

      python -m lcjax.evaluate --model DIR_OR_HUB_ID --data held_out/ --max-seq-length 8192
      python -m lcjax.evaluate --model DIR_OR_HUB_ID --adapter runs/x/adapter --data docs/ --eval-fraction 0.05
      python -m lcjax.evaluate --model DIR_OR_HUB_ID --data book.txt --max-seq-length 131072 --tasks needle
    """

    data: tuple[str, ...] = ()
    """Text that was not trained on: as in lcjax.train, files, folders, .jsonl."""
    max_seq_length: int = 2048
    """The longest context, in tokens."""
    tasks: tuple[str, ...] = EVALUATIONS
    """Some of position, context, needle."""
    eval_fraction: float = 0.0
    """Take the share of the documents that lcjax.train held out with this --eval-fraction and the same --seed; 0 takes all."""
    seed: int = 42
    """Of that split, and of the needles."""
    eval_batches: int = 8
    """position: rows of max_seq_length tokens at most, spread evenly over the text."""
    documents: int = 4
    """context: documents at most, of those that are longer than the longest context."""
    depths: int = 5
    """needle: depths, evenly from the beginning of the text to its end."""
    samples: int = 2
    """needle: texts for each length and depth."""
    output_dir: Path | None = None
    """Where results.json and the pictures go; a new folder runs/NAME-evaluation-TIME when not given."""

    def __post_init__(self):
        super().__post_init__()
        if not self.data:
            raise InputError("--data is not given; name text that the model was not trained on")
        for name in self.tasks:
            if name not in EVALUATIONS:
                raise InputError(unknown("--tasks", name, EVALUATIONS))
        if not self.tasks:
            raise InputError(f"--tasks names none; give some of {', '.join(EVALUATIONS)}")
        least = _SHORTEST_NEEDLE if "needle" in self.tasks else SHORTEST
        if not least <= self.max_seq_length <= LONGEST:
            raise InputError(
                f"--max-seq-length {self.max_seq_length} is out of range; for {', '.join(self.tasks)} it must be from {least} to "
                f"{LONGEST:,}"
            )
        for flag, value in (
            ("--eval-batches", self.eval_batches),
            ("--documents", self.documents),
            ("--depths", self.depths),
            ("--samples", self.samples),
        ):
            if value < 1:
                raise InputError(f"{flag} {value} is out of range; it must be at least 1")
        if self.output_dir is not None and self.output_dir.exists() and not self.output_dir.is_dir():
            raise InputError(f"--output-dir {self.output_dir} is a file; name a folder")

    def needle_lengths(self) -> list[int]:
        """The longest context, and its halves, quarters, ... down to 256 tokens, six lengths at most."""
        lengths = [self.max_seq_length >> n for n in range(_NEEDLE_LENGTHS)]
        return [length for length in reversed(lengths) if length >= _SHORTEST_NEEDLE]

    def needle_depths(self) -> list[float]:
        """From 0, the beginning, to 1, the end."""
        return [n / max(self.depths - 1, 1) for n in range(self.depths)]
