"""Ways to damage a model and data."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors.numpy import load_file, save_file

LONG = "x" * 300


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def without(*patterns: str):
    def damage(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return damage


def with_content(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].copy()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def a_tensor_less(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


# Damage to the config, to the weights, and to the tokenizer.
CONFIGS = {
    "no-config": without("config.json"),
    "empty": without("*"),
    "config-torn": with_content("config.json", b'{"hidden_size": '),
    "config-list": with_content("config.json", b"[1, 2]"),
    "config-binary": with_content("config.json", bytes(range(256))),
    "other-kind": lambda folder: edit_config(folder, model_type="gpt2"),
    "gelu": lambda folder: edit_config(folder, hidden_act="gelu"),
    "odd-heads": lambda folder: edit_config(folder, num_attention_heads=4, num_key_value_heads=3),
    "bad-rope": lambda folder: edit_config(folder, rope_scaling={"rope_type": "spiral", "factor": 2.0}),
}
TOKENIZERS = {
    "no-tokenizer": without("tokenizer*"),
    "tokenizer-torn": with_content("tokenizer.json", b'{"model": '),
}
WEIGHTS = {
    "no-weights": without("*.safetensors"),
    "truncated": lambda folder: os.truncate(folder / "model.safetensors", 20_000),
    "weights-text": with_content("model.safetensors", b"not a tensor in sight" * 100),
    "wrong-shape": wrong_shape,
    "tensor-less": a_tensor_less,
    "pickled": pickled,
}
MODELS = CONFIGS | TOKENIZERS | WEIGHTS

DATA = {
    "binary.txt": b"\x7fELF\0\0\1",
    "latin1.txt": "Müller".encode("latin-1"),
    "blank.txt": b" \n",
    "torn.jsonl": b'{"text": ',
    "number.jsonl": b"7\n",
    "other.jsonl": b'{"prompt": "a"}\n',
    "no-text.jsonl": b'{"text": 7}\n',
    "broken.parquet": b"PAR1 and nothing more",
    "empty.parquet": b"",
    "empty.jsonl": b"",
}
