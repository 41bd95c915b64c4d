"""Converts a model to a Hugging Face directory and merges an adapter: `python -m lcjax.convert --help`."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from lcjax.cli.startup import importing, leave

with importing(__name__ == "__main__"):
    import jax.numpy as jnp
    import numpy as np
    import tyro
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from lcjax.cli.entry import entry_point
    from lcjax.cli.flags import parse
    from lcjax.cli.outputs import check_output_dir
    from lcjax.config import LoraConfig
    from lcjax.config.rope_choice import choose_rope
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
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


_PROGRAM = "python -m lcjax.convert"
_DESCRIPTION = f"""Writes a model as a Hugging Face directory: config.json, safetensors and the tokenizer.
One tensor is in memory at a time, so the model need not fit; nothing appears at DESTINATION until all is written.

A llama.cpp file, dequantized to float32:
  {_PROGRAM} SmolLM2-135M-Instruct.Q4_1.gguf smollm2

A model from the hub, with a trained adapter merged into its weights:
  {_PROGRAM} meta-llama/Llama-3.2-1B merged --adapter runs/adapter

A model at half its size:
  {_PROGRAM} llama-f32 llama-bf16 --dtype bfloat16

A model for longer sequences than it was trained for (scripts/long_context_tool.py says what that changes):
  {_PROGRAM} smollm2 smollm2-64k --max-seq-length 65536
"""


@dataclasses.dataclass(frozen=True)
class Convert:
    """One conversion, as the command line spells it."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The model: a Hugging Face directory, a .gguf file, or a hub id such as meta-llama/Llama-3.2-1B."""

    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DESTINATION")]
    """The directory to write; it must not hold files yet, unless --overwrite is given."""

    dtype: Literal["float32", "bfloat16", "keep"] = "keep"
    """The weights' dtype. keep: bfloat16 where the source is bfloat16, else float32: it holds float16 exactly, and
    GGUF's blocks are dequantized in it."""

    adapter: Path | None = None
    """A PEFT adapter directory to merge: W + scaling * B A, computed in float32 and rounded once."""

    max_seq_length: int | None = None
    """Tokens that the model is to be used with: beyond its context, its RoPE is scaled; the model's context when not given."""

    rope_scaling: str = "auto"
    """How: auto (the model's own scaling extended, or else yarn), none, base, linear, dynamic, yarn or llama3; see
    docs/rope.md."""

    rope_theta: float | None = None
    """RoPE's base, if not the model's; with --rope-scaling auto or base it is all that changes."""

    max_shard_size: str = "5GB"
    """The most bytes of tensors in one file, with a unit: KB, MB, GB, or KiB, MiB, GiB."""

    overwrite: bool = False
    """Replace a model at the destination; files that do not belong to a model stay."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    """Runs the command with `argv` (the process's arguments when None) and returns its exit code."""
    convert(parse(Convert, argv, _PROGRAM, description=_DESCRIPTION))
    return 0


def convert(command: Convert) -> None:
    """Runs one conversion; raises InputError for whatever the user can mend, before anything is written."""
    max_shard_bytes = parse_size(command.max_shard_size)
    if command.destination.suffix.lower() in _FILES:
        raise InputError(
            f"{command.destination} is the name of a file, and a Hugging Face directory is written; GGUF is read, not written "
            "(llama.cpp's convert_hf_to_gguf.py makes it of that directory): name a directory"
        )
    check_output_dir("the destination", command.destination)
    if not command.overwrite and command.destination.is_dir() and any(command.destination.iterdir()):
        raise InputError(f"{command.destination} holds files already; name another directory or add --overwrite")
    source = resolve_model(command.source)
    checkpoint = open_model_files(source)
    tokenizer = load_tokenizer(source)
    lora, adapter = load_adapter(command.adapter, checkpoint.config) if command.adapter else (None, {})
    dtype = checkpoint.dtype if command.dtype == "keep" else DTYPES[command.dtype]
    config = base_config(command.adapter, checkpoint.config) if command.adapter else checkpoint.config
    length = config.max_position_embeddings if command.max_seq_length is None else command.max_seq_length
    config, line = choose_rope(config, length, command.rope_scaling, command.rope_theta)
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
            command.destination,
            fetch,
            config,
            tokenizer,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            generation_config=generation_config,
        )
    print(f"{command.destination}: {len(names)} tensors, {dtype.name}, {total_bytes:,} bytes")


def parse_size(text: str) -> int:
    """Bytes of a size such as 5GB (10^9) or 500MiB (2^20).

    Raises:
      InputError: it is not a positive number and a unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)?", text.strip().upper())
    size = round(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size <= 0:
        raise InputError(f"max_shard_size={text!r} is not a size; write a number and a unit, such as 5GB or 500MiB")
    return size


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
    # In float32, which holds every stored dtype exactly, so that the sum is rounded once.
    weight = np.empty(name.shape, np.float32)
    checkpoint.read(name, weight)
    lora_a_RI, lora_b_OR = factors["lora_A"][name.layer], factors["lora_B"][name.layer]
    return np.asarray(merge_weight(jnp.asarray(weight), lora_a_RI, lora_b_OR, lora.scaling)).astype(dtype)


def _progress(line: str) -> Progress:
    """A bar of bytes on a terminal; elsewhere the line, once."""
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


if __name__ == "__main__":
    leave(main())
