"""The held-out text in the forms that the evaluations want."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lcjax.data import Batch, PackingPlan, TokenizedCorpus, evaluation_batches, load_corpus
from lcjax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Documents that the model was not trained on; `plan` lays them into rows of the longest context."""

    corpus: TokenizedCorpus
    plan: PackingPlan
    eos_id: int | None

    @classmethod
    def load(
        cls,
        paths: Sequence[str],
        tokenizer: PreTrainedTokenizerFast,
        max_seq_length: int,
        *,
        eval_fraction: float,
        seed: int,
        vocab_size: int,
        progress: bool,
    ) -> HeldOut:
        """All documents of `paths`; with an `eval_fraction` above 0 those that a training run with it and `seed` held out.

        Raises:
          InputError: anything in the paths or numbers that the user can mend.
        """
        data = load_corpus(
            paths,
            tokenizer,
            max_seq_length,
            held_out_fraction=eval_fraction,
            seed=seed,
            vocab_size=vocab_size,
            progress=progress,
        )
        plan = data.held_out_plan if eval_fraction else data.train_plan
        eos = tokenizer.eos_token_id
        return cls(data.corpus, plan, eos if isinstance(eos, int) else None)

    @property
    def max_seq_length(self) -> int:
        """T, tokens of a row."""
        return self.plan.max_seq_length

    def batches(self, limit: int) -> Iterator[Batch]:
        """At most so many rows [1, T], spread evenly over the text."""
        return evaluation_batches(self.corpus, self.plan, 1, limit)

    def documents(self) -> list[np.ndarray]:
        """The tokens of every document, in order."""
        return [self.corpus.document(i) for i in np.unique(self.plan.pieces[:, 0])]

    def long_documents(self, tokens: int, limit: int) -> list[np.ndarray]:
        """At most `limit` documents of more than `tokens` tokens, spread evenly over those that there are.

        Raises:
          InputError: there is none.
        """
        documents = self.documents()
        long = [document for document in documents if len(document) > tokens]
        if not long:
            longest = max(map(len, documents))
            raise InputError(
                f"--max-seq-length {self.max_seq_length}: no document has more than {tokens:,} tokens (the longest {longest:,}); "
                "lower it, add longer text, or leave context out of --tasks"
            )
        count = min(limit, len(long))
        return [long[i * len(long) // count] for i in range(count)]

    def haystack(self, tokens: int, rng: np.random.Generator) -> np.ndarray:
        """So many tokens of text, int32, from a document drawn by `rng` on, without the tokens that end documents.

        Raises:
          InputError: the documents together are shorter.
        """
        documents = self.documents()
        first = int(rng.integers(len(documents)))
        parts, found = [], 0
        for document in documents[first:] + documents[:first]:
            if found >= tokens:
                break
            parts.append(document[document != self.eos_id])
            found += len(parts[-1])
        if found < tokens:
            raise InputError(
                f"needles in {tokens:,} tokens of text, and the held-out documents hold {found:,}; add text, or lower "
                "--max-seq-length"
            )
        return np.concatenate(parts)[:tokens]
