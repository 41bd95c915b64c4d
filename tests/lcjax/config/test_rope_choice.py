"""The choice of RoPE for a length: the defaults, the user's overrides, and their effects."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lcjax.config import LlamaConfig, RopeScaling, rope
from lcjax.config.presets import PRESETS
from lcjax.config.rope import attention_factor
from lcjax.config.rope_choice import CHOICES, choose_rope, describe_rope
from lcjax.errors import InputError
from lcjax.ops.rope import inverse_frequencies
from lcjax.ops.rope.report import Waves, report
from tests.support.rope_kinds import KINDS, ours

SMOLLM2 = PRESETS["smollm2-135m"]
LLAMA_3_1 = PRESETS["llama-3.1-8b"]


def config_of(kind: str) -> LlamaConfig:
    """Returns the config of SmolLM2 as if trained with a kind of RoPE, with a context of 32,768."""
    if kind == "default":
        return SMOLLM2
    own = {"factor": 4.0, "original_max_position_embeddings": 8192}
    scaling = ours("longrope").rope_scaling if kind == "longrope" else RopeScaling(kind, **own)
    return dataclasses.replace(SMOLLM2, rope_scaling=scaling, max_position_embeddings=32_768)


def test_within_the_context_nothing_changes():
    for kind in ("default", "linear", "dynamic", "yarn", "longrope", "llama3"):
        config = config_of(kind)
        for scaling in ("auto", "none"):
            assert choose_rope(config, config.max_position_embeddings, scaling)[0] == config
    assert choose_rope(SMOLLM2, 8192) == (SMOLLM2, None)


def test_a_model_without_scaling_gets_yarn():
    config, line = choose_rope(SMOLLM2, 65_536)
    assert config == dataclasses.replace(
        SMOLLM2,
        max_position_embeddings=65_536,
        rope_scaling=RopeScaling("yarn", 8.0, original_max_position_embeddings=8192),
    )
    assert line == (
        "max_seq_length=65,536 with a model trained for 8,192 tokens; RoPE is now yarn, factor 8, base 100,000, attention factor "
        "1.208: low frequencies are scaled, high ones unchanged, and attention is sharpened "
        "(rope_scaling and rope_theta override this)"
    )


def test_llama3_models_keep_theirs_and_extend_it():
    config, line = choose_rope(LLAMA_3_1, 4 * 131_072)
    assert config == dataclasses.replace(
        LLAMA_3_1,
        max_position_embeddings=4 * 131_072,
        rope_scaling=dataclasses.replace(LLAMA_3_1.rope_scaling, factor=32.0),
    )
    assert line is not None
    assert "RoPE is now llama3, factor 32, base 500,000: low frequencies are scaled, high ones unchanged (" in line


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_other_scaled_models_extend_their_own(kind):
    before = config_of(kind)
    after, _ = choose_rope(before, 65_536)
    assert after == dataclasses.replace(
        before, max_position_embeddings=65_536, rope_scaling=dataclasses.replace(before.rope_scaling, factor=8.0)
    )
    assert choose_rope(after, 65_536) == (after, None)


def test_a_config_of_a_shorter_context_than_its_yarn_is_extended_from_the_longer_one():
    config = dataclasses.replace(config_of("yarn"), max_position_embeddings=8192)
    assert choose_rope(config, 32_768) == (config, None)
    assert choose_rope(config, 65_536)[0].rope_scaling.factor == 8.0


def test_longrope_is_stretched_as_a_larger_base_would():
    before = config_of("longrope")
    after, _ = choose_rope(before, 131_072)
    ratio = np.asarray(after.rope_scaling.long_factor) / before.rope_scaling.long_factor
    np.testing.assert_allclose(ratio, 4.0 ** (np.arange(32) / 31), rtol=1e-12)
    assert after.rope_scaling.short_factor == before.rope_scaling.short_factor
    assert attention_factor(after) > attention_factor(before)


def test_dynamic_follows_each_sequence_and_keeps_its_context():
    before = config_of("dynamic")
    after, line = choose_rope(before, 1_000_000)
    assert after == before
    assert line is not None
    assert "the base grows with the length of each sequence" in line


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3"])
@pytest.mark.parametrize("tokens", [32_769, 65_536, 1_000_000])
def test_the_choice_reaches_no_angle_beyond_training(kind, tokens):
    before = config_of(kind)
    after, _ = choose_rope(before, tokens)
    assert not Waves(after, tokens, before).unseen_F.any()
    unscaled = dataclasses.replace(before, max_position_embeddings=tokens)
    assert Waves(unscaled, tokens, before).unseen_F.any()


def test_the_user_overrides():
    for kind in ("linear", "dynamic", "yarn", "llama3"):
        config, line = choose_rope(SMOLLM2, 32_768, kind)
        assert config.rope_scaling == RopeScaling(kind, 4.0, original_max_position_embeddings=8192)
        assert config.max_position_embeddings == (8192 if kind == "dynamic" else 32_768)
        assert line is not None
        assert line.endswith("(as requested)")
    config, _ = choose_rope(SMOLLM2, 32_768, "none")
    assert config == dataclasses.replace(SMOLLM2, max_position_embeddings=32_768)
    config, _ = choose_rope(LLAMA_3_1, 262_144, "yarn")
    assert config.rope_scaling == RopeScaling("yarn", 32.0, original_max_position_embeddings=8192)
    config, _ = choose_rope(config_of("linear"), 65_536, "yarn")
    assert config.rope_scaling == RopeScaling("yarn", 8.0, original_max_position_embeddings=8192)


def test_the_base_is_the_user_s_or_stretches_the_slowest_wave():
    for scaling in ("auto", "base"):
        config, line = choose_rope(SMOLLM2, 32_768, scaling, 1e6)
        assert config == dataclasses.replace(SMOLLM2, rope_theta=1e6, max_position_embeddings=32_768)
        assert line is not None
        assert line.endswith("RoPE is now default, base 1,000,000: only the base changes (as requested)")
    config, _ = choose_rope(SMOLLM2, 32_768, "base")
    slowest = [float(inverse_frequencies(c)[-1]) for c in (SMOLLM2, config)]
    assert slowest[0] / slowest[1] == pytest.approx(4.0, rel=1e-5)
    config, _ = choose_rope(SMOLLM2, 32_768, "yarn", 1e6)
    assert (config.rope_theta, config.rope_scaling.rope_type) == (1e6, "yarn")
    config, _ = choose_rope(LLAMA_3_1, 8192, theta=1e6)
    assert config == dataclasses.replace(LLAMA_3_1, rope_theta=1e6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((SMOLLM2, 8192, "yarn"), "'yarn' stretches positions beyond 8,192 tokens, but max_seq_length=8,192 is not"),
        ((SMOLLM2, 8192, "base"), "rope_scaling='base' stretches positions beyond 8,192"),
        ((SMOLLM2, 8192, "base"), "max_seq_length=8,192 is not longer; raise it, or omit rope_scaling='base'"),
        (
            (PRESETS["phi-3.5-mini"], 262_144, "yarn"),
            "rope_scaling='yarn' has no meaning in a phi3 model; use one of auto, none, base$",
        ),
        ((SMOLLM2, 65_536, "longrope"), "rope_scaling='longrope' is unknown; .*use one of auto, none, base"),
        ((SMOLLM2, 65_536, "none", 1e6), "contradict each other"),
        ((SMOLLM2, 65_536, "auto", 1.0), "rope_theta=1.0 is out of range; it must be above 1"),
        ((SMOLLM2, "128"), "max_seq_length='128' must be a positive number of tokens"),
        ((SMOLLM2, 2**31), "max_seq_length=2147483648 must be a positive number of tokens, at most 2,147,483,647"),
        ((SMOLLM2, 0), "max_seq_length=0 must be"),
    ],
)
def test_bad_choices_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        choose_rope(*options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_has_its_line(choice):
    for config in (SMOLLM2, LLAMA_3_1, *(config_of(kind) for kind in ("linear", "dynamic", "yarn", "longrope"))):
        after, line = choose_rope(config, 262_144, choice)
        assert line is not None
        assert describe_rope(after) in line


def test_the_report_names_the_changes():
    after, _ = choose_rope(SMOLLM2, 65_536)
    lines = [line.split() for line in report(SMOLLM2, after, 65_536)]
    assert ["context,", "tokens", "8,192", "65,536"] in lines
    assert ["attention", "factor", "1", "1.208"] in lines
    assert ["of", "32", "pairs,", "longer", "than", "8,192", "tokens", "12", "14"] in lines
    assert ["at", "angles", "unseen", "in", "training,", "at", "65,536", "12", "0"] in lines
    assert lines[-1] == ["pair", "31,", "tokens", "a", "turn", "438,460", "3,507,679"]
    assert len(lines) == 8 + 14


def test_every_kind_has_a_description():
    assert set(rope.EFFECTS) == set(rope.KEYS) - {"default"}


def test_kinds_by_other_names_are_covered():
    assert {rope["rope_type"] for rope in KINDS.values()} == {
        "default", "linear", "dynamic", "yarn", "longrope", "llama3"
    }  # fmt: skip
