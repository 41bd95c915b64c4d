"""Scaling of the rotary frequencies `theta^(-2i / dimensions)`: kinds and parameters."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from lcjax.errors import InputError

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

LONGEST = 2**31 - 1
"""The most tokens of a sequence, since positions are int32."""

# The keys of config.json that each kind reads.
KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    ),
    "longrope": ("factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}  # fmt: skip
# What each kind does, in the words of the line that reports a choice.
EFFECTS = {
    "linear": "all frequencies are scaled equally",
    "dynamic": "the base grows with the length of each sequence",
    "yarn": "low frequencies are scaled, high ones unchanged, and attention is sharpened",
    "longrope": "low frequencies are scaled beyond the model's own factors",
    "llama3": "low frequencies are scaled, high ones unchanged",
}
_OLD_KINDS = {"su": "longrope"}  # in Phi-3's first files
_REMEDY = "correct it, or download the model again"
# Other allowed keys: read elsewhere, or informational.
_OTHER_KEYS = {"type", "rope_type", "rope_theta", "partial_rotary_factor", "finetuned"}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """One kind of scaling and its parameters, under the names of config.json.

    `lcjax.ops.rope` computes frequencies from them. Every kind reads only the fields that KEYS
    lists. `factor` is the ratio of the new context length to the original one.
    `original_max_position_embeddings` is the original context length in tokens. `dynamic` and
    `longrope` use different frequencies for long and short sequences. `short_factor` and
    `long_factor` have one divisor for each frequency.

    Raises:
      InputError: the kind is unknown, or a value is invalid for its kind.
    """

    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self):
        if self.rope_type not in KEYS:
            raise InputError(f"rope_type={self.rope_type!r} is not supported; use one of {', '.join(KEYS)}")
        if self.rope_type != "default" and not 1.0 <= self.factor < math.inf:
            raise InputError(f"rope factor={self.factor} must be at least 1.0")
        if self.original_max_position_embeddings <= 0:
            raise InputError(
                f"rope original_max_position_embeddings={self.original_max_position_embeddings} must be positive"
            )
        if self.rope_type == "llama3" and not 0.0 < self.low_freq_factor < self.high_freq_factor:
            raise InputError(
                f"rope low_freq_factor={self.low_freq_factor} must lie between 0 and "
                f"high_freq_factor={self.high_freq_factor}"
            )
        if self.rope_type == "yarn" and not 0.0 < self.beta_slow <= self.beta_fast:
            raise InputError(
                f"rope beta_slow={self.beta_slow} must lie between 0 and "
                f"beta_fast={self.beta_fast}: turns in the original context"
            )
        for name in ("short_factor", "long_factor") if self.rope_type == "longrope" else ():
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise InputError(f"longrope needs a list of positive numbers as {name}, one for each frequency")
        # Reset fields that the kind does not read, so that equal scalings compare and hash equal.
        for field in dataclasses.fields(self):
            if field.name not in ("rope_type", *KEYS[self.rope_type]):
                object.__setattr__(self, field.name, field.default)

    def to_dict(self) -> dict[str, Any] | None:
        """config.json's `rope_scaling`: the keys that the kind reads, None for `default`."""
        if self.rope_type == "default":
            return None
        values = {key: getattr(self, key) for key in KEYS[self.rope_type]}
        lists = {key: list(value) for key, value in values.items() if isinstance(value, tuple)}
        return {"rope_type": self.rope_type, **{k: v for k, v in values.items() if v is not None}, **lists}


UNSCALED = RopeScaling()


def attention_factor(config: LlamaConfig) -> float:
    """The factor of cosines and sines of a model; see `factor_of`."""
    return factor_of(config.rope_scaling)


def factor_of(scaling: RopeScaling) -> float:
    """The factor of cosines and sines; attention scores grow by its square.

    It is 1 for every kind except yarn and longrope.

    Source: YaRN, arXiv 2309.00071, section 3.4 (with DeepSeek's `mscale` and `mscale_all_dim`);
    LongRoPE, arXiv 2402.13753.
    """
    if scaling.rope_type not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1.0:
        return 1.0
    growth = math.log(scaling.factor)
    if scaling.rope_type == "longrope":
        return math.sqrt(1.0 + growth / math.log(scaling.original_max_position_embeddings))
    if scaling.mscale and scaling.mscale_all_dim:
        return (0.1 * scaling.mscale * growth + 1.0) / (0.1 * scaling.mscale_all_dim * growth + 1.0)
    return 0.1 * growth + 1.0


def is_beyond_original(config: LlamaConfig, tokens: int) -> bool:
    """Whether a sequence is so long that longrope's second frequencies apply to all its tokens."""
    scaling = config.rope_scaling
    return scaling.rope_type == "longrope" and tokens > scaling.original_max_position_embeddings


def read_rope(
    config: dict[str, Any], max_position_embeddings: int, source: str, default_theta: float = 10_000.0
) -> tuple[float, float, RopeScaling]:
    """(rope_theta, partial_rotary_factor, scaling) of a config.json, with transformers' defaults.

    `rope_scaling` (old) takes precedence over `rope_parameters` (new) if a file has both. The base,
    the rotated share and the original context may be inside either, or at the top level of the
    file; for the original context the top-level value takes precedence. Its default is
    `max_position_embeddings`.

    Raises:
      InputError: the kind is unknown, a key is missing or belongs to no kind, or a value has the
        wrong type.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise InputError(
            f"{source} has {rope!r} for RoPE's parameters; it must be an object with a rope_type: {_REMEDY}"
        )
    rope = {key: value for key, value in rope.items() if value is not None}
    theta = _number(_first(rope.get("rope_theta"), config.get("rope_theta"), default_theta), "rope_theta", source)
    if not theta > 1.0:
        raise InputError(f"{source} says rope_theta={theta}; it must be a number above 1: {_REMEDY}")
    share = _first(rope.get("partial_rotary_factor"), config.get("partial_rotary_factor"), 1.0)
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    kind = _OLD_KINDS.get(kind, kind)
    if unknown := sorted(rope.keys() - {key for keys in KEYS.values() for key in keys} - _OTHER_KEYS):
        raise InputError(
            f"{source} has {', '.join(unknown)} among RoPE's parameters, which no supported kind reads; {_REMEDY}"
        )
    if kind not in KEYS:
        raise InputError(f"{source} says rope_type={kind!r}, which is not supported; use one of {', '.join(KEYS)}")
    fields = {key: _value(rope[key], key, source) for key in KEYS.get(kind, ()) if key in rope}
    if "original_max_position_embeddings" in KEYS.get(kind, ()):
        name = "original_max_position_embeddings"
        original = config.get(name) or fields.get(name) or max_position_embeddings
        fields[name] = int(_number(original, name, source))
        if fields[name] < 2:  # its logarithm divides
            raise InputError(f"{source} says {name}={original!r}; it must be above 1: {_REMEDY}")
        # Of transformers' kinds, only these two have a default factor.
        if kind in ("yarn", "longrope"):
            fields.setdefault("factor", max_position_embeddings / fields["original_max_position_embeddings"])
    if "factor" in KEYS.get(kind, ()) and "factor" not in fields:
        raise InputError(f"{source} says rope_type={kind!r} without a factor; download the model again")
    try:
        scaling = RopeScaling(kind, **fields)
    except InputError as error:
        raise InputError(f"{source}: {error}; {_REMEDY}") from None
    return theta, _number(share, "partial_rotary_factor", source), scaling


def _first(*values: Any) -> Any:
    """The first value that is not None; zero counts as a value."""
    return next(value for value in values if value is not None)


def _value(value: Any, key: str, source: str) -> Any:
    if key == "truncate":
        return bool(value)
    if key in ("short_factor", "long_factor"):
        if not isinstance(value, list):
            raise InputError(f"{source} says {key}={value!r}; it must be a list of numbers: {_REMEDY}")
        return tuple(_number(x, key, source) for x in value)
    return _number(value, key, source)


def _number(value: Any, key: str, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{source} says {key}={value!r}; it must be a number: {_REMEDY}")
    return float(value)
