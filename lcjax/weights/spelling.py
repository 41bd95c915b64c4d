"""The ways in which a checkpoint of the same model may name its tensors, brought down to one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lcjax.config import EMBEDDING_MODULES, LlamaConfig
from lcjax.errors import InputError
from lcjax.weights.safetensors_files import StoredTensor, same_values

_PREFIX = "model."
# Old checkpoints carry RoPE's frequencies, which are computed from the config.
_BUFFER = re.compile(r"(.+\.)?rotary_emb\.inv_freq")


def is_buffer(name: str) -> bool:
    """Whether a tensor is no weight, but computed from the config: it may be there or not, listed in an index or not."""
    return _BUFFER.fullmatch(name) is not None


def plain_names(stored: Mapping[str, StoredTensor], config: LlamaConfig) -> dict[str, StoredTensor]:
    """The tensors under the names of `lcjax.model.params`.

    Without the prefix `model.` they are saved from transformers' LlamaModel, which has no head. Of a head and an embedding that are
    tied, either may be there, or both: `safetensors.torch.save_model` writes the head alone.

    Raises:
      InputError: the head and the embedding differ though they are tied.
    """
    embedding, head_name = (config.family.by_path[module, "weight"].hugging_face for module in EMBEDDING_MODULES)
    named = {name: tensor for name, tensor in stored.items() if not is_buffer(name)}
    if not any(name.startswith(_PREFIX) for name in named):
        # Also the parts of a quantized weight; a head is outside in both.
        named = {name if name.startswith("lm_head.") else _PREFIX + name: tensor for name, tensor in named.items()}
    if not config.tie_word_embeddings or head_name not in named:
        return named
    head = named.pop(head_name)
    if not same_values(head, named.setdefault(embedding, head)):
        raise InputError(
            f"{head.path}: {head_name} differs from {embedding} though config.json says tie_word_embeddings=true; set it to false"
        )
    return named
