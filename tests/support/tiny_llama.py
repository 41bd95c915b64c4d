"""A tiny random Llama with its own tokenizer, as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

import lcjax
from lcjax import weights
from lcjax.model.params import tensor_names


def save_tiny_llama(directory: Path, texts: list[str], **fields: Any) -> None:
    """Saves a float32 model with 2 layers, hidden size 32 and grouped queries.

    `fields` change its config. The tokenizer has all bytes, and merges learned from `texts`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    defaults = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    config = lcjax.LlamaConfig(**defaults | fields)
    weights.save_checkpoint(directory, random_params(config), config, tokenizer)


def random_params(config: lcjax.LlamaConfig, seed: int = 0) -> dict:
    """Returns norms close to 1, and other weights with standard deviation 0.1."""
    params: dict = {}
    names = {name.path: name for name in tensor_names(config)}
    for number, (path, name) in enumerate(names.items()):
        node = params
        for part in path[:-1]:
            node = node.setdefault(part, {})
        shape = config.family.by_path[path].stacked_shape(config)
        noise = 0.1 * jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), shape)
        node[path[-1]] = 1 + noise if len(name.shape) == 1 else noise
    return params
