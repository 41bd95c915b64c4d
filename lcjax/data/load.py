"""From paths to everything that a training run wants of its data."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grain
import numpy as np

from lcjax.data.documents import read_documents
from lcjax.data.packing import PackingPlan, pack
from lcjax.data.pipeline import evaluation_batches, make_dataset
from lcjax.data.rows import Batch, documents_of
from lcjax.data.split import split_held_out
from lcjax.data.tokens import TokenizedCorpus, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class Data:
    """A corpus with the plans of its two parts.

    Attributes:
      corpus: all documents, of both parts.
      train_plan: rows of the documents to train on.
      held_out_plan: rows of those held out; it has no rows where none are.
      seed: of the split and of the order in training.
    """

    corpus: TokenizedCorpus
    train_plan: PackingPlan
    held_out_plan: PackingPlan
    seed: int

    def train_dataset(self, batch_size: int, accumulation: int = 1) -> grain.MapDataset[Batch]:
        """Endless batches [A, B, T] to train on; see `lcjax.data.pipeline.make_dataset` and `iterate`."""
        return make_dataset(
            self.corpus, self.train_plan, batch_size=batch_size, accumulation=accumulation, seed=self.seed
        )

    def evaluation_batches(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """The held-out rows once, as batches [B, T]; see `lcjax.data.pipeline.evaluation_batches`."""
        return evaluation_batches(self.corpus, self.held_out_plan, batch_size, limit)

    def documents_of(self, batch: Batch, *, held_out: bool = False) -> list[str]:
        """The names of the documents in a batch of `train_dataset`, or with held_out of `evaluation_batches`."""
        return documents_of(batch, self.corpus, self.held_out_plan if held_out else self.train_plan)

    def fingerprint(self) -> str:
        """32 hexadecimal digits that change with any token, with the plan of training, or with the seed.

        The state of an iterator is an index. It means the same batch only where this and the batch's shape are the
        same: store it next to the state, compare it on resuming.
        """
        digest = hashlib.blake2b(f"{self.train_plan.max_seq_length} {self.seed}".encode(), digest_size=16)
        for array in (self.corpus.offsets, self.corpus.tokens, self.train_plan.row_offsets, self.train_plan.pieces):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def summary(self) -> str:
        """One line for people: documents, tokens, rows and the share of padding."""
        train, held_out = self.train_plan, self.held_out_plan
        line = (
            f"{len(self.corpus):,} documents, {len(self.corpus.tokens):,} tokens: {train.num_tokens:,} to train on in "
            f"{len(train):,} rows of {train.max_seq_length:,} ({train.padding_share:.1%} padding)"
        )
        return f"{line}, {held_out.num_tokens:,} held out in {len(held_out):,} rows" if len(held_out) else line


def load_corpus(
    paths: Sequence[str | Path],
    tokenizer: PreTrainedTokenizerFast,
    max_seq_length: int,
    *,
    held_out_fraction: float,
    seed: int,
    vocab_size: int | None = None,
    progress: bool = False,
) -> Data:
    """Reads, splits, encodes and packs.

    Args:
      paths: text files, .jsonl files, folders; see `read_documents`.
      tokenizer: a fast tokenizer; every document gets its EOS token at the end.
      max_seq_length: T, tokens in a row.
      held_out_fraction: share of the documents held out, in [0, 1).
      seed: of the split and of the order in training, 0, ..., 2^32 - 1.
      vocab_size: the model's; ids beyond are refused. None does not check.
      progress: whether to draw a progress bar on stderr.

    Raises:
      InputError: anything in the paths, the tokenizer or the numbers that the user can mend.
    """
    documents = read_documents(paths)
    train, held_out = split_held_out(len(documents), held_out_fraction, seed)
    corpus = tokenize(documents, tokenizer, vocab_size=vocab_size, progress=progress)
    lengths = corpus.lengths
    return Data(corpus, pack(lengths, max_seq_length, train), pack(lengths, max_seq_length, held_out), seed)
