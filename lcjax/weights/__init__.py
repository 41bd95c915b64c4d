"""Reads and writes the files of Hugging Face, llama.cpp and PEFT, and their tokenizers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike

from lcjax.config import LlamaConfig
from lcjax.parallel.devices import ON_ONE, Devices
from lcjax.weights.assembly import Checkpoint as Checkpoint
from lcjax.weights.generation import read_generation_config as read_generation_config
from lcjax.weights.generation import stop_ids as stop_ids
from lcjax.weights.gguf import GGUF_TYPES as GGUF_TYPES
from lcjax.weights.gguf import check_expressible as check_expressible
from lcjax.weights.gguf import check_gguf_path as check_gguf_path
from lcjax.weights.gguf import gguf_content as gguf_content
from lcjax.weights.gguf import gguf_type as gguf_type
from lcjax.weights.gguf import load_gguf as load_gguf
from lcjax.weights.gguf import open_gguf as open_gguf
from lcjax.weights.gguf import write_gguf as write_gguf
from lcjax.weights.hf import load_config as load_config
from lcjax.weights.hf import load_params as load_params
from lcjax.weights.hf import open_checkpoint as open_checkpoint
from lcjax.weights.hf import save_checkpoint as save_checkpoint
from lcjax.weights.hf import write_checkpoint as write_checkpoint
from lcjax.weights.hub import resolve_model as resolve_model
from lcjax.weights.peft import base_config as base_config
from lcjax.weights.peft import load_adapter as load_adapter
from lcjax.weights.peft import load_adapter_config as load_adapter_config
from lcjax.weights.peft import other_base as other_base
from lcjax.weights.peft import save_adapter as save_adapter
from lcjax.weights.tokenizer import load_tokenizer as load_tokenizer
from lcjax.weights.tokenizer import save_tokenizer as save_tokenizer


def open_model_files(path: Path) -> Checkpoint:
    """Opens a GGUF file or a Hugging Face directory without reading its weights."""
    return open_checkpoint(path) if path.is_dir() else open_gguf(path)


def load_model_files(
    name_or_path: str | os.PathLike[str],
    dtype: DTypeLike,
    quantize: str | None = None,
    *,
    embeddings_on_host: bool = False,
    devices: Devices = ON_ONE,
) -> tuple[LlamaConfig, dict[str, Any], Path]:
    """Loads a model by directory, GGUF file or hub id.

    Returns:
      The config, the parameter tree in `dtype` (float32 or bfloat16), and the path that was read,
      for `load_tokenizer`. With `quantize="nf4"`, or if the checkpoint itself is 4-bit, the linear
      maps are quantized (see `lcjax.ops.nf4.format`). With `embeddings_on_host`, embedding and head
      are in pinned host memory. Each of the `devices` has its part of the weights.

    Raises:
      InputError: see `resolve_model`, `load_params` and `load_gguf`.
    """
    path = resolve_model(name_or_path)
    checkpoint = open_model_files(path)
    params = checkpoint.load(dtype, quantize, embeddings_on_host=embeddings_on_host, devices=devices)
    return checkpoint.config, params, path
