"""Converts a plan's rows to the arrays of the loss; T = max_seq_length."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from lcjax.data.packing import PackingPlan
from lcjax.data.tokens import TokenizedCorpus

# A label that is not a token: the loss ignores the position (convention of PyTorch and Hugging
# Face).
IGNORE = -100
# The token at padding. Any valid id is fine, because no token and no label sees it.
PAD_ID = 0
# The index of no row; it stands for a row of padding only.
NO_ROW = -1


class Batch(TypedDict):
    """The result of `lay_out`: int32 arrays of shape [..., T], `rows` of shape [...]."""

    tokens: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    rows: np.ndarray


def lay_out(corpus: TokenizedCorpus, plan: PackingPlan, rows: np.ndarray) -> Batch:
    """Fills arrays with the given rows of a plan.

    - `tokens`: the pieces of the row one after another, then PAD_ID.
    - `labels`: the next token of the same document, even if it is in the next window. So only the
      first token of a document is never predicted. IGNORE at a document's last token, at padding,
      and if the next token is not learned.
    - `positions`: 0, 1, 2, ..., starting at 0 in each piece and in the padding.
    - `segment_ids`: 1, 2, 3, ... by piece, 0 for padding; tokens of different segments must not see
      each other.
    - `rows`: the argument.

    Args:
      rows: [...] indices of rows of the plan; NO_ROW gives a row of padding.
    """
    rows = np.asarray(rows, dtype=np.int32)
    shape = (*rows.shape, plan.max_seq_length)
    batch = Batch(
        tokens=np.full(shape, PAD_ID, dtype=np.int32),
        labels=np.full(shape, IGNORE, dtype=np.int32),
        positions=np.empty(shape, dtype=np.int32),
        segment_ids=np.zeros(shape, dtype=np.int32),
        rows=rows,
    )
    for index in np.ndindex(rows.shape):
        _fill_row(batch, index, corpus, plan)
    return batch


def is_learned(corpus: TokenizedCorpus, pieces: np.ndarray) -> np.ndarray:
    """Whether `lay_out` gives any token of a piece a label, [P] bool for pieces [P, 3].

    A window without labels takes the time of a row and changes nothing. Such windows come from a
    prompt that is longer than a row, or from a document's last token alone in its window.
    """
    documents, starts, stops = pieces.T
    lengths = corpus.lengths[documents]
    if corpus.learned is None:
        return starts + 1 < np.minimum(stops + 1, lengths)
    begins = corpus.offsets[documents] + starts + 1
    ends = corpus.offsets[documents] + np.minimum(stops + 1, lengths)
    ranges = zip(begins.tolist(), ends.tolist(), strict=True)
    # One view at a time: the mask may be long, and may be on disk.
    return np.fromiter((corpus.learned[begin:end].any() for begin, end in ranges), dtype=bool, count=len(pieces))


def _fill_row(batch: Batch, index: tuple[int, ...], corpus: TokenizedCorpus, plan: PackingPlan) -> None:
    tokens_T, labels_T = batch["tokens"][index], batch["labels"][index]
    positions_T, segment_ids_T = batch["positions"][index], batch["segment_ids"][index]
    row = int(batch["rows"][index])
    count_T = np.arange(plan.max_seq_length, dtype=np.int32)
    at = 0
    for segment, (document, start, stop) in enumerate(() if row == NO_ROW else plan.row(row), start=1):
        ids, length = corpus.document(document), stop - start
        tokens_T[at : at + length] = ids[start:stop]
        following = ids[start + 1 : stop + 1]  # one shorter if the piece ends the document
        if corpus.learned is not None:
            learned = corpus.learned[corpus.offsets[document] :][start + 1 : stop + 1][: len(following)]
            following = np.where(learned, following, IGNORE)
        labels_T[at : at + len(following)] = following
        positions_T[at : at + length] = count_T[:length]
        segment_ids_T[at : at + length] = segment
        at += length
    positions_T[at:] = count_T[: plan.max_seq_length - at]


def documents_of(batch: Batch, corpus: TokenizedCorpus, plan: PackingPlan) -> list[str]:
    """The names of the documents in a batch of this plan, each once, in order.

    They are for messages about a bad step.
    """
    rows = (int(row) for row in batch["rows"].flat if row != NO_ROW)
    documents = dict.fromkeys(piece.document for row in rows for piece in plan.row(row))
    return [corpus.names[document] for document in documents]
