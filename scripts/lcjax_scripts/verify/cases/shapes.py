"""The shape of a case: the sizes, mask and dtype of an operation.

This module imports only the standard library, because JAX's and torch's processes both import it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """A call of attention.

    `segments` is None, "packed" (ascending ids) or "arbitrary" (ids in any order).
    """

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    batch: int = 1
    keys: int | None = None
    """Number of keys; None means `tokens`."""
    causal: bool = True
    query_offset: int | None = None
    """The key index of query 0; None aligns the last query with the last key."""
    segments: str | None = None
    window: int | None = None
    """Window in tokens."""
    soft_cap: float | None = None
    sinks: bool = False
    """Whether every head has a sink."""
    dtype: str = "float32"
    """Of q, k and v."""
    sharpness: float = 1.0
    """The standard deviation of q, and about that of the scores."""
    lse_cotangent: bool = False
    """Whether the log-sum-exp has a cotangent, as when partial results are combined."""

    operation = "attention"

    @property
    def key_count(self) -> int:
        return self.tokens if self.keys is None else self.keys

    @property
    def offset(self) -> int:
        return self.key_count - self.tokens if self.query_offset is None else self.query_offset

    @property
    def gqa_ratio(self) -> int:
        return self.heads // self.kv_heads

    @property
    def work(self) -> int:
        """The approximate number of products, ignoring the mask."""
        return self.batch * self.heads * self.tokens * self.key_count * self.head_dim

    @property
    def masks(self) -> tuple[str, ...]:
        """The names of the call's features, by which a report is filtered."""
        terms = {
            "causal": self.causal,
            "full": not self.causal,
            "window": self.window is not None,
            f"{self.segments} segments": self.segments is not None,
            "unequal lengths": self.offset != 0 or self.key_count != self.tokens,
            "soft cap": self.soft_cap is not None,
            "sinks": self.sinks,
            "extreme logits": self.sharpness > 10,
        }
        return tuple(name for name, present in terms.items() if present)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The results that are judged. Each is a case."""
        return ("out", "lse", "dq", "dk", "dv", *(("dsinks",) if self.sinks else ()))


@dataclasses.dataclass(frozen=True)
class RopeShape:
    """A call of RoPE. `positions` is a key of POSITIONS."""

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    batch: int = 1
    pairs: int | None = None
    """Number of rotated pairs of elements; None means half of head_dim."""
    positions: str = "from 0"
    theta: float = 500_000.0
    attention_factor: float = 1.0
    """Factor of cosines and sines, as in YaRN."""
    dtype: str = "float32"

    operation = "rope"
    tensors = ("q", "k", "dq", "dk")

    @property
    def pair_count(self) -> int:
        return self.head_dim // 2 if self.pairs is None else self.pairs

    @property
    def gqa_ratio(self) -> int:
        return self.heads // self.kv_heads

    @property
    def work(self) -> int:
        return self.batch * self.heads * self.tokens * self.head_dim

    @property
    def masks(self) -> tuple[str, ...]:
        terms = {
            f"positions {self.positions}": True,
            "partial rotary": 2 * self.pair_count < self.head_dim,
            "attention factor": self.attention_factor != 1.0,
        }
        return tuple(name for name, present in terms.items() if present)


# The position of token t of n.
POSITIONS: dict[str, Callable[[int, int], int]] = {
    "from 0": lambda t, n: t,
    "packed": lambda t, n: t % (n // 3 + 1),
    "at 1M": lambda t, n: 1_000_000 + t - n // 2,
    "scattered": lambda t, n: (t * 6_700_417 + 999_999) % (2**31 - 1),
}


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """SmolLM2 with a LoRA adapter on all linear layers, on the first `tokens` tokens of a text."""

    tokens: int
    rank: int = 4
    dtype: str = "float32"

    operation = "model"
    heads, kv_heads, head_dim, gqa_ratio = 9, 3, 64, 3
    masks = ("causal",)
    tensors = ("logits", "LoRA gradients")
    weights = 134_515_008

    @property
    def work(self) -> int:
        return self.tokens * self.weights


@dataclasses.dataclass(frozen=True)
class LongShape:
    """Causal attention or RoPE, too long for a full reference. Only samples of rows are judged."""

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    of: str = "attention"
    """The operation: "attention" or "rope"."""
    window: int | None = None
    dtype: str = "bfloat16"

    operation = "long"
    rows = 64
    """Number of consecutive rows of a sample."""

    @property
    def gqa_ratio(self) -> int:
        return self.heads // self.kv_heads

    @property
    def work(self) -> int:
        turned = self.tokens * self.heads * self.head_dim
        return turned if self.of == "rope" else turned * (self.window or self.tokens)

    @property
    def masks(self) -> tuple[str, ...]:
        names = {"causal": self.of == "attention", "window": self.window is not None, "rope": self.of == "rope"}
        return tuple(name for name, present in names.items() if present)

    @property
    def tensors(self) -> tuple[str, ...]:
        return RopeShape.tensors if self.of == "rope" else ("out", "lse", "dq", "dk", "dv")

    @property
    def samples(self) -> tuple[int, ...]:
        """The first row of each sample.

        The samples are at both ends, in the middle, and around element 2^31 of q, if it exists.
        """
        boundary = 2**31 // (self.heads * self.head_dim)
        starts = (0, self.tokens // 2, boundary - self.rows // 2, self.tokens - self.rows)
        return tuple(sorted({start for start in starts if start <= self.tokens - self.rows}))


Shape = AttentionShape | RopeShape | ModelShape | LongShape
Shapes = dict[str, Shape]
