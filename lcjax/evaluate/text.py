"""The text of an evaluation in the forms that its tasks need."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from lcjax.data import Batch, Data, PackingPlan, TokenizedCorpus, evaluation_batches
from lcjax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class Text:
    """Documents to evaluate on; `plan` packs them into rows of the longest context."""

    corpus: TokenizedCorpus
    plan: PackingPlan
    eos_id: int | None

    @classmethod
    def of(cls, data: Data, tokenizer: PreTrainedTokenizerFast) -> Text:
        """The held-out part of the data, or all of it if nothing is held out."""
        plan = data.held_out_plan if len(data.held_out_plan) else data.train_plan
        eos = tokenizer.eos_token_id
        return cls(data.corpus, plan, eos if isinstance(eos, int) else None)

    @property
    def max_seq_length(self) -> int:
        """T, tokens of a row."""
        return self.plan.max_seq_length

    def batches(self, limit: int) -> Iterator[Batch]:
        """At most `limit` rows [1, T], spread evenly over the text."""
        return evaluation_batches(self.corpus, self.plan, 1, limit)

    def documents(self) -> list[np.ndarray]:
        """The tokens of every document, in order."""
        return documents_of_plan(self.corpus, self.plan)

    def names(self) -> list[str]:
        """The names of the documents, in the same order."""
        numbers: list[int] = np.unique(self.plan.pieces[:, 0]).tolist()
        return [self.corpus.names[i] for i in numbers]

    def long_documents(self, tokens: int, limit: int) -> list[np.ndarray]:
        """At most `limit` documents of more than `tokens` tokens, evenly spread over all of them.

        Raises:
          InputError: there is none.
        """
        documents = self.documents()
        long = [document for document in documents if len(document) > tokens]
        if not long:
            longest = max(map(len, documents))
            raise InputError(
                f"--max-seq-length {self.max_seq_length}: no document has more than {tokens:,} "
                f"tokens (the longest has {longest:,}); lower it, add longer text, or omit "
                "context from --tasks"
            )
        count = min(limit, len(long))
        return [long[i * len(long) // count] for i in range(count)]

    def haystack(self, tokens: int, rng: np.random.Generator) -> np.ndarray:
        """The given number of tokens of text, int32, starting with a document drawn by `rng`.

        Tokens that end documents are omitted.

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
                f"needles need {tokens:,} tokens of text, but the documents have {found:,}; add "
                "text, or lower --max-seq-length"
            )
        return np.concatenate(parts)[:tokens]


def documents_of_plan(corpus: TokenizedCorpus, plan: PackingPlan) -> list[np.ndarray]:
    """The tokens of every document that a plan has rows of, in order."""
    return [corpus.document(i) for i in np.unique(plan.pieces[:, 0])]
