"""Loads llama.cpp's checkpoints (GGUF): the config from the metadata, the tensors dequantized."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from gguf.quants import dequantize
from numpy.typing import DTypeLike

from lcjax.config import LlamaConfig
from lcjax.errors import InputError
from lcjax.model.params import TensorName, tensor_names
from lcjax.weights.assembly import DTYPES, Checkpoint, check_tensors, require_finite, row_chunks
from lcjax.weights.gguf.config import gguf_config, rope_tensors
from lcjax.weights.gguf.file import REMEDY, GgufFile, GgufTensor, read_gguf_file


def load_gguf(path: str | os.PathLike[str], dtype: DTypeLike) -> tuple[LlamaConfig, dict[str, Any]]:
    """Loads a GGUF file whose architecture one of the families supports.

    Args:
      path: the file; its tensors may have any type in `lcjax.weights.gguf.file.SUPPORTED_TYPES`.
      dtype: float32 or bfloat16; blocks are dequantized in float32 and then rounded.

    Returns:
      The config and the parameter tree of `lcjax.model.params`, JAX arrays on the default device.
      The peak of host memory is the tree and a few MB, because the file is read a few rows at a
      time.

    Raises:
      InputError: the file is missing, corrupt or of another architecture, or its tensors do not
        match its metadata.
    """
    checkpoint = open_gguf(path)
    return checkpoint.config, checkpoint.load(dtype)


def open_gguf(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads and checks the header without reading weights; raises the errors of `load_gguf`."""
    file = read_gguf_file(Path(path))
    config = gguf_config(file)
    check_tensors(
        {
            tensor.name: tensor.shape
            for tensor in file.tensors.values()
            if tensor.name not in rope_tensors(config.family)
        },
        _shapes(config),
        source=file.path,
        remedy="use a GGUF file of a plain Llama model",
    )

    def read(name: TensorName, out: np.ndarray, start: int = 0) -> None:
        tensor, offset = file.tensors[gguf_name(name, config)], config.family.by_path[name.path].gguf_offset
        _read_tensor(file, tensor, name.expert or 0, row_places(name, config), out, start, offset)

    all_bfloat16 = all(tensor.type.name == "BF16" for tensor in file.tensors.values())
    return Checkpoint(config, DTYPES["bfloat16" if all_bfloat16 else "float32"], read)


def _shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a file by name. Those of the experts of a layer are one, [E, out, in]."""
    shapes = {}
    for name in tensor_names(config):
        experts = () if name.expert is None else (config.experts.count,)
        shapes[gguf_name(name, config)] = (*experts, *name.shape)
    return shapes


def gguf_name(name: TensorName, config: LlamaConfig) -> str:
    """The tensor's name in llama.cpp, e.g. `blk.3.attn_q.weight` for layer 3's `q_proj`.

    All experts of a layer have the same.
    """
    return config.family.by_path[name.path].gguf.format(layer=name.layer)


def row_places(name: TensorName, config: LlamaConfig) -> np.ndarray:
    """The destination of each of the file's rows.

    For Q and K the order differs. llama.cpp rotates neighboring pairs (2i, 2i + 1) of a head.
    Hugging Face rotates pairs half a head apart (i, i + head_dim / 2). So llama.cpp's converter
    interleaves the two halves of every head.
    """
    rows = np.arange(name.shape[0])
    if not config.family.by_path[name.path].interleaved:
        return rows
    return rows.reshape(-1, 2, config.head_dim // 2).swapaxes(1, 2).ravel()


def _read_tensor(
    file: GgufFile, tensor: GgufTensor, expert: int, places: np.ndarray, out: np.ndarray, start: int, offset: float
) -> None:
    """Dequantizes the rows whose destinations are from `start` on into `out`, a few at a time.

    If the tensor contains several experts, they are those of one. `offset` is subtracted from them.
    If they are not adjacent in the file, those between them are read and skipped. A vector is a
    column of one-element rows.
    """
    wanted = np.flatnonzero((places >= start) & (places < start + len(out)))
    first, count = int(wanted[0]), int(wanted[-1] + 1 - wanted[0])
    before, experts = expert * len(places), tensor.shape[0] if len(tensor.shape) == 3 else 1
    encoded_row, decoded_row = tensor.num_bytes // (experts * len(places)), out.nbytes // len(out)
    try:
        with file.path.open("rb") as stream:
            stream.seek(tensor.offset + (before + first) * encoded_row)
            for chunk in row_chunks(count, decoded_row):
                encoded = np.empty((chunk.stop - chunk.start, encoded_row), np.uint8)
                if stream.readinto(encoded.data) < encoded.nbytes:
                    raise InputError(f"{file.path} is truncated or corrupt: it ends inside {tensor.name}; {REMEDY}")
                with np.errstate(all="ignore"):  # `require_finite` reports a damaged block's values
                    decoded = dequantize(encoded, tensor.type)
                    decoded = (decoded - offset if offset else decoded).astype(out.dtype, copy=False)
                value = (before + first + chunk.start) * decoded.shape[1]
                require_finite(decoded, file.path, tensor.name, shape=tensor.shape, start=value)
                to = places[first + chunk.start : first + chunk.stop] - start
                is_wanted = (to >= 0) & (to < len(out))
                out[to[is_wanted]] = decoded[is_wanted, 0] if out.ndim == 1 else decoded[is_wanted]
    except OSError as error:
        raise InputError(f"{file.path} cannot be read ({error}); check the disk and the permissions") from None
