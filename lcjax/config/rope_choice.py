"""Chooses RoPE for sequences longer than the trained context, by length or by user choice.

docs/rope.md has the reasons and the measurements.
"""

from __future__ import annotations

import dataclasses
import numbers

from lcjax.config import LlamaConfig, RopeScaling
from lcjax.config.rope import EFFECTS, LONGEST, attention_factor
from lcjax.errors import InputError, unknown

CHOICES = ("auto", "none", "base", "linear", "dynamic", "yarn", "llama3")


def choose_rope(
    config: LlamaConfig, max_seq_length: int, scaling: str = "auto", theta: float | None = None
) -> tuple[LlamaConfig, str | None]:
    """The config with the RoPE for sequences of `max_seq_length` tokens, and a line about it.

    Args:
      config: the model as it was trained.
      max_seq_length: tokens.
      scaling: "auto" leaves RoPE unchanged up to the model's context; above, it extends the model's
        own scaling, or uses yarn if there is none. "none" leaves RoPE unchanged at any length,
        "base" only raises the base, and a kind of config.json selects that kind.
      theta: the base; with "auto" it is the only change.

    Returns:
      (config, line): if RoPE changes, `max_position_embeddings` becomes `max_seq_length` as well.
      The line is None if nothing had to be chosen.

    Raises:
      InputError: the choice is unknown, a base or length is out of range, or the context needs no
        scaling.
    """
    check_choice(scaling, theta)
    if not isinstance(max_seq_length, numbers.Integral) or not 1 <= max_seq_length <= LONGEST:
        raise InputError(f"max_seq_length={max_seq_length!r} must be a positive number of tokens, at most {LONGEST:,}")
    if scaling == "auto" and theta is not None:
        scaling = "base"
    if scaling == "auto" and max_seq_length <= _reach(config):
        return config, None
    trained, own = config, config.rope_scaling.rope_type
    kind = (own if own != "default" else _usual_kind(config)) if scaling == "auto" else scaling
    _require_known(kind, config)
    if kind == "base":
        theta = theta or _larger_base(config, max_seq_length)
    if theta is not None:
        config = dataclasses.replace(config, rope_theta=theta)
    if kind in ("none", "base"):
        context = _context(config.rope_scaling, config.max_position_embeddings, max_seq_length)
        chosen = dataclasses.replace(config, max_position_embeddings=context)
    else:
        chosen = _extended(config, max_seq_length) if kind == own else _scaled(config, max_seq_length, kind)
    return chosen, _line(trained, chosen, max_seq_length, by_user=scaling != "auto")


def _require_known(kind: str, config: LlamaConfig) -> None:
    kinds = config.family.rope_kinds
    if kinds is not None and kind not in ("none", "base", *kinds):
        others = [name for name in CHOICES if name in ("auto", "none", "base", *kinds)]
        raise InputError(
            f"rope_scaling={kind!r} has no meaning in a {config.model_type} model; use one of {', '.join(others)}"
        )


def _usual_kind(config: LlamaConfig) -> str:
    """How a model without a scaling is extended."""
    kinds = config.family.rope_kinds
    return "yarn" if kinds is None or "yarn" in kinds else "base"


def check_choice(scaling: str, theta: float | None) -> None:
    """Raises InputError for a choice that is invalid for every model."""
    if scaling not in CHOICES:
        raise InputError(unknown("rope_scaling", scaling, CHOICES))
    if theta is not None and not 1.0 < theta < 1e15:
        raise InputError(f"rope_theta={theta} is out of range; it must be above 1, such as 500000")
    if scaling == "none" and theta is not None:
        raise InputError(f"rope_scaling='none' and rope_theta={theta} contradict each other; give one of them")


def describe_rope(config: LlamaConfig) -> str:
    """A description of a config's RoPE: "yarn, factor 4, base 100,000, attention factor 1.139"."""
    scaling = config.rope_scaling
    words = [scaling.rope_type]
    if scaling.rope_type != "default":
        words.append(f"factor {scaling.factor:g}")
    words.append(f"base {config.rope_theta:,.0f}")
    if (attention := attention_factor(config)) != 1.0:
        words.append(f"attention factor {attention:.4g}")
    return ", ".join(words)


def _larger_base(config: LlamaConfig, tokens: int) -> float:
    """The base at which the lowest frequency turns as far in `tokens` as before in the context.

    Source: "NTK-aware" scaling, bloc97 (2023); YaRN, arXiv 2309.00071, section 3.1.
    """
    _require_beyond("base", config.max_position_embeddings, tokens)
    ratio, dimensions = tokens / config.max_position_embeddings, config.rotary_dim
    return float(round(config.rope_theta * ratio ** (dimensions / max(1, dimensions - 2))))


def _extended(config: LlamaConfig, tokens: int) -> LlamaConfig:
    """Extends a scaled model, in its own scheme, to sequences longer than its context."""
    scaling, ratio = config.rope_scaling, tokens / _reach(config)
    # dynamic adapts to the length by itself.
    if ratio <= 1.0 or scaling.rope_type == "dynamic":
        return config
    changes: dict = {"factor": scaling.factor * ratio}
    if scaling.rope_type == "longrope":
        # The model's factors were found by search. Beyond them, scale each frequency as a larger
        # base would.
        steps = [2 * i / max(1, config.rotary_dim - 2) for i in range(len(scaling.long_factor))]
        pairs = zip(scaling.long_factor, steps, strict=True)
        changes["long_factor"] = tuple(factor * ratio**step for factor, step in pairs)
    return dataclasses.replace(
        config, rope_scaling=dataclasses.replace(scaling, **changes), max_position_embeddings=tokens
    )


def _scaled(config: LlamaConfig, tokens: int, kind: str) -> LlamaConfig:
    """The model with a scaling of that kind instead of its own."""
    context = _unscaled_context(config)
    _require_beyond(kind, context, tokens)
    scaling = RopeScaling(kind, factor=tokens / context, original_max_position_embeddings=context)
    return dataclasses.replace(config, rope_scaling=scaling, max_position_embeddings=_context(scaling, context, tokens))


def _require_beyond(scaling: str, context: int, tokens: int) -> None:
    if tokens <= context:
        raise InputError(
            f"rope_scaling={scaling!r} stretches positions beyond {context:,} tokens, but "
            f"max_seq_length={tokens:,} is not longer; raise it, or omit rope_scaling={scaling!r}"
        )


def _reach(config: LlamaConfig) -> int:
    """The usable context in tokens: the config's, or the longer one that its yarn reaches."""
    scaling, context = config.rope_scaling, config.max_position_embeddings
    stretched = round(scaling.original_max_position_embeddings * scaling.factor)
    return max(context, stretched) if scaling.rope_type == "yarn" else context


def _unscaled_context(config: LlamaConfig) -> int:
    """The context, in tokens, of the frequencies without their scaling."""
    scaling = config.rope_scaling
    if scaling.rope_type in ("yarn", "longrope", "llama3"):
        return scaling.original_max_position_embeddings
    factor = scaling.factor if scaling.rope_type == "linear" else 1.0
    return round(config.max_position_embeddings / factor)


def _context(scaling: RopeScaling, context: int, tokens: int) -> int:
    # dynamic starts from the config's own context, so that must stay the trained one.
    return context if scaling.rope_type == "dynamic" else max(context, tokens)


def _line(before: LlamaConfig, after: LlamaConfig, tokens: int, *, by_user: bool) -> str:
    kind = after.rope_scaling.rope_type
    if after.rope_scaling != before.rope_scaling or kind == "dynamic":
        effect = EFFECTS[kind]
    else:
        effect = (
            "only the base changes" if after.rope_theta != before.rope_theta else "unchanged, for longer sequences too"
        )
    why = "as requested" if by_user else "rope_scaling and rope_theta override this"
    return (
        f"max_seq_length={tokens:,} with a model trained for {before.max_position_embeddings:,} "
        f"tokens; RoPE is now {describe_rope(after)}: {effect} ({why})"
    )
