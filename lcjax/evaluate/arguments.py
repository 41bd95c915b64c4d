"""The flags of `lcjax evaluate`, and the defaults that --run gives them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from lcjax.cli import flags
from lcjax.cli.flags import refuse_empty
from lcjax.cli.model_arguments import ModelArguments
from lcjax.config.rope import LONGEST
from lcjax.config.training import UNITS, check_weights, parse_columns
from lcjax.errors import InputError, unknown
from lcjax.evaluate.lengths import SHORTEST_CONTEXT, SHORTEST_NEEDLE, SHORTEST_ROW
from lcjax.evaluate.run import Run, TrainingText

EVALUATIONS = ("position", "context", "needle")
_NEEDLE_LENGTHS = 6


@dataclasses.dataclass(frozen=True)
class EvaluateArguments(ModelArguments):
    """Measure how well a model uses long context, and what an adapter changed.

    position: loss by a token's position in its document. context: loss of the same tokens given
    only the last 16, 32, ... tokens. needle: how often a passkey, and one of four key-value pairs,
    is found in real text, by length and depth. Examples:

      lcjax evaluate --run runs/x
      lcjax evaluate --model DIR_OR_HUB_ID --data new_text/ --max-seq-length 8192
      lcjax evaluate --model DIR_OR_HUB_ID --adapter x/adapter --data x.txt --tasks needle
    """

    run: Path | None = None
    """A folder written by lcjax.train: evaluates its model on the text that it held out.
    Other flags override its settings; with --data, all of the given data is used.
    """
    data: tuple[str, ...] = ()
    """Text that was not trained on, as in lcjax.train: files, folders, .jsonl."""
    documents: str = "file"
    """What counts as a document, as in lcjax.train: file, folder, repository or related."""
    columns: tuple[str, ...] = ()
    """Columns with other names than the fields of a record, as field=column, as in lcjax.train."""
    data_weights: tuple[float, ...] = ()
    """The --data-weights of the run, if --eval-fraction should select what it held out."""
    max_seq_length: int = 2048
    """The longest context, in tokens."""
    tasks: tuple[str, ...] = EVALUATIONS
    """Some of position, context, needle; by default for --run, those that its text allows."""
    eval_fraction: float = 0.0
    """Use the documents that lcjax.train held out with this value and the same --seed; 0: all."""
    seed: int = 42
    """Seed of that split and of the needles."""
    eval_batches: int = 8
    """position: the most rows of max_seq_length tokens, spread evenly over the text."""
    num_documents: int = 4
    """context: the most documents, out of those longer than the longest context."""
    depths: int = 5
    """needle: number of depths, evenly spaced from the beginning of the text to its end."""
    samples: int = 2
    """needle: number of texts for each length and depth."""
    output_dir: Path | None = None
    """Folder for results.json and the pictures; if not given, a new one named by the time."""

    def __post_init__(self):
        super().__post_init__()
        if not self.data:
            raise InputError("--data is not given; give text that the model was not trained on, or a run with --run")
        if self.documents not in UNITS:
            raise InputError(unknown("--documents", self.documents, UNITS))
        parse_columns(self.columns)
        if self.data_weights:
            check_weights(self.data_weights, len(self.data))
        for name in self.tasks:
            if name not in EVALUATIONS:
                raise InputError(unknown("--tasks", name, EVALUATIONS))
        if not self.tasks and self.run is None:
            raise InputError(f"--tasks is empty; give some of {', '.join(EVALUATIONS)}")
        least = SHORTEST_NEEDLE if "needle" in self.tasks else SHORTEST_CONTEXT if self.tasks else SHORTEST_ROW
        if not least <= self.max_seq_length <= LONGEST:
            tasks = ", ".join(self.tasks or EVALUATIONS)
            raise InputError(
                f"--max-seq-length {self.max_seq_length} is out of range; for {tasks} it must be "
                f"from {least} to {LONGEST:,}"
            )
        for flag, value in (
            ("--eval-batches", self.eval_batches),
            ("--num-documents", self.num_documents),
            ("--depths", self.depths),
            ("--samples", self.samples),
        ):
            if value < 1:
                raise InputError(f"{flag} {value} is out of range; it must be at least 1")

    @property
    def text(self) -> TrainingText:
        """The requested text, with the data settings of a run."""
        return TrainingText(self.data, self.documents, self.data_weights, self.eval_fraction, self.seed, self.columns)

    def training_run(self) -> Run | None:
        """The run of --run, or the one whose folder contains the adapter."""
        return Run.read(self.run) if self.run is not None else Run.of_adapter(self.adapter)

    @property
    def name_of_model(self) -> str:
        """The name of the only model, in tables and files."""
        return "trained" if self.run is not None else "base"

    def needle_lengths(self) -> list[int]:
        """The longest context, and its halves, quarters, ...

        down to 256 tokens; at most six lengths.
        """
        lengths = [self.max_seq_length >> n for n in range(_NEEDLE_LENGTHS)]
        return [length for length in reversed(lengths) if length >= SHORTEST_NEEDLE]

    def needle_depths(self) -> list[float]:
        """Depths from 0, the beginning, to 1, the end."""
        return [n / max(self.depths - 1, 1) for n in range(self.depths)]


def parse(argv: list[str] | None) -> EvaluateArguments:
    """The arguments: flags that override the defaults, or the settings of --run.

    Raises:
      InputError: the folder of --run does not belong to a run, or a value is invalid.
    """
    program = "lcjax evaluate"
    refuse_empty(sys.argv[1:] if argv is None else argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--run", nargs="?")
    early.add_argument("--data", nargs="*")
    given, _ = early.parse_known_args(argv)
    if given.run is None:
        return flags.parse(EvaluateArguments, argv, program)
    defaults = Run.read(Path(given.run)).defaults(own_data=given.data is None)
    defaults["tasks"] = ()
    if given.data is not None:
        defaults["data"] = tuple(given.data)
    return flags.parse(EvaluateArguments, argv, program, EvaluateArguments(**defaults))
