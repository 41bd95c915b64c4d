"""The types in which tensors of a GGUF file are written, and which tensor gets which.

The blocks are those of `gguf.quants`, which has llama.cpp's own numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from gguf.quants import quantize

from lcjax.config import LlamaConfig
from lcjax.errors import InputError, unknown
from lcjax.model.params import TensorName, tensor_names
from lcjax.weights.assembly import DTYPES, abridged
from lcjax.weights.gguf.reader import gguf_names, row_places

# For each type of a file: its number in `general.file_type`, and the types of matrices inside and
# outside the layers. The latter are the embedding and the head. With 4 bits they would cost the
# most quality, so they get 8 there; llama.cpp's quantizer chooses Q6_K, which gguf cannot write.
_OF_FILES = {
    "f32": (LlamaFileType.ALL_F32, GGMLQuantizationType.F32, GGMLQuantizationType.F32),
    "f16": (LlamaFileType.MOSTLY_F16, GGMLQuantizationType.F16, GGMLQuantizationType.F16),
    "bf16": (LlamaFileType.MOSTLY_BF16, GGMLQuantizationType.BF16, GGMLQuantizationType.BF16),
    "q8_0": (LlamaFileType.MOSTLY_Q8_0, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q8_0),
    "q4_0": (LlamaFileType.MOSTLY_Q4_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0),
    "mxfp4": (LlamaFileType.MOSTLY_MXFP4_MOE, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q8_0),
}
# Of the matrices of experts, if they get another type than other matrices inside the layers.
_OF_EXPERTS = {"mxfp4": GGMLQuantizationType.MXFP4}
GGUF_TYPES = tuple(_OF_FILES)
"""The types that a GGUF file can be written with."""

# The largest value of float16, which is also the type of a block's scale.
_LARGEST = 65_504.0
_WIDE = (GGMLQuantizationType.F32, GGMLQuantizationType.BF16, GGMLQuantizationType.MXFP4)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of a file that is to be written: its name there, its type, and its sources.

    Those of the experts of a layer are one tensor, with an axis of experts before the others.
    `rows` are the sources' rows in the order of the file.
    """

    gguf: str
    type: GGMLQuantizationType
    sources: tuple[TensorName, ...]
    rows: np.ndarray

    @property
    def byte_shape(self) -> tuple[int, ...]:
        """The shape of the encoded tensor in bytes; blocks never cross rows."""
        elements, size = GGML_QUANT_SIZES[self.type]
        first = self.sources[0]
        experts = () if first.expert is None else (len(self.sources),)
        rows = (len(self.rows),) if len(first.shape) == 2 else ()
        columns = first.shape[1] if rows else len(self.rows)
        return (*experts, *rows, columns // elements * size)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.byte_shape)


def gguf_type(name: str, dtype: np.dtype) -> str:
    """The type of that name; for "auto", bf16 for weights in bfloat16 and f16 for others.

    Raises:
      InputError: no file can be written with this type.
    """
    if name == "auto":
        return "bf16" if dtype == DTYPES["bfloat16"] else "f16"
    if name not in GGUF_TYPES:
        raise InputError(unknown("type", name, ("auto", *GGUF_TYPES)))
    return name


def file_type(name: str) -> int:
    """The number of a type in `general.file_type`."""
    return int(_OF_FILES[name][0])


def stored_tensors(config: LlamaConfig, name: str) -> tuple[list[StoredTensor], str | None]:
    """The tensors in the order of a file of the type `name`, layer by layer.

    Norms, biases and routers are float32, as in llama.cpp. A matrix whose rows do not consist of
    whole blocks is float16.

    Returns:
      (tensors, note): a line about the matrices in float16, None if there are none.

    Raises:
      InputError: the type is for experts, and the model has none.
    """
    if name in _OF_EXPERTS and config.family.experts(config) is None:
        raise InputError(f"type={name!r} is for models with experts, and {config.model_type} has none; use q4_0")
    _, in_layers, outside = _OF_FILES[name]
    tensors, uneven = [], []
    in_order = sorted(tensor_names(config), key=lambda source: -1 if source.layer is None else source.layer)
    for names, group in itertools.groupby(in_order, lambda source: gguf_names(source, config)):
        source, *others = group
        stored = in_layers if source.layer is not None else outside
        stored = stored if source.expert is None else _OF_EXPERTS.get(name, stored)
        is_router = source.layer is not None and not config.family.by_path[source.path].quantizable
        if len(source.shape) == 1 or is_router:
            stored = GGMLQuantizationType.F32
        elif source.shape[-1] % GGML_QUANT_SIZES[stored][0]:
            stored = GGMLQuantizationType.F16
            uneven.append(source)
        places = zip(names, row_places(source, config), strict=True)
        tensors += [StoredTensor(gguf, stored, (source, *others), rows) for gguf, rows in places]
    if not uneven:
        return tensors, None
    lengths = sorted({source.shape[-1] for source in uneven})
    return tensors, (
        f"{len(uneven)} of {len(tensors)} tensors are stored in f16, because their rows of "
        f"{abridged([str(length) for length in lengths])} values are not whole blocks of {name}"
    )


def encode(tensor: StoredTensor, source: TensorName, values: np.ndarray) -> np.ndarray:
    """The bytes of rows of one source of a tensor, uint8, from their values in float32.

    Raises:
      InputError: a value is too large for the type.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if tensor.type not in _WIDE and largest > _LARGEST:
        raise InputError(
            f"{source.name} has the value {largest}, and {tensor.type.name.lower()} ends at {_LARGEST}; "
            "use type bf16 or f32"
        )
    encoded: Any = quantize(np.ascontiguousarray(values, np.float32), tensor.type)
    return np.ascontiguousarray(encoded).view(np.uint8)
