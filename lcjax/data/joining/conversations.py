"""Names the conversations that are longer than a window: their later parts lose the start."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lcjax.data.tokens import TokenizedSources

_LISTED = 3

_logger = logging.getLogger(__name__)


def warn_of_long_conversations(sources: TokenizedSources, max_seq_length: int) -> None:
    """Logs how many conversations and records with a prompt are cut, and the longest of them.

    Args:
      sources: encoded documents.
      max_seq_length: T, the tokens of a window.
    """
    lengths = sources.corpus.lengths
    long = np.flatnonzero(~sources.is_text & (lengths > max_seq_length))
    if len(long):
        longest = long[np.argsort(-lengths[long], kind="stable")][:_LISTED].tolist()
        named = ", ".join(f"{sources.corpus.names[number]} ({lengths[number]:,})" for number in longest)
        _logger.warning(
            "%s of %s conversations and completions are longer than %s tokens, and are cut, so their later turns do "
            "not see the first; the longest: %s; --max-seq-length %d cuts none",
            f"{len(long):,}", f"{np.count_nonzero(~sources.is_text):,}", f"{max_seq_length:,}", named,
            lengths[longest[0]],
        )  # fmt: skip
