"""The flags of `lcjax tokens`."""

from __future__ import annotations

import dataclasses

from lcjax.data.arguments import CorpusArguments


@dataclasses.dataclass(frozen=True)
class TokenArguments(CorpusArguments):
    """Count the tokens of the data, document by document, and how they fill windows of a length.

    Examples:

      lcjax tokens docs/ rows.jsonl --model DIR_OR_HUB_ID --max-seq-length 8192
      lcjax tokens repositories/ --documents repository --plot lengths.png
    """
