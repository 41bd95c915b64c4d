"""The flags of `lcjax audit`."""

from __future__ import annotations

import dataclasses

from lcjax.data.arguments import CorpusArguments
from lcjax.errors import InputError, flag


@dataclasses.dataclass(frozen=True)
class AuditArguments(CorpusArguments):
    """Check whether the data has anything long-range to learn, and what to change if not.

    Counts how much text repeats after 1K, 2K, ... tokens and no nearer, compared with chance
    (docs/data.md has the equation), long documents, packing and near-duplicates. Examples:

      lcjax audit books/ --max-seq-length 131072
      lcjax audit repos/ --documents repository --max-seq-length 65536 --plot reuse.png
    """

    per_device_train_batch_size: int = 1
    """As in lcjax.train: sequences on the device at once."""
    gradient_accumulation_steps: int = 1
    """As in lcjax.train: batches whose gradients make one step."""
    max_tokens: int = 20_000_000
    """Tokens in which reuse and near-duplicates are counted; documents are drawn at random.
    Each token needs about 100 bytes of memory.
    """

    def __post_init__(self):
        super().__post_init__()
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{flag(name)} {getattr(self, name)} is out of range; it must be at least 1")
