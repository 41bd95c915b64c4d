"""Settings of sampling, without JAX; `lcjax.generate.next_token` applies them."""

from __future__ import annotations

import dataclasses

from lcjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Greedy decoding, or sampling with a temperature and a nucleus (top-p).

    Attributes:
      temperature: 0 selects the most likely token; otherwise logits are divided by it before
        sampling.
      top_p: sample from the smallest set of tokens whose probabilities sum to at least this much.

    Raises:
      InputError: a value is out of range.

    Source of top_p: Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv
    1904.09751.
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"--temperature {self.temperature} is out of range; it must be 0 (greedy) or positive")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p {self.top_p} is out of range; it must be above 0 and at most 1")
