"""Reads config.json as transformers does, with the defaults of the family of its model_type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lcjax.config.families import DEFAULT_FAMILY, FAMILIES, Family
from lcjax.config.rope import read_rope
from lcjax.errors import InputError

# Keys for which null is meaningful: derived from other sizes, or none. For other keys null means
# missing.
_NULLABLE = {"num_key_value_heads", "head_dim", "bos_token_id", "eos_token_id", "sliding_window"}
_SIZES = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
_OTHER_NAMES = {"swish": "silu"}


def read_fields(config: Any, source: str) -> dict[str, Any]:
    """The fields of a LlamaConfig in the dictionary of a config.json; values are not checked yet.

    Raises:
      InputError: the architecture is not supported, a key is missing, or an option is set that
        would change the result and is not supported.
    """
    if not isinstance(config, dict):
        raise InputError(f"{source} is a {type(config).__name__}, not an object; download the model again")
    config = _language_model(config, source)
    family = _family(config, source)
    config = dict(family.flattened(config, source))
    fields = {key: config[key] if _is_given(config, key) else default for key, default in family.keys.items()}
    fields["model_type"] = family.model_type
    own = {key: config.get(key, default) for key, default in family.own_keys.items()}
    fields["own_values"] = tuple((key, _hashable(x, key, source)) for key, x in own.items())
    heads, hidden = fields["num_attention_heads"], fields["hidden_size"]
    if fields["num_key_value_heads"] is None:
        fields["num_key_value_heads"] = heads
    if fields["head_dim"] is None:
        fields["head_dim"] = _head_dim(hidden, heads, source)
    if isinstance(fields["eos_token_id"], list):
        fields["eos_token_id"] = tuple(fields["eos_token_id"])
    context = fields["max_position_embeddings"]
    if isinstance(context, int) and context > 0:  # otherwise rejected with the other sizes
        theta, rotated, scaling = read_rope(
            {**family.own_keys, **config}, context, source, family.keys.get("rope_theta", 10_000.0)
        )
        fields |= {"rope_theta": theta, "rope_scaling": scaling, "partial_rotary_factor": rotated}
    return fields


def _language_model(config: dict[str, Any], source: str) -> dict[str, Any]:
    """The config of the language model in a larger model; the same for other models.

    Raises:
      InputError: the larger model has none.
    """
    for family in FAMILIES.values():
        if family.composite is not None and config.get("model_type") == family.composite.model_type:
            own = config.get("text_config")
            if not isinstance(own, dict) or own.get("model_type", family.model_type) != family.model_type:
                raise InputError(f"{source} has no text_config of a {family.model_type} model; download it again")
            shared = {key: config[key] for key in (*family.keys, "quantization_config") if key in config}
            return {**shared, **own, "model_type": family.model_type}
    return config


def read_json_file(path: Path) -> Any:
    """The content of a model's config.json.

    Raises:
      InputError: it does not exist, cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; a model directory needs a config.json") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    except RecursionError:
        raise InputError(f"{path} is not valid JSON (nested too deeply); download the model again") from None
    except ValueError as error:  # bad JSON, bad UTF-8, or a number with too many digits
        raise InputError(f"{path} is not valid JSON ({error}); download the model again") from None


def _is_given(config: dict[str, Any], key: str) -> bool:
    return key in config and (config[key] is not None or key in _NULLABLE)


def _family(config: dict[str, Any], source: str) -> Family:
    """The family of the file's model_type; Llama if model_type is missing but all sizes exist.

    Raises:
      InputError: the file needs something that is not supported.
    """
    name = config.get("model_type")
    if name is None:
        if missing := [key for key in _SIZES if config.get(key) is None]:
            raise InputError(f"{source} lacks {', '.join(missing)}; is it a complete Llama config.json?")
        name = DEFAULT_FAMILY.model_type
    if not isinstance(name, str) or name not in FAMILIES:
        raise InputError(
            f"{source} says model_type={name!r}; supported are {', '.join(FAMILIES)}: use a model of these families"
        )
    family = FAMILIES[name]
    key, supported = family.activation_key, family.activation
    activation = config.get(key) or supported
    if activation != supported and _OTHER_NAMES.get(str(activation)) != supported:
        raise InputError(f"{source} says {key}={activation!r}; only {supported} is supported: use another model")
    if quantization := config.get("quantization_config"):
        _check_quantization(quantization, source, family)
    return family


def _hashable(value: Any, key: str, source: str) -> Any:
    """The value, as a tuple if it is a list; a config must be hashable.

    Raises:
      InputError: the value is an object, or has an object or a list.
    """
    try:
        found = tuple(value) if isinstance(value, list) else value
        hash(found)
    except TypeError:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
        raise InputError(
            f"{source} says {key}={shown}, which is an object or a list of lists; "
            "correct it, or download the model again"
        ) from None
    return found


def _head_dim(hidden: Any, heads: Any, source: str) -> Any:
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1:
        return 1  # both are rejected with the other sizes
    if hidden % heads:
        raise InputError(
            f"{source} says num_attention_heads={heads}, which does not divide "
            f"hidden_size={hidden}, and has no head_dim; correct it, or download the model again"
        )
    return hidden // heads


def _check_quantization(quantization: Any, source: str, family: Family) -> None:
    """Rejects quantized checkpoints except bitsandbytes' NF4 and the family's own formats."""
    if not isinstance(quantization, dict):
        raise InputError(
            f"{source} says quantization_config={quantization!r}, which is not an object; download it again"
        )
    method = quantization.get("quant_method", "?")
    if method in family.stored_formats:
        return
    if method != "bitsandbytes":
        raise InputError(f"{source} says the weights are quantized ({method}); use an unquantized checkpoint")
    expected = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "uint8"}
    for key, value in expected.items():
        if (found := quantization.get(key, value)) != value:
            raise InputError(
                f"{source} says {key}={found}, and only {value} is supported; use an unquantized checkpoint"
            )
