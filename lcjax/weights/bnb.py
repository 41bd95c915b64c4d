"""Reads weights that bitsandbytes stored in NF4 from a Hugging Face checkpoint.

A weight `X.weight` is uint8 [O * I / 2, 1]. These tensors belong to it:

- `X.weight.absmax`: uint8, or float32 if the scales are not quantized.
- `X.weight.quant_map`.
- `X.weight.nested_absmax` and `X.weight.nested_quant_map`, if the scales are quantized.
- `X.weight.quant_state.bitsandbytes__nf4`: bytes of a JSON text with block sizes, shape and offset.

Source: bitsandbytes 0.50, `functional.QuantState.as_dict`; transformers 5,
`quantizers/quantizer_bnb_4bit.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lcjax.config import LlamaConfig
from lcjax.errors import InputError
from lcjax.model.params import tensor_names
from lcjax.ops import nf4
from lcjax.ops.nf4.format import ABSMAX_BLOCK, BLOCK, CODEBOOK, DYNAMIC_MAP
from lcjax.parallel.loading import Rows
from lcjax.weights.assembly import abridged
from lcjax.weights.packing import Packing, Parts, Path, Shape
from lcjax.weights.safetensors_files import StoredTensor, read_into, require_plain

_STATE = ".quant_state.bitsandbytes__"
_REMEDY = "load the model that it was quantized from, with quantize=nf4"


@dataclasses.dataclass(frozen=True)
class PackedWeight:
    """A weight [O, I] in NF4: its stored arrays, named as in `lcjax.ops.nf4.format`."""

    arrays: Mapping[str, StoredTensor]
    shape: Shape
    offset: float | None  # None if the scales are not quantized

    @property
    def path(self) -> pathlib.Path:
        """The file that its codes are in."""
        return self.arrays["codes"].path

    @property
    def kind(self) -> str:
        """The kind in words; all layers of a stack have the same."""
        if self.offset is None:
            return "nf4 with unquantized scales"
        return "nf4 with quantized scales" + (" and a custom map" if "absmax_map" in self.arrays else "")

    def packing(self) -> Packing:
        """Its place in the parameter tree."""
        return Packing({(leaf,): kind for leaf, kind in self._leaves().items()}, self._fill, self.shape[0])

    def read(self, out: np.ndarray, start: int = 0) -> None:
        """Fills an array with dequantized rows from `start` on, rounded to the array's dtype."""
        leaves = {name: np.empty(*kind) for name, kind in self._leaves().items()}
        self._fill(Rows((slice(0, self.shape[0]),)), {(name,): [leaf] for name, leaf in leaves.items()})
        values = nf4.dequantize({name: jnp.asarray(leaf) for name, leaf in leaves.items()}, out.dtype)
        out[...] = np.asarray(values)[start : start + len(out)]

    def _leaves(self) -> dict[str, tuple[Shape, np.dtype]]:
        leaves = nf4.leaf_types(*self.shape)
        if self.offset is None:
            return {"codes": leaves["codes"], "absmax": (leaves["absmax"][0], np.dtype(np.float32))}
        if "absmax_map" in self.arrays:
            leaves["absmax_map"] = (DYNAMIC_MAP.shape, DYNAMIC_MAP.dtype)
        return leaves

    def _fill(self, rows: Rows, out: Parts) -> None:
        for name, tensor in self.arrays.items():
            if name in ("codes", "absmax"):  # the same number of values in every row
                for part, values in zip(rows.parts, out[name,], strict=True):
                    read_into(tensor, values, part.start * math.prod(values.shape[1:]))
            else:
                read_into(tensor, out[name,][0])
        if self.offset is not None:
            out["absmax_offset",][0][...] = self.offset


def take_packed_weights(
    stored: Mapping[str, StoredTensor], config: LlamaConfig
) -> tuple[dict[str, StoredTensor], dict[str, PackedWeight]]:
    """Separates a checkpoint's tensors into plain ones and NF4 weights, by name.

    Raises:
      InputError: a weight is quantized, but not as NF4 in blocks of 64; its parts do not fit
        together; it is not a weight of the layers' linear maps; not all layers have it quantized
        alike; or a tensor of bytes belongs to no weight.
    """
    plain, packed = dict(stored), {}
    names = {name.name: name for name in tensor_names(config)}
    table = config.family.by_path
    for key in [key for key in stored if _STATE in key]:
        name, _, kind = key.partition(_STATE)
        path = stored[key].path
        if kind != "nf4":
            raise InputError(f"{path}: {name} is quantized as {kind}, and only nf4 is supported; {_REMEDY}")
        if name not in names or not table[names[name].path].quantizable:
            raise InputError(f"{path}: {name} is quantized but is not a weight of a layer's linear map; {_REMEDY}")
        parts = [part for part in plain if part == name or part.startswith(f"{name}.")]
        packed[name] = _packed_weight(
            {part.removeprefix(name): plain.pop(part) for part in parts}, name, names[name].shape
        )
    require_plain(plain)
    return plain, packed


def _packed_weight(parts: dict[str, StoredTensor], name: str, shape: Shape) -> PackedWeight:
    """The weight that consists of these parts (by name suffix), checked."""
    path = parts[f"{_STATE}nf4"].path
    state = _read_state(parts[f"{_STATE}nf4"])
    nested = "nested_offset" in state
    for key, value in _expected_state(shape, nested).items():
        if state.get(key) != value:
            raise InputError(f"{path}: {name} is quantized with {key}={state.get(key)}, not {value}; {_REMEDY}")
    for part, kind in _expected_parts(shape, nested).items():
        found = _kind(parts[part].shape, parts[part].dtype) if part in parts else "missing"
        if found != kind:
            raise InputError(f"{path}: {name}{part} is {found}, not {kind}; {_REMEDY}")
    if shape[1] % BLOCK:
        raise InputError(
            f"{path}: {name} has rows of {shape[1]} values, not a multiple of {BLOCK}; load the unquantized model"
        )
    if not np.array_equal(_read(parts[".quant_map"]), CODEBOOK):
        raise InputError(f"{path}: {name}.quant_map is not NF4's; {_REMEDY}")
    arrays = {"codes": parts[""], "absmax": parts[".absmax"]}
    if not nested:
        return PackedWeight(arrays, shape, None)
    arrays["absmax_scale"] = parts[".nested_absmax"]
    absmax_map = _read(parts[".nested_quant_map"])
    if not np.array_equal(absmax_map, DYNAMIC_MAP):
        if not (np.abs(absmax_map) <= 1).all():
            raise InputError(f"{path}: {name}.nested_quant_map has values outside [-1, 1]; {_REMEDY}")
        arrays["absmax_map"] = parts[".nested_quant_map"]
    return PackedWeight(arrays, shape, float(state["nested_offset"]))


def _expected_state(shape: Shape, nested: bool) -> dict[str, Any]:
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": BLOCK, "shape": list(shape)}
    return state | ({"nested_blocksize": ABSMAX_BLOCK, "nested_dtype": "float32"} if nested else {})


def _expected_parts(shape: Shape, nested: bool) -> dict[str, str]:
    """Dtype and shape, in words, of each stored tensor except the state."""
    byte, single = np.dtype(np.uint8), np.dtype(np.float32)
    blocks = math.prod(shape) // BLOCK
    parts = {
        "": _kind((math.prod(shape) // 2, 1), byte),
        ".quant_map": _kind(CODEBOOK.shape, single),
        ".absmax": _kind((blocks,), byte if nested else single),
    }
    if nested:
        parts[".nested_absmax"] = _kind((math.ceil(blocks / ABSMAX_BLOCK),), single)
        parts[".nested_quant_map"] = _kind(DYNAMIC_MAP.shape, single)
    return parts


def _kind(shape: Shape, dtype: np.dtype) -> str:
    return f"{dtype} {list(shape)}"


def _read(tensor: StoredTensor) -> np.ndarray:
    values = np.empty(tensor.shape, tensor.dtype)
    read_into(tensor, values)
    return values


def _read_state(tensor: StoredTensor) -> dict[str, Any]:
    try:
        state = json.loads(_read(tensor).tobytes())
    except ValueError as error:
        raise InputError(f"{tensor.path}: {tensor.name} is not valid JSON ({error}); download it again") from None
    offset = state.get("nested_offset", 0.0) if isinstance(state, dict) else None
    if not isinstance(offset, float) or not math.isfinite(offset):
        raise InputError(f"{tensor.path}: {tensor.name} is not a state of bitsandbytes; download it again")
    return state


def require_whole_stacks(packed: Mapping[str, Any], config: LlamaConfig) -> None:
    """Checks that all layers have each linear map quantized in the same way, or none has.

    The layers share arrays.
    """
    kinds: dict[Path, dict[str, str]] = {}
    for name in tensor_names(config):
        kind = packed[name.name].kind if name.name in packed else "not quantized"
        kinds.setdefault(name.path, {})[name.name] = kind
    for of_layers in kinds.values():
        first, kind = next(iter(of_layers.items()))
        if differing := [name for name in of_layers if of_layers[name] != kind]:
            path = next(packed[name].path for name in of_layers if name in packed)
            raise InputError(
                f"{path}: {first} is {kind} and {abridged(differing)} "
                f"{of_layers[differing[0]]}; all layers must match: {_REMEDY}"
            )
