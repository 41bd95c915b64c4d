"""A tiny Llama with a tokenizer of its own, and some text."""

from __future__ import annotations

import random
from pathlib import Path

import jax
import pytest
from processes import finish, start

import lcjax
from lcjax import weights
from lcjax.weights.names import tensor_names

WORDS = "the old river carried seven small boats past a quiet town while nobody there ever learned to swim".split()


@pytest.fixture(scope="package", autouse=True)
def cache(tmp_path_factory):
    """The folder that keeps compiled steps from one run to the next, of this process and of others."""
    folder = tmp_path_factory.mktemp("compiled")
    options = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.3,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(20, 200))) + ".\n" for _ in range(24)]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, texts) -> Path:
    """A Hugging Face directory of a random float32 Llama with grouped queries: 2 layers, hidden size 32."""
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
    config = lcjax.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    directory = tmp_path_factory.mktemp("model") / "tiny"
    weights.save_checkpoint(directory, random_params(config), config, tokenizer)
    return directory


def random_params(config: lcjax.LlamaConfig, seed: int = 0) -> dict:
    """Norms of ones with a little noise, maps and embedding with standard deviation 0.1."""
    params: dict = {}
    names = {name.path: name for name in tensor_names(config)}
    for number, (path, name) in enumerate(names.items()):
        node = params
        for part in path[:-1]:
            node = node.setdefault(part, {})
        shape = name.shape if name.layer is None else (config.num_hidden_layers, *name.shape)
        noise = 0.1 * jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), shape)
        node[path[-1]] = 1 + noise if len(name.shape) == 1 else noise
    return params


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, texts) -> Path:
    directory = tmp_path_factory.mktemp("data")
    for number, text in enumerate(texts):
        (directory / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return directory


SHORT = (
    "--max-seq-length 48 --max-steps 4 --save-steps 2 --eval-steps 2 --eval-fraction 0.2 --lora-r 2 --seed 7".split()
)


@pytest.fixture(scope="session")
def short(model_dir, data_dir) -> list[str]:
    """The flags of a run of 4 steps that saves and evaluates after every second; --output-dir is wanting."""
    return ["--model", str(model_dir), "--data", str(data_dir), *SHORT]


@pytest.fixture(scope="package")
def finished(short, cache, tmp_path_factory) -> Path:
    """The folder of such a run, which nothing disturbed; tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    code, output = finish(start([*short, "--output-dir", "run"], folder, cache))
    assert code == 0, output
    return folder / "run"
