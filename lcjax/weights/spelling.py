"""Normalizes the different names that checkpoints of the same model use for its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lcjax.config import EMBEDDING_MODULES, LlamaConfig
from lcjax.errors import InputError
from lcjax.weights.safetensors_files import StoredTensor, same_values

_PREFIX = "model."
# Old checkpoints contain RoPE's frequencies, which are computed from the config.
_BUFFER = re.compile(r"(.+\.)?rotary_emb\.inv_freq")


def is_buffer(name: str) -> bool:
    """Whether a tensor is not a weight but computed from the config.

    Such a tensor may or may not be present, and may or may not be listed in an index.
    """
    return _BUFFER.fullmatch(name) is not None


def in_language_model(name: str, config: LlamaConfig) -> str | None:
    """A tensor's name without what a larger model puts before it; None if it is of another part."""
    if (composite := config.family.composite) is None:
        return name
    if name.startswith(composite.others):
        return None
    prefix = next((prefix for prefix in composite.prefixes if name.startswith(prefix)), None)
    return name if prefix is None else composite.prefixes[prefix] + name.removeprefix(prefix)


def plain_names(stored: Mapping[str, StoredTensor], config: LlamaConfig) -> dict[str, StoredTensor]:
    """The tensors under the names of `lcjax.model.params`.

    Of a larger model, such as one for images too, they are those of its language model.

    Names lack the prefix `model.` if the checkpoint was saved from transformers' LlamaModel, which
    has no head. If head and embedding are tied, either or both may be present:
    `safetensors.torch.save_model` writes only the head.

    Raises:
      InputError: head and embedding differ although they are tied.
    """
    embedding, head_name = (config.family.by_path[module, "weight"].hugging_face for module in EMBEDDING_MODULES)
    names = {name: in_language_model(name, config) for name in stored if not is_buffer(name)}
    named = {own: stored[name] for name, own in names.items() if own is not None}
    if not any(name.startswith(_PREFIX) for name in named):
        # This includes the parts of quantized weights. The head has no prefix in either naming.
        named = {name if name.startswith("lm_head.") else _PREFIX + name: tensor for name, tensor in named.items()}
    if not config.tie_word_embeddings or head_name not in named:
        return named
    head = named.pop(head_name)
    if not same_values(head, named.setdefault(embedding, head)):
        raise InputError(
            f"{head.path}: {head_name} differs from {embedding}, but tie_word_embeddings is true "
            "in config.json; set it to false"
        )
    return named
