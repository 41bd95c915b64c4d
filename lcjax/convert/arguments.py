"""The flags of `lcjax convert`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lcjax.cli import flags
from lcjax.errors import InputError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_PROGRAM = "lcjax convert"
_DESCRIPTION = f"""Writes a model as a Hugging Face directory (config.json, weights and tokenizer), or
as one file for llama.cpp if DESTINATION ends in .gguf. One tensor is in memory at a time, so the
model need not fit. Nothing appears at DESTINATION until everything is written.

A llama.cpp file, dequantized to float32:
  {_PROGRAM} SmolLM2-135M-Instruct.Q4_1.gguf smollm2

A model from the hub, with a trained adapter merged into its weights:
  {_PROGRAM} meta-llama/Llama-3.2-1B merged --adapter runs/adapter

The same as a file for llama.cpp, with 8 bits for each weight:
  {_PROGRAM} meta-llama/Llama-3.2-1B merged.gguf --adapter runs/adapter --type q8_0

A model at half its size:
  {_PROGRAM} llama-f32 llama-bf16 --dtype bfloat16

A model for longer sequences than it was trained for (scripts/long_context_tool.py prints what that
changes):
  {_PROGRAM} smollm2 smollm2-64k --max-seq-length 65536
"""


@dataclasses.dataclass(frozen=True)
class ConvertArguments:
    """One conversion."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The model: a Hugging Face directory, a .gguf file, or a hub id (meta-llama/Llama-3.2-1B)."""

    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DESTINATION")]
    """The directory to write, or a file whose name ends in .gguf; it must be empty or missing,
    unless --overwrite is given.
    """

    dtype: Literal["float32", "bfloat16", "keep"] = "keep"
    """The weights' dtype in a directory. keep: bfloat16 if the source is bfloat16, otherwise
    float32.
    """

    type: Literal["auto", "f32", "f16", "bf16", "q8_0", "q4_0", "mxfp4"] = "auto"
    """The type of matrices in a .gguf file. auto: bf16 if the source is bfloat16, otherwise f16.
    Norms and biases are f32; q4_0 has embedding and head in q8_0; mxfp4 has all but
    the matrices of experts in q8_0.
    """

    adapter: Path | None = None
    """A PEFT adapter directory to merge: W + scaling * B A, in float32, rounded once."""

    max_seq_length: int | None = None
    """Context length to use the model with; beyond the trained context, its RoPE is scaled."""

    rope_scaling: str = "auto"
    """How: auto (the model's own scaling extended, otherwise yarn), none, base, linear, dynamic,
    yarn or llama3; see docs/rope.md.
    """

    rope_theta: float | None = None
    """RoPE's base, if not the model's; with --rope-scaling auto or base it is the only change."""

    max_shard_size: str = "5GB"
    """The most bytes of tensors in one file, with a unit: KB, MB, GB, or KiB, MiB, GiB."""

    overwrite: bool = False
    """Replace a model at the destination; files that do not belong to it stay."""


def parse(argv: list[str] | None) -> ConvertArguments:
    """Reads the flags; raises InputError for those that do not parse."""
    return flags.parse(ConvertArguments, argv, _PROGRAM, description=_DESCRIPTION)


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
