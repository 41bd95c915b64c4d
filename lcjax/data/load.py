"""Loads everything that a training run needs of its data."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grain
import numpy as np
from rich.console import Console

from lcjax.cli.terminal import say
from lcjax.config.training import check_weights
from lcjax.data.formats.chat import ChatTemplate
from lcjax.data.joining.conversations import warn_of_long_conversations
from lcjax.data.joining.corpora import join_related
from lcjax.data.mixture import Mixture, pack_mixture
from lcjax.data.packing import PackingPlan, nothing_learned, pack
from lcjax.data.pipeline import evaluation_batches, make_dataset
from lcjax.data.rows import Batch, documents_of, is_learned
from lcjax.data.split import split_corpus
from lcjax.data.tokens import TokenizedCorpus, tokenize_sources
from lcjax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class Data:
    """A corpus with the plans of its two parts.

    Attributes:
      corpus: all documents, of both parts.
      train_plan: rows of the documents to train on.
      held_out_plan: rows of the held-out documents; no rows if there are none.
      seed: seed of the split and of the training order.
      mixture: how the rows of weighted sources alternate in training.
      ends: names of the documents that are in both parts. Their ends are separate documents of the
        corpus and are held out.
      paths: where the documents were read from.
      date: the date that the chat template wrote as today's.
    """

    corpus: TokenizedCorpus
    train_plan: PackingPlan
    held_out_plan: PackingPlan
    seed: int
    mixture: Mixture | None = None
    ends: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    date: datetime.datetime | None = None

    def train_dataset(self, batch_size: int, accumulation: int = 1) -> grain.MapDataset[Batch]:
        """Endless training batches [A, B, T]; see `lcjax.data.pipeline.make_dataset`."""
        return make_dataset(
            self.corpus,
            self.train_plan,
            batch_size=batch_size,
            accumulation=accumulation,
            seed=self.seed,
            mixture=self.mixture,
        )

    def evaluation_batches(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """The held-out rows once, in batches [B, T]; see `pipeline.evaluation_batches`."""
        return evaluation_batches(self.corpus, self.held_out_plan, batch_size, limit)

    def documents_of(self, batch: Batch, *, held_out: bool = False) -> list[str]:
        """The documents' names in a batch of `train_dataset` or (held_out) `evaluation_batches`."""
        return documents_of(batch, self.corpus, self.held_out_plan if held_out else self.train_plan)

    @property
    def num_documents(self) -> int:
        """The number of documents read; one whose end is held out is two in the corpus."""
        return len(self.corpus) - len(self.ends)

    def check_fit(self, vocab_size: int, max_seq_length: int) -> None:
        """Raises InputError if the rows do not fit the model's length or vocabulary."""
        if self.train_plan.max_seq_length != max_seq_length:
            raise InputError(
                f"the data was packed into rows of {self.train_plan.max_seq_length:,} tokens, "
                f"but the model takes max_seq_length={max_seq_length:,}; use the same for both"
            )
        self.corpus.check_ids(vocab_size)

    def fingerprint(self) -> str:
        """32 hexadecimal digits that depend on tokens, masks, training plan or mixture, and seed.

        The state of an iterator is an index. It means the same batch only if this and the batch's
        shape are the same. Store it next to the state and compare it on resuming.
        """
        digest = hashlib.blake2b(f"{self.train_plan.max_seq_length} {self.seed}".encode(), digest_size=16)
        for array in (self.corpus.offsets, self.corpus.tokens, self.train_plan.row_offsets, self.train_plan.pieces):
            digest.update(np.ascontiguousarray(array).data)
        if self.corpus.learned is not None:
            digest.update(np.packbits(self.corpus.learned).data)
        if self.mixture is not None:
            digest.update(f"{self.mixture.row_bounds} {self.mixture.turns}".encode())
        return digest.hexdigest()

    def summary(self) -> str:
        """One line about documents, tokens, rows, padding, loss and omitted windows."""
        train, held_out = self.train_plan, self.held_out_plan
        documents = "1 document" if self.num_documents == 1 else f"{self.num_documents:,} documents"
        line = (
            f"{documents}, {len(self.corpus.tokens):,} tokens: {train.num_tokens:,} to train on "
            f"in {len(train):,} rows of {train.max_seq_length:,} ({train.padding_share:.1%} "
            "padding)"
        )
        if len(held_out):
            line += f", {held_out.num_tokens:,} held out in {len(held_out):,} rows"
        if self.ends:
            line += f" (the end of {', '.join(self.ends)})"
        if self.corpus.learned is not None:
            line += f"; the loss is on {np.mean(self.corpus.learned):.1%} of the tokens"
        if unlearned := train.num_unlearned + held_out.num_unlearned:
            line += f"; omitted: {unlearned:,} windows without a token to learn"
        if self.corpus.was_stored:
            line += "; tokenized by an earlier run, read from the cache"
        return line


def load_corpus(
    paths: Sequence[str | Path] | str | Path,
    tokenizer: PreTrainedTokenizerFast,
    max_seq_length: int,
    *,
    held_out_fraction: float,
    seed: int,
    documents: str = "file",
    columns: Sequence[str] = (),
    weights: Sequence[float] = (),
    vocab_size: int | None = None,
    date: datetime.datetime | None = None,
    progress: Console | None = None,
) -> Data:
    """Reads, splits, encodes and packs.

    Args:
      paths: text files, tables of records, folders; see `read_sources`.
      tokenizer: a fast tokenizer; every document ends with its EOS token.
      max_seq_length: T, tokens in a row.
      held_out_fraction: share of the documents held out, in [0, 1). If there is only one text, or a
        source of a mixture is one text, the share of its tokens that is held out at its end.
      seed: seed of the split and of the training order, 0, ..., 2^32 - 1.
      documents: what counts as a document: "file", "folder", "repository" or "related"; see
        `read_sources` and `join_related`.
      columns: `field=column` words, for columns with other names; see `read_sources`.
      weights: a share of the tokens for each path; see `Mixture`. Without weights every document
        occurs once per epoch.
      vocab_size: the model's; larger ids are rejected. None does not check.
      date: what a chat template writes as today's date; the current date if None.
      progress: where to show progress: a bar on a terminal, otherwise lines; None shows nothing.

    Raises:
      InputError: the paths, the tokenizer or a number is invalid in a way that the user can
        correct.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    date = date or datetime.datetime.now()
    if weights:
        check_weights(weights, len(paths))
    if progress is not None:
        say(progress, "reading the data")
    template = ChatTemplate(tokenizer, date)
    sources = tokenize_sources(
        paths, tokenizer, template, documents=documents, columns=columns, vocab_size=vocab_size, progress=progress
    )
    if documents == "related":
        sources = join_related(sources, max_seq_length)
    warn_of_long_conversations(sources, max_seq_length)
    split = split_corpus(sources, tokenizer, held_out_fraction, seed, by_source=bool(weights))
    corpus, learns = split.corpus, functools.partial(is_learned, split.corpus)
    held_out_plan = pack(corpus.lengths, max_seq_length, split.held_out, learns)
    if held_out_plan.num_unlearned and not len(held_out_plan):
        raise InputError(f"of the held-out text, {nothing_learned(held_out_plan)}; --eval-fraction 0 holds none out")
    if not weights:
        train_plan, mixture = pack(corpus.lengths, max_seq_length, split.train[0], learns), None
        if train_plan.num_unlearned and not len(train_plan):
            raise InputError(f"{', '.join(map(str, paths))}: {nothing_learned(train_plan)}")
    else:
        names = [str(path) for path in paths]
        train_plan, mixture = pack_mixture(corpus.lengths, max_seq_length, split.train, weights, names, learns)
    return Data(corpus, train_plan, held_out_plan, seed, mixture, split.ends, tuple(map(str, paths)), date)
