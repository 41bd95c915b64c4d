"""The one table of named shapes, for tests, benchmarks and the parity harness: awkward on purpose.

Lengths lie on, just beside and far from every kernel's blocks; head counts give 1, 3, 4 and 8 query heads a key/value head.
Standard library only: the processes of JAX and of torch both read it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")
HEAD_DIMS = (64, 80, 96, 128, 256)
GQA_RATIOS = (1, 3, 4, 8)
LENGTHS = (1, 17, 127, 128, 1000, 4097)


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """A call of attention. `segments` is None, "packed" (ascending ids) or "arbitrary" (ids in any order)."""

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    batch: int = 1
    keys: int | None = None
    """Equal to `tokens` when None."""
    causal: bool = True
    query_offset: int | None = None
    """The key index of query 0; the last query stands at the last key when None."""
    segments: str | None = None
    window: int | None = None
    """Tokens."""
    soft_cap: float | None = None
    sinks: bool = False
    """Whether every head has a sink."""
    dtype: str = "float32"
    """Of q, k and v."""
    sharpness: float = 1.0
    """The standard deviation of q; scores are about as large."""
    lse_cotangent: bool = False
    """Whether the log-sum-exp has a cotangent too, as where partial results are combined."""

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
        """Of every shape: about how many products it takes, if no mask saves any."""
        return self.batch * self.heads * self.tokens * self.key_count * self.head_dim

    @property
    def masks(self) -> tuple[str, ...]:
        """What is special about it, in words: the terms by which a report is filtered."""
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
        """What is judged, a case each."""
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
    """Pairs of dimensions that turn; half of head_dim when None."""
    positions: str = "from 0"
    theta: float = 500_000.0
    attention_factor: float = 1.0
    """What cosines and sines are multiplied by, as yarn has it."""
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


# Of the t-th of n tokens. float32 holds every integer up to 2^24.
POSITIONS: dict[str, Callable[[int, int], int]] = {
    "from 0": lambda t, n: t,
    "packed": lambda t, n: t % (n // 3 + 1),
    "at 1M": lambda t, n: 1_000_000 + t - n // 2,
    "scattered": lambda t, n: (t * 6_700_417 + 999_999) % 2**24,
}


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """SmolLM2 with a LoRA adapter on all seven linear maps, on the first `tokens` tokens of a text."""

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
    """Causal attention, or RoPE from position 0, over more tokens than a reference can hold: judged on some of its rows."""

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    of: str = "attention"
    """Or "rope"."""
    window: int | None = None
    dtype: str = "bfloat16"

    operation = "long"
    rows = 64
    """Consecutive rows of a sample."""

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
        """The first row of each sample: at both ends, in the middle, and across the 2^31st element of q, where it has one."""
        boundary = 2**31 // (self.heads * self.head_dim)
        starts = (0, self.tokens // 2, boundary - self.rows // 2, self.tokens - self.rows)
        return tuple(sorted({start for start in starts if start <= self.tokens - self.rows}))


Shape = AttentionShape | RopeShape | ModelShape | LongShape
Shapes = dict[str, Shape]

LARGEST_REPEATED = 2**23
"""Elements of a tensor, to which a shape may be repeated."""


def with_rows(shape: Shape, rows: int, largest_heads: int | None = None) -> Shape:
    """Attention's shape with a batch so large that it has about `rows` query rows, all heads counted; others as they are.

    No batch grows beyond `largest_heads`, those of all its sequences: interpreted, a program takes as long for one row as for
    sixteen, and every head has at least one.

    The largest error of a few hundred numbers is luck, the implementation's and the yardstick's: of many it is a property.
    """
    if not isinstance(shape, AttentionShape):
        return shape
    largest = shape.head_dim * max(shape.tokens * shape.heads, shape.key_count * shape.kv_heads)
    wanted = -(-rows // (shape.tokens * shape.heads))
    batch = min(wanted, LARGEST_REPEATED // largest, largest_heads // shape.heads if largest_heads else wanted)
    return dataclasses.replace(shape, batch=max(shape.batch, batch))


ATTENTION = {
    "one query": AttentionShape(1, 3, 1, 16, batch=2, keys=17),
    "gqa 1": AttentionShape(17, 2, 2, 20, batch=2),
    "gqa 3": AttentionShape(127, 6, 2, 64),
    "gqa 4": AttentionShape(512, 4, 1, 16),
    "gqa 8": AttentionShape(513, 8, 1, 80),
    "full": AttentionShape(513, 3, 1, 64, causal=False),
    "many blocks": AttentionShape(1025, 2, 1, 128),
    "packed": AttentionShape(1000, 3, 1, 64, batch=2, segments="packed"),
    "packed full": AttentionShape(1025, 2, 2, 20, causal=False, segments="packed"),
    "arbitrary segments": AttentionShape(600, 4, 1, 16, batch=2, segments="arbitrary"),
    "arbitrary segments full": AttentionShape(127, 3, 3, 20, keys=513, causal=False, segments="arbitrary"),
    "decoding": AttentionShape(17, 8, 1, 64, keys=1000),
    "queries from the start": AttentionShape(127, 4, 1, 20, keys=600, query_offset=0),
    "queries in the middle": AttentionShape(513, 2, 1, 16, keys=1025, query_offset=300),
    "fewer keys": AttentionShape(600, 3, 1, 16, keys=127, batch=2),
    "fewer keys, later queries": AttentionShape(520, 2, 1, 16, keys=40, query_offset=-3),
    "after all keys": AttentionShape(17, 2, 1, 16, keys=520, query_offset=100_000),
}

# What has a feature beyond the mask and the segments of ATTENTION, or several at once as real models have them.
ATTENTION_FEATURES = {
    "gpt-oss": AttentionShape(257, 8, 1, 64, window=128, sinks=True, segments="packed", dtype="bfloat16"),
    "gemma 2": AttentionShape(257, 4, 2, 256, window=100, soft_cap=50.0, sharpness=50.0, dtype="bfloat16"),
    "sinks of blind queries": AttentionShape(150, 8, 2, 20, keys=40, sinks=True, lse_cotangent=True),
    "everything": AttentionShape(
        45, 12, 4, 80, batch=2, keys=60, query_offset=15, segments="arbitrary", window=25, soft_cap=2.0, sinks=True,
        lse_cotangent=True,
    ),
    "blind queries": AttentionShape(150, 2, 1, 128, keys=40, dtype="bfloat16"),
    "window of two": AttentionShape(127, 2, 1, 64, window=2, dtype="bfloat16"),
    "long window": AttentionShape(4097, 1, 1, 64, window=129, dtype="bfloat16"),
    "long packed": AttentionShape(4097, 1, 1, 128, segments="packed", window=400, dtype="float16"),
    "offset beyond int32": AttentionShape(150, 2, 1, 32, keys=100, query_offset=2**31 + 50),
    "extreme logits": AttentionShape(300, 3, 1, 64, sharpness=50.0),
    "extreme logits, bfloat16": AttentionShape(300, 3, 1, 64, sharpness=50.0, dtype="bfloat16"),
    "extreme logits, float16": AttentionShape(300, 3, 1, 64, sharpness=50.0, dtype="float16"),
}  # fmt: skip

# The mask axis of the matrix: the fields that make it, for a number of keys.
MASKS: dict[str, Callable[[int], dict[str, Any]]] = {
    "causal": lambda keys: {},
    "full": lambda keys: {"causal": False},
    "window": lambda keys: {"window": keys // 16 + 2},
    "window both ways": lambda keys: {"window": keys // 16 + 2, "causal": False},
    "packed": lambda keys: {"segments": "packed"},
    "arbitrary segments": lambda keys: {"segments": "arbitrary"},
    "unequal lengths": lambda keys: {"keys": keys + 333, "query_offset": 100, "lse_cotangent": True},
    "sinks": lambda keys: {"sinks": True},
    "soft cap": lambda keys: {"soft_cap": 2.0, "lse_cotangent": True},
}

# What meets a mask at 4,097 tokens: dtype, head_dim, group. Every value of each, what takes longest with what takes least:
# interpreted, float32 at head_dim 256 has 32 times the tiles of bfloat16 at 128, and a mask of all keys 16 times a window's. Sinks
# have the most heads: each has one gradient, and the error of few numbers is luck.
LONGEST = {
    "causal": ("float32", 64, 1),
    "full": ("bfloat16", 128, 1),
    "window": ("bfloat16", 256, 1),
    "window both ways": ("bfloat16", 96, 4),
    "packed": ("float16", 256, 3),
    "arbitrary segments": ("bfloat16", 64, 1),
    "unequal lengths": ("float16", 128, 1),
    "sinks": ("float16", 64, 8),
    "soft cap": ("float16", 80, 1),
}


def default_matrix() -> Shapes:
    """The named shapes, and of the whole product so many that every two values of two different axes meet (but at 4,097 tokens,
    which the named shapes have)."""
    dtypes = itertools.cycle(("bfloat16", "float16", "float32"))
    shapes: Shapes = {name: dataclasses.replace(shape, dtype=next(dtypes)) for name, shape in ATTENTION.items()}
    shapes |= ATTENTION_FEATURES
    for i, mask in enumerate(MASKS):
        for j, tokens in enumerate(LENGTHS[:-1]):
            axes = DTYPES[(i + 2 * j + 2) % 3], HEAD_DIMS[(3 * i + j + 3) % 5], GQA_RATIOS[(i + j) % 4], tokens, mask
            shapes |= _attention(*axes)
    shapes["rope x1000"] = RopeShape(1000, 3, 1, 64, positions="at 1M")
    shapes["rope yarn"] = RopeShape(127, 6, 2, 64, pairs=24, positions="at 1M", attention_factor=1.2, dtype="bfloat16")
    rotations = itertools.product((False, True), DTYPES, (20, *HEAD_DIMS))
    for n, (partial, dtype, head_dim) in enumerate(rotations):
        gqa_ratio, tokens = GQA_RATIOS[(n + n // 5) % 4], LENGTHS[(3 * n + n // 18) % 4]
        shapes |= _rope(dtype, head_dim, gqa_ratio, tokens, tuple(POSITIONS)[(n + n // 12) % 4], partial)
    shapes["SmolLM2"] = ModelShape(128)
    return shapes


def full_matrix() -> Shapes:
    """The default matrix, and of the whole product so many that every three values of three different axes meet; with 4,097
    tokens LONGEST alone.

    Of the product's 6,120 shapes that is a thirteenth, in which bugs are found that it takes three circumstances to show, say
    float16, a head_dim of 80 and a window. Interpreted, the product would take a day.
    """
    shapes = default_matrix()
    *lengths, longest = LENGTHS
    for axes in covering(3, DTYPES, HEAD_DIMS, GQA_RATIOS, lengths, tuple(MASKS)):
        shapes |= _attention(*axes)
    for mask, (dtype, head_dim, gqa_ratio) in LONGEST.items():
        shapes |= _attention(dtype, head_dim, gqa_ratio, longest, mask)
    for axes in covering(3, DTYPES, HEAD_DIMS, GQA_RATIOS, LENGTHS, tuple(POSITIONS), (False, True)):
        shapes |= _rope(*axes)
    return shapes


def covering(strength: int, *axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows of the product of axes in which any `strength` values of as many different axes meet; few, and always the same.

    Greedy: first all rows that bring nothing but new meetings, in an order that mixes the axes, then those that bring one less.
    Source: Cohen et al., The AETG System, IEEE Transactions on Software Engineering 23(7), 1997.
    """
    product = list(itertools.product(*axes))
    random.Random(0).shuffle(product)
    met: set[tuple] = set()
    rows = []
    for wanted in range(math.comb(len(axes), strength), 0, -1):
        for row in product:
            new = set(itertools.combinations(enumerate(row), strength)) - met
            if len(new) >= wanted:
                rows.append(row)
                met |= new
    return rows


def long_matrix() -> Shapes:
    """A million tokens, and just more than 2^31 elements of queries, keys, values and their gradients; for a GPU of 80 GB."""
    beyond = 2**31 // (16 * 128) + 512
    return {
        "attention, 1M tokens": LongShape(2**20, 2, 1, 128),
        "attention beyond 2^31 elements": LongShape(beyond, 16, 16, 128, window=4096),
        "rope beyond 2^31 elements": LongShape(beyond, 16, 16, 128, of="rope"),
    }


def _attention(dtype: str, head_dim: int, gqa_ratio: int, tokens: int, mask: str) -> Shapes:
    # A single query among many keys is what decoding has; on its own its gradients would be 0 but for rounding.
    one_query: dict[str, Any] = {"keys": 130, "batch": 16}
    fields = one_query | MASKS[mask](130) if tokens == 1 else MASKS[mask](tokens)
    kv_heads = 1 if tokens >= 1000 or gqa_ratio == 8 else 2
    if "sinks" in fields and tokens < 1000:
        # The error of few sinks says little, and of sums of few numbers less.
        kv_heads = -(-(64 if tokens == 1 else 8) // gqa_ratio)
        fields |= {"batch": 2} if tokens == 1 else {}
    shape = AttentionShape(tokens, gqa_ratio * kv_heads, kv_heads, head_dim, dtype=dtype, **fields)
    return {f"attention {dtype} d{head_dim} gqa{gqa_ratio} x{tokens} {mask}": shape}


def _rope(dtype: str, head_dim: int, gqa_ratio: int, tokens: int, positions: str, partial: bool) -> Shapes:
    kv_heads = 2 if gqa_ratio < 8 else 1
    pairs = head_dim // 8 * 3 if partial else None
    shape = RopeShape(
        tokens, gqa_ratio * kv_heads, kv_heads, head_dim, 1 if tokens > 128 else 2, pairs, positions, dtype=dtype
    )
    partly = " partial" if partial else ""
    return {f"rope {dtype} d{head_dim} gqa{gqa_ratio} x{tokens} {positions}{partly}": shape}
