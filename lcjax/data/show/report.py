"""What is printed of a row of training, and of the data as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

from lcjax.data.load import Data
from lcjax.data.packing import Piece
from lcjax.data.show.texts import marked, shortened, spans, visible

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

LEARNED = "green"


def row_lines(
    data: Data, row: int, number: int, tokenizer: PreTrainedTokenizerFast, most_tokens: int, *, color: bool
) -> Iterator[Text]:
    """A row of the training plan: what is in it, then each document's text.

    Args:
      row: its index in the plan.
      number: of the row in the order of training, from 1.
      most_tokens: the most tokens of a document to show; 0 shows all.
      color: whether learned text is green; otherwise it is between {+ and +}.
    """
    plan = data.train_plan
    pieces = plan.row(row)
    filled = sum(piece.stop - piece.start for piece in pieces)
    documents = "1 document" if len(pieces) == 1 else f"{len(pieces):,} documents packed"
    yield Text(
        f"row {number:,} of {len(plan):,}: {filled:,} tokens of {documents}, {plan.max_seq_length - filled:,} of padding",
        "bold" if color else "",
    )
    for piece in pieces:
        learned = learned_of(data, piece)
        length = int(data.corpus.lengths[piece.document])
        part = (
            ""
            if piece.stop - piece.start == length
            else f", cut: {piece.start + 1:,} to {piece.stop:,} of {length:,} tokens"
        )
        name = visible(data.corpus.names[piece.document], stay="")
        yield Text(
            f"--- {name}{part}: {piece.stop - piece.start:,} tokens, {int(learned.sum()):,} learned",
            "dim" if color else "",
        )
        yield _text(data, piece, learned, tokenizer, most_tokens, color=color)


def learned_of(data: Data, piece: Piece) -> np.ndarray:
    """Which tokens of a piece the model learns to predict, [n] bool.

    A document's first token has no token before it and is not predicted.
    """
    corpus = data.corpus
    learned = np.ones(piece.stop - piece.start, dtype=bool)
    if corpus.learned is not None:
        start = int(corpus.offsets[piece.document])
        learned = np.array(corpus.learned[start + piece.start : start + piece.stop])
    if piece.start == 0 and len(learned):
        learned[0] = False
    return learned


def _text(
    data: Data,
    piece: Piece,
    learned: np.ndarray,
    tokenizer: PreTrainedTokenizerFast,
    most_tokens: int,
    *,
    color: bool,
) -> Text:
    ids = data.corpus.document(piece.document)[piece.start : piece.stop]
    first, last = shortened(ids, most_tokens)
    shown = Text()
    for chosen in (slice(0, first), slice(len(ids) - last, len(ids))) if last else (slice(0, first),):
        if chosen.start:
            shown.append(f"\n[... {len(ids) - first - last:,} tokens ...]\n", "dim" if color else "")
        parts = spans(ids[chosen], learned[chosen], tokenizer)
        for part, plain in zip(parts, marked(parts), strict=True):
            if color:
                shown.append(visible(part.text), LEARNED if part.is_learned else "")
            else:
                shown.append(plain)
    return shown


def summary_lines(data: Data, skipped: Sequence[str]) -> Iterator[str]:
    """What was packed, cut and skipped in the whole data.

    Args:
      skipped: the warnings about it.
    """
    plan = data.train_plan
    yield visible(data.summary(), stay="")
    packed = plan.packed_rows
    in_packed = int(sum(plan.row_offsets[packed + 1] - plan.row_offsets[packed]))
    yield f"packed: {len(packed):,} of {len(plan):,} rows have several documents, {in_packed:,} in all"
    yield (
        f"cut: {_number_cut(data):,} of {data.num_documents:,} documents are longer than "
        f"{plan.max_seq_length:,} tokens, and continue in other rows"
    )
    unlearned = plan.num_unlearned + data.held_out_plan.num_unlearned
    yield f"omitted: {unlearned:,} windows without a token to learn"
    for line in skipped:
        yield visible(line, stay="")
    if not skipped:
        yield "skipped: nothing"


def _number_cut(data: Data) -> int:
    """The documents of which a part is longer than a row; a held-out end belongs to its text."""
    is_cut = data.corpus.lengths > data.train_plan.max_seq_length
    if data.ends:
        ends = {f"{name} (its end)" for name in data.ends}
        at = np.flatnonzero([name in ends for name in data.corpus.names])
        is_cut[at - 1] |= is_cut[at]
        is_cut[at] = False
    return int(np.count_nonzero(is_cut))
