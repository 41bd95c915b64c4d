"""Loads llama.cpp's checkpoints (GGUF): the config from the metadata, the tensors dequantized."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf.quants import dequantize
from numpy.typing import DTypeLike

from lcjax.config import LlamaConfig
from lcjax.config.families.experts import STORED_FORMAT
from lcjax.errors import InputError
from lcjax.model.params import TensorName, tensor_names
from lcjax.weights.assembly import DTYPES, Checkpoint, check_tensors, require_finite, row_chunks
from lcjax.weights.gguf.config import gguf_config, rope_tensors
from lcjax.weights.gguf.file import REMEDY, GgufFile, GgufTensor, read_gguf_file
from lcjax.weights.gguf.mxfp4 import packing_of
from lcjax.weights.packing import Packing

Decode = Callable[[np.ndarray, GgufTensor, int], np.ndarray]
"""Makes rows of an array from stored rows of a tensor, given the number of the first."""


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
        offset = config.family.by_path[name.path].gguf_offset

        def decode(encoded: np.ndarray, tensor: GgufTensor, first: int) -> np.ndarray:
            return _decoded(encoded, file, tensor, out.dtype, offset, first)

        _read_tensor(file, name, config, out, start, decode)

    def read_bytes(name: TensorName, out: np.ndarray, start: int) -> None:
        _read_tensor(file, name, config, out, start, lambda encoded, tensor, first: encoded)

    def packed(name: TensorName) -> Packing | None:
        if not in_mxfp4 or not _may_stay_packed(name, config):
            return None
        return packing_of(name, read_bytes, f"{file.path}: {gguf_names(name, config)[0]}")

    in_mxfp4 = _stays_in_mxfp4(file, config)
    if STORED_FORMAT in config.family.own_keys:
        config = config.with_own_value(STORED_FORMAT, "mxfp4" if in_mxfp4 else None)
    all_bfloat16 = all(tensor.type.name == "BF16" for tensor in file.tensors.values())
    return Checkpoint(config, DTYPES["bfloat16" if all_bfloat16 else "float32"], read, packed)


def _stays_in_mxfp4(file: GgufFile, config: LlamaConfig) -> bool:
    """Whether the experts' matrices stay in MXFP4 in memory: if all of them are, in gpt-oss."""
    if STORED_FORMAT not in config.family.own_keys:
        return False
    names = (gguf_names(name, config) for name in tensor_names(config) if _may_stay_packed(name, config))
    return all(file.tensors[tensor].type.name == "MXFP4" for of_one in names for tensor in of_one)


def _may_stay_packed(name: TensorName, config: LlamaConfig) -> bool:
    return name.expert is not None and config.family.by_path[name.path].quantizable


def _shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a file by name. Those of the experts of a layer are one, [E, out, in]."""
    shapes = {}
    for name in tensor_names(config):
        experts = () if name.expert is None else (config.experts.count,)
        for tensor, places in zip(gguf_names(name, config), row_places(name, config), strict=True):
            shapes[tensor] = (*experts, len(places), *name.shape[1:])
    return shapes


def gguf_names(name: TensorName, config: LlamaConfig) -> tuple[str, ...]:
    """The tensor's name in llama.cpp, e.g. `blk.3.attn_q.weight` for layer 3's `q_proj`.

    There are two for one whose rows alternate between two tensors. All experts of a layer have the
    same.
    """
    row = config.family.by_path[name.path]
    return tuple(gguf.format(layer=name.layer) for gguf in (row.gguf, row.gguf_odd) if gguf is not None)


def row_places(name: TensorName, config: LlamaConfig) -> tuple[np.ndarray, ...]:
    """The destination of each row of the file's tensors, which are those of `gguf_names`.

    For Q and K the order differs. llama.cpp rotates neighboring pairs (2i, 2i + 1) of a head.
    Hugging Face rotates pairs half a head apart (i, i + head_dim / 2). So llama.cpp's converter
    interleaves the two halves of every head.
    """
    rows, row = np.arange(name.shape[0]), config.family.by_path[name.path]
    if row.gguf_odd is not None:
        return rows[::2], rows[1::2]
    return (rows.reshape(-1, 2, config.head_dim // 2).swapaxes(1, 2).ravel() if row.interleaved else rows,)


def _read_tensor(
    file: GgufFile, name: TensorName, config: LlamaConfig, out: np.ndarray, start: int, decode: Decode
) -> None:
    """Reads the rows whose destinations are from `start` on into `out`, a few at a time.

    If a tensor contains several experts, they are those of one. If they are not adjacent in the
    file, those between them are read and skipped. A vector is a column of one-element rows.
    """
    for tensor_name, places in zip(gguf_names(name, config), row_places(name, config), strict=True):
        tensor, wanted = file.tensors[tensor_name], np.flatnonzero((places >= start) & (places < start + len(out)))
        if not len(wanted):
            continue
        experts, expert = (1, 0) if name.expert is None else (config.experts.count, name.expert)
        first, count, before = int(wanted[0]), int(wanted[-1] + 1 - wanted[0]), expert * len(places)
        encoded_row, decoded_row = tensor.num_bytes // (experts * len(places)), out.nbytes // len(out)
        try:
            # Unbuffered, because the buffer would be larger than many parts of a tensor.
            with file.path.open("rb", buffering=0) as stream:
                stream.seek(tensor.offset + (before + first) * encoded_row)
                for chunk in row_chunks(count, decoded_row):
                    encoded = np.empty((chunk.stop - chunk.start, encoded_row), np.uint8)
                    if stream.readinto(encoded.data) < encoded.nbytes:
                        raise InputError(f"{file.path} is truncated or corrupt: it ends inside {tensor.name}; {REMEDY}")
                    decoded = decode(encoded, tensor, before + first + chunk.start)
                    to = places[first + chunk.start : first + chunk.stop] - start
                    values = decoded[:, 0] if out.ndim == 1 else decoded
                    if to[0] >= 0 and to[-1] < len(out) and np.all(np.diff(to) == 1):
                        out[to[0] : to[-1] + 1] = values  # much faster than with indices
                    else:
                        is_wanted = (to >= 0) & (to < len(out))
                        out[to[is_wanted]] = values[is_wanted]
        except OSError as error:
            raise InputError(f"{file.path} cannot be read ({error}); check the disk and the permissions") from None


def _decoded(
    encoded: np.ndarray, file: GgufFile, tensor: GgufTensor, dtype: np.dtype, offset: float, row: int
) -> np.ndarray:
    """The values of rows from the given one on, minus the offset."""
    with np.errstate(all="ignore"):  # `require_finite` reports a damaged block's values
        decoded = dequantize(encoded, tensor.type)
        decoded = (decoded - offset if offset else decoded).astype(dtype, copy=False)
    require_finite(decoded, file.path, tensor.name, shape=tensor.shape, start=row * decoded.shape[1])
    return decoded
