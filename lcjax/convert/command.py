"""Runs `python -m lcjax.convert` after its flags are parsed.

It converts a model to a Hugging Face directory and merges an adapter.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lcjax.cli.outputs import check_output_dir
from lcjax.config import LoraConfig
from lcjax.config.rope_choice import choose_rope
from lcjax.convert.arguments import ConvertArguments, parse_size
from lcjax.errors import InputError
from lcjax.model.lora import merge_weight
from lcjax.model.params import TensorName, tensor_names
from lcjax.weights import (
    Checkpoint,
    base_config,
    load_adapter,
    load_tokenizer,
    open_model_files,
    read_generation_config,
    resolve_model,
)
from lcjax.weights.assembly import DTYPES
from lcjax.weights.hf import write_checkpoint

_FILES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".json")


def run(arguments: ConvertArguments) -> int:
    """Runs the command; returns the exit code, 0."""
    convert(arguments)
    return 0


def convert(arguments: ConvertArguments) -> None:
    """Runs one conversion; raises InputError for user errors before anything is written."""
    max_shard_bytes = parse_size(arguments.max_shard_size)
    if arguments.destination.suffix.lower() in _FILES:
        raise InputError(
            f"{arguments.destination} is a file name, but a Hugging Face directory is written; "
            "GGUF is read, not written (llama.cpp's convert_hf_to_gguf.py converts that "
            "directory): give a directory"
        )
    check_output_dir("the destination", arguments.destination)
    if not arguments.overwrite and arguments.destination.is_dir() and any(arguments.destination.iterdir()):
        raise InputError(f"{arguments.destination} is not empty; give another directory or add --overwrite")
    source = resolve_model(arguments.source)
    checkpoint = open_model_files(source)
    tokenizer = load_tokenizer(source)
    lora, adapter = load_adapter(arguments.adapter, checkpoint.config) if arguments.adapter else (None, {})
    dtype = checkpoint.dtype if arguments.dtype == "keep" else DTYPES[arguments.dtype]
    config = base_config(arguments.adapter, checkpoint.config) if arguments.adapter else checkpoint.config
    length = config.max_position_embeddings if arguments.max_seq_length is None else arguments.max_seq_length
    config, line = choose_rope(config, length, arguments.rope_scaling, arguments.rope_theta)
    if line is not None:
        print(line)
    names = list(tensor_names(config))
    total_bytes = sum(math.prod(name.shape) for name in names) * dtype.itemsize
    generation_config = read_generation_config(source)
    with _progress(f"converting {len(names)} tensors to {dtype.name}, {total_bytes:,} bytes") as progress:
        task = progress.add_task("converting", total=total_bytes)

        def fetch(name: TensorName) -> np.ndarray:
            tensor = _tensor(checkpoint, name, lora, adapter, dtype)
            progress.advance(task, tensor.nbytes)
            return tensor

        write_checkpoint(
            arguments.destination,
            fetch,
            config,
            tokenizer,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            generation_config=generation_config,
        )
    print(f"{arguments.destination}: {len(names)} tensors, {dtype.name}, {total_bytes:,} bytes")


def _tensor(
    checkpoint: Checkpoint, name: TensorName, lora: LoraConfig | None, adapter: dict[str, Any], dtype: np.dtype
) -> np.ndarray:
    """The named tensor in `dtype`, with its adapter merged if it has one."""
    factors: Any = adapter
    for key in name.path[:-1]:
        factors = factors.get(key, {})
    if lora is None or not factors or name.path[-1] != "weight":
        weight = np.empty(name.shape, dtype)
        checkpoint.read(name, weight)
        return weight
    # In float32, which represents every stored dtype exactly, so that the sum is rounded once.
    weight = np.empty(name.shape, np.float32)
    checkpoint.read(name, weight)
    lora_a_RI, lora_b_OR = factors["lora_A"][name.layer], factors["lora_B"][name.layer]
    return np.asarray(merge_weight(jnp.asarray(weight), lora_a_RI, lora_b_OR, lora.scaling)).astype(dtype)


def _progress(line: str) -> Progress:
    """A progress bar in bytes on a terminal; elsewhere prints the line once."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)
