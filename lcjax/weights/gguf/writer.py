"""Writes GGUF files, with one tensor in memory at a time."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_VERSION, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType
from gguf.gguf_writer import GGUFWriter

from lcjax.config import LlamaConfig
from lcjax.errors import InputError
from lcjax.model.params import TensorName
from lcjax.weights.assembly import row_chunks
from lcjax.weights.gguf.metadata import add_config, rope_factors
from lcjax.weights.gguf.types import StoredTensor, encode, file_type, stored_tensors
from lcjax.weights.gguf.vocabulary import add_tokenizer
from lcjax.weights.staging import staged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Fetch = Callable[[TensorName], np.ndarray]


@dataclasses.dataclass(frozen=True)
class GgufContent:
    """What a GGUF file will contain; its weights are not read yet.

    Attributes:
      config: the model.
      header: the metadata and the names, types and shapes of the tensors.
      factors: the divisors of RoPE's frequencies by the names of their tensors.
      tensors: the model's tensors, in the order of the file.
      notes: lines for the user about what differs from the source.
    """

    config: LlamaConfig
    header: GGUFWriter
    factors: dict[str, np.ndarray]
    tensors: tuple[StoredTensor, ...]
    notes: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)


def gguf_content(
    config: LlamaConfig,
    tokenizer: PreTrainedTokenizerBase,
    type_name: str,
    *,
    name: str,
    generation_config: str | None = None,
) -> GgufContent:
    """Everything of a GGUF file but its weights, so that errors are found before work begins.

    Args:
      config: the model.
      tokenizer: see `lcjax.weights.gguf.vocabulary.add_tokenizer`.
      type_name: one of `lcjax.weights.gguf.types.GGUF_TYPES`.
      name: the model's path or hub id, whose last part is written as `general.name`.
      generation_config: the text of generation_config.json, whose stop tokens are written.

    Raises:
      InputError: GGUF cannot express the model or the tokenizer.
    """
    header = GGUFWriter(None, str(config.family.gguf_architecture))
    header.add_type("model")
    header.add_name(Path(name).expanduser().resolve().name.removesuffix(".gguf"))
    header.add_file_type(file_type(type_name))
    header.add_quantization_version(GGML_QUANT_VERSION)
    add_config(header, config)
    end_note = add_tokenizer(header, tokenizer, config.vocab_size, _ends(config, generation_config))
    tensors, type_note = stored_tensors(config, type_name)
    factors = rope_factors(config)
    for of_rope, values in factors.items():
        header.add_tensor_info(of_rope, values.shape, values.dtype, values.nbytes, raw_dtype=GGMLQuantizationType.F32)
    for tensor in tensors:
        header.add_tensor_info(
            tensor.gguf, tensor.byte_shape, np.dtype(np.uint8), tensor.num_bytes, raw_dtype=tensor.type
        )
    notes = tuple(note for note in (type_note, end_note) if note is not None)
    return GgufContent(config, header, factors, tuple(tensors), notes)


def check_gguf_path(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Checks where a file will be written, before anything is computed.

    Raises:
      InputError: the name does not end in .gguf, the path is a folder or cannot be used, or the
        file exists and `overwrite` is false.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".gguf":
        raise InputError(f"{path} is not the name of a GGUF file; end it with .gguf")
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise InputError(f"{str(path)[:100]} cannot be written ({error.strerror}); give another file") from None
    if is_folder:
        raise InputError(f"{path} is a folder; give the name of a file")
    if exists and not overwrite:
        raise InputError(f"{path} exists; give another file, or overwrite=True")


def write_gguf(
    path: str | os.PathLike[str],
    content: GgufContent,
    fetch: Fetch,
    wrote: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Writes the file; it appears at once when it is complete, and replaces a file of that name.

    Args:
      path: the file; its folder is created if missing.
      content: of `gguf_content`; it can be written once.
      fetch: returns a tensor in float32, in the layout of `lcjax.model.params`.
      wrote: is called with the number of bytes after each tensor, or each expert's part of one.

    Raises:
      InputError: the file cannot be written, the disk is full, or a value is too large for its
        type; a former file is intact.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    with staged(path.resolve().parent, content.num_bytes) as staging:
        temporary = staging / path.resolve().name
        try:
            content.header.write_header_to_file(temporary)
            content.header.write_kv_data_to_file()
            content.header.write_ti_data_to_file()
        finally:
            content.header.close()
        # Not by GGUFWriter, whose error for a full disk does not say so.
        with temporary.open("ab") as file:
            for values in content.factors.values():
                _pad(file)
                file.write(values.data)
            for tensor in content.tensors:
                _pad(file)
                for source in tensor.sources:
                    values = fetch(source)
                    assert (values.dtype, values.shape) == (np.float32, source.shape), source.name
                    _append(file, tensor, source, values, content.config)
                    wrote(tensor.num_bytes // len(tensor.sources))
            _pad(file)


def _append(file: BinaryIO, tensor: StoredTensor, source: TensorName, values: np.ndarray, config: LlamaConfig) -> None:
    """Writes the rows in the order of the file, some at a time, because encoding copies them."""
    row = config.family.by_path[source.path]
    for rows in row_chunks(len(tensor.rows), values.nbytes // len(values)):
        part = values[tensor.rows[rows]]
        part = part + np.float32(row.gguf_offset) if row.gguf_offset else part
        file.write(encode(tensor, source, part).data)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % GGUF_DEFAULT_ALIGNMENT))


def _ends(config: LlamaConfig, generation_config: str | None) -> list[int]:
    """The stop tokens of generation_config.json, then those of config.json."""
    stated = [json.loads(generation_config or "{}").get("eos_token_id"), config.eos_token_id]
    lists = [list(value) if isinstance(value, list | tuple) else [value] for value in stated]
    return [token for tokens in lists for token in tokens if isinstance(token, int) and not isinstance(token, bool)]
