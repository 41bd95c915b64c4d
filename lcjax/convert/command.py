"""Runs `lcjax convert` after its flags are parsed.

It converts a model to a Hugging Face directory or a GGUF file, and merges an adapter.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from lcjax.config import LlamaConfig, LoraConfig
from lcjax.config.rope_choice import choose_rope
from lcjax.convert.arguments import ConvertArguments, parse_size
from lcjax.errors import InputError
from lcjax.model.lora import merge_weight
from lcjax.model.params import TensorName, tensor_names
from lcjax.weights import (
    Checkpoint,
    base_config,
    check_expressible,
    gguf_content,
    gguf_type,
    load_adapter,
    load_config,
    load_tokenizer,
    open_model_files,
    other_base,
    read_generation_config,
    resolve_model,
    write_checkpoint,
    write_gguf,
)
from lcjax.weights.assembly import DTYPES
from lcjax.weights.cards.card import model_card, training_section

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_GGUF = ".gguf"
_FILES = (".safetensors", ".bin", ".pt", ".pth", ".json")


def run(arguments: ConvertArguments) -> int:
    """Runs the command; returns the exit code, 0."""
    convert(arguments)
    return 0


def convert(arguments: ConvertArguments) -> None:
    """Runs one conversion; raises InputError for user errors before anything is written."""
    if arguments.destination.suffix.lower() == _GGUF:
        _check_file(arguments)
        # Before weights are downloaded, and before an adapter is read.
        check_expressible(_early_config(arguments))
        _write_gguf(arguments, _opened(arguments))
    else:
        max_shard_bytes = parse_size(arguments.max_shard_size)
        _check_directory(arguments)
        _write_directory(arguments, _opened(arguments), max_shard_bytes)


def _check_file(arguments: ConvertArguments) -> None:
    for flag, name in (("--dtype", "dtype"), ("--max-shard-size", "max_shard_size")):
        if (value := getattr(arguments, name)) != getattr(ConvertArguments, name):
            raise InputError(f"{flag} {value} is for directories; a .gguf file is one file with the types of --type")
    destination = arguments.destination
    if destination.is_dir():
        raise InputError(f"{destination} is a folder; give the name of a file")
    check_output_dir("the destination's folder", destination.absolute().parent)
    if destination.exists() and not arguments.overwrite:
        raise InputError(f"{destination} exists; give another file or add --overwrite")


def _check_directory(arguments: ConvertArguments) -> None:
    destination = arguments.destination
    if destination.suffix.lower() in _FILES:
        raise InputError(
            f"{destination} is a file name of a kind that is not written; give a directory, for Hugging Face's "
            "format, or a name that ends in .gguf"
        )
    if arguments.type != ConvertArguments.type:
        raise InputError(f"--type {arguments.type} is for .gguf files; for a directory use --dtype")
    check_output_dir("the destination", destination)
    if not arguments.overwrite and destination.is_dir() and any(destination.iterdir()):
        raise InputError(f"{destination} is not empty; give another directory or add --overwrite")


@dataclasses.dataclass(frozen=True)
class _Source:
    """The model to convert, with the RoPE that was chosen, and the adapter to merge.

    `rope_line` says which RoPE was chosen; None if none had to be.
    """

    path: Path
    checkpoint: Checkpoint
    config: LlamaConfig
    rope_line: str | None
    tokenizer: PreTrainedTokenizerFast
    lora: LoraConfig | None
    adapter: dict[str, Any]

    def tensor(self, name: TensorName, dtype: np.dtype) -> np.ndarray:
        """The named tensor in `dtype`, with its adapter merged if it has one."""
        factors: Any = self.adapter
        for key in name.path[:-1]:
            factors = factors.get(key, {})
        if self.lora is None or not factors or name.path[-1] != "weight":
            weight = np.empty(name.shape, dtype)
            self.checkpoint.read(name, weight)
            return weight
        # In float32, which represents every stored dtype exactly, so that the sum is rounded once.
        weight = np.empty(name.shape, np.float32)
        self.checkpoint.read(name, weight)
        lora_a_RI, lora_b_OR = factors["lora_A"][name.index], factors["lora_B"][name.index]
        return np.asarray(merge_weight(jnp.asarray(weight), lora_a_RI, lora_b_OR, self.lora.scaling)).astype(dtype)


def _early_config(arguments: ConvertArguments) -> LlamaConfig:
    """The model to write, from config.json alone or from the header of a .gguf file."""
    path = resolve_model(arguments.source, with_weights=False)
    return _with_chosen_rope(arguments, load_config(path) if path.is_dir() else open_model_files(path).config)[0]


def _with_chosen_rope(arguments: ConvertArguments, config: LlamaConfig) -> tuple[LlamaConfig, str | None]:
    config = base_config(arguments.adapter, config) if arguments.adapter else config
    length = config.max_position_embeddings if arguments.max_seq_length is None else arguments.max_seq_length
    return choose_rope(config, length, arguments.rope_scaling, arguments.rope_theta)


def _opened(arguments: ConvertArguments) -> _Source:
    path = resolve_model(arguments.source)
    checkpoint = open_model_files(path)
    tokenizer = load_tokenizer(path)
    lora, adapter = load_adapter(arguments.adapter, checkpoint.config) if arguments.adapter else (None, {})
    config, line = _with_chosen_rope(arguments, checkpoint.config)
    if arguments.adapter and (warning := other_base(Path(arguments.adapter), arguments.source)) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    return _Source(path, checkpoint, config, line, tokenizer, lora, adapter)


def _write_directory(arguments: ConvertArguments, source: _Source, max_shard_bytes: int) -> None:
    dtype = source.checkpoint.dtype if arguments.dtype == "keep" else DTYPES[arguments.dtype]
    names = list(tensor_names(source.config))
    total_bytes = sum(math.prod(name.shape) for name in names) * dtype.itemsize
    generation_config = read_generation_config(source.path)
    if source.rope_line is not None:
        print(source.rope_line)
    with _progress(len(names), dtype.name, total_bytes) as progress:
        task = progress.add_task("converting", total=total_bytes)

        def fetch(name: TensorName) -> np.ndarray:
            tensor = source.tensor(name, dtype)
            progress.advance(task, tensor.nbytes)
            return tensor

        write_checkpoint(
            arguments.destination,
            fetch,
            source.config,
            source.tokenizer,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            generation_config=generation_config,
            card=_card(arguments),
        )
    print(f"{arguments.destination}: {len(names)} tensors, {dtype.name}, {total_bytes:,} bytes")


def _card(arguments: ConvertArguments) -> str | None:
    """The card of a merged model, with what the adapter's card says about the training."""
    if arguments.adapter is None:
        return None
    return model_card(arguments.source, merged=True, training=training_section(Path(arguments.adapter)))


def _write_gguf(arguments: ConvertArguments, source: _Source) -> None:
    type_name = gguf_type(arguments.type, source.checkpoint.dtype)
    content = gguf_content(
        source.config,
        source.tokenizer,
        type_name,
        name=arguments.source,
        generation_config=read_generation_config(source.path),
    )
    # After what may be refused.
    for note in filter(None, (source.rope_line, *content.notes)):
        print(note)
    count = len(content.tensors)
    with _progress(count, type_name, content.num_bytes) as progress:
        task = progress.add_task("converting", total=content.num_bytes)
        write_gguf(
            arguments.destination,
            content,
            lambda name: source.tensor(name, np.dtype(np.float32)),
            lambda num_bytes: progress.advance(task, num_bytes),
        )
    print(f"{arguments.destination}: {count} tensors, {type_name}, {content.num_bytes:,} bytes")


def _progress(tensors: int, kind: str, num_bytes: int) -> Progress:
    """A progress bar in bytes on a terminal; elsewhere prints one line once."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        line = f"converting {tensors} tensors to {kind}, {num_bytes:,} bytes"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)
