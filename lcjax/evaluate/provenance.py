"""Determines whether the text of an evaluation was held out, trained on, or is unknown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from lcjax.config.run_record import started
from lcjax.data import Data, load_corpus
from lcjax.errors import InputError
from lcjax.evaluate.overlap import shares_trained_on
from lcjax.evaluate.run import Run, TrainingText
from lcjax.evaluate.text import Text, documents_of_plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The share of a document's text from which it counts as trained on; half a document is not a common
# phrase.
_SHARE = 0.5
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where the text comes from.

    Attributes:
      documents, tokens: how much text there is.
      held_out_of: what it was held out of, in words; None if it was not held out.
      run: the run whose training text it was compared with, if one is known.
      trained_on: names of the documents of which the run trained on at least half; None if unknown.
      trained_tokens: the number of tokens in those documents.
      warnings: for the user.
    """

    documents: int
    tokens: int
    held_out_of: str | None
    run: str | None
    trained_on: tuple[str, ...] | None
    trained_tokens: int
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """One line about what the evaluation measures."""
        size = f"{self.documents:,} document{'' if self.documents == 1 else 's'}, {self.tokens:,} tokens"
        if self.held_out_of is not None:
            return f"measured on text held out of {self.held_out_of}: {size}"
        if self.trained_on is None:
            return f"measured on all of the data: {size}; it is unknown whether the model was trained on it"
        if self.trained_on:
            return f"measured on all of the data, not held out: {size}"
        return f"measured on all of the data, which {self.run} did not train on: {size}"

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON."""
        return dataclasses.asdict(self)


def load_text(
    settings: TrainingText,
    run: Run | None,
    tokenizer: PreTrainedTokenizerFast,
    max_seq_length: int,
    progress: Console | None,
) -> Data:
    """Reads and splits text as a run does; a chat template writes the date of `run`.

    Raises:
      InputError: a path or number is invalid.
    """
    return load_corpus(
        settings.data,
        tokenizer,
        max_seq_length,
        held_out_fraction=settings.eval_fraction,
        seed=settings.seed,
        documents=settings.documents,
        columns=settings.columns,
        weights=settings.data_weights if settings.eval_fraction else (),
        date=started(run.folder) if run else None,
        progress=progress,
    )


def provenance(
    text: Text,
    data: Data,
    settings: TrainingText,
    run: Run | None,
    tokenizer: PreTrainedTokenizerFast,
    progress: Console | None,
) -> Provenance:
    """Compares the text with what the run trained on.

    Args:
      text: of the evaluation.
      data: the data that it was taken from, with these `settings`.
      settings: the evaluation's own paths, unit of documents, fraction and seed.
      run: the run that trained the model or adapter; None if unknown.
      tokenizer: of the model.
      progress: where to show the encoding of the run's data; None shows nothing.
    """
    warnings = []
    held_out, trained = settings.eval_fraction > 0, None
    if held_out:
        trained = documents_of_plan(data.corpus, data.train_plan)
    if run is not None and run.text != settings:
        held_out = False
        try:
            of_run = load_text(run.text, run, tokenizer, text.max_seq_length, progress)
            trained = documents_of_plan(of_run.corpus, of_run.train_plan)
        except InputError as error:
            warnings.append(f"the training text of {run.folder} cannot be compared with this text: {error}")
            trained = None
    elif run is not None:
        trained = documents_of_plan(data.corpus, data.train_plan)
        warnings += _changed_data(data, run)
    documents, names = text.documents(), text.names()
    found = None if trained is None else _found(documents, trained, text.eos_id)
    if found is not None and found.any():
        warnings.append(_overlap(found, documents, names, run, held_out))
    by_flags = f"the data by --eval-fraction {settings.eval_fraction:g} --seed {settings.seed}"
    return Provenance(
        documents=len(documents),
        tokens=sum(map(len, documents)),
        held_out_of=(str(run.folder) if run else by_flags) if held_out else None,
        run=str(run.folder) if run else None,
        trained_on=None
        if found is None
        else tuple(name for name, is_found in zip(names, found, strict=True) if is_found),
        trained_tokens=0
        if found is None
        else sum(len(d) for d, is_found in zip(documents, found, strict=True) if is_found),
        warnings=tuple(warnings),
    )


def _changed_data(data: Data, run: Run) -> Iterator[str]:
    """A warning if the files changed since the run read them, so it may have held out others."""
    recorded = run.record.get("data", {})
    if len(data.corpus.tokens) != recorded.get("tokens") or data.num_documents != recorded.get("documents"):
        yield (
            f"the data has changed since {run.folder} read it ({recorded.get('tokens', 0):,} "
            f"tokens then, {len(data.corpus.tokens):,} now): what is held out of it now may have "
            "been trained on"
        )


def _found(documents: Sequence[np.ndarray], trained: Sequence[np.ndarray], eos_id: int | None) -> np.ndarray:
    """Whether each document is text that was trained on, bool."""

    def text_of(tokens: np.ndarray) -> np.ndarray:
        return tokens[:-1] if len(tokens) and tokens[-1] == eos_id else tokens

    return shares_trained_on([text_of(d) for d in documents], map(text_of, trained)) >= _SHARE


def _overlap(
    found: np.ndarray, documents: Sequence[np.ndarray], names: Sequence[str], run: Run | None, held_out: bool
) -> str:
    those = np.flatnonzero(found).tolist()
    tokens, total = sum(len(documents[i]) for i in those), sum(map(len, documents))
    named = ", ".join(names[i] for i in those[:_NAMED])
    more = f" and {len(those) - _NAMED} more" if len(those) > _NAMED else ""
    nothing = run is not None and not run.text.eval_fraction
    why = "; that run held nothing out (--eval-fraction 0)" if nothing else ""
    what = "repeat text that was trained on" if held_out else "are text that was trained on"
    by = f" in {run.folder}" if run else ""
    return (
        f"{len(those):,} of {len(documents):,} documents, {tokens / total:.0%} of the tokens, "
        f"{what}{by}: {named}{more}{why}"
    )
