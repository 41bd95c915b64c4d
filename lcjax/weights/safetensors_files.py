"""Reads and writes safetensors files one tensor at a time.

The library validates the header. The bytes are read and written here. `safe_open` would map the
file, and its pages count as this process's memory. `save_file` needs all tensors of a file at once.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from lcjax.errors import InputError
from lcjax.weights.assembly import Shape, require_finite, row_chunks

STORED_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
# The storage type of a 4-bit weight. It is rejected if its parts do not form one (`require_plain`).
_PACKED_DTYPES = {"U8": np.dtype(np.uint8)}

_REMEDY = "download it again"


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored; `offset` is in bytes from the file's start.

    If it is `transposed`, the file has the transpose of the matrix of this shape.
    """

    path: Path
    name: str
    dtype: np.dtype
    shape: Shape
    offset: int
    transposed: bool = False

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path, *, packed: bool = False) -> dict[str, StoredTensor]:
    """The tensors of a file by name; checks header and file length, and reads no weights.

    Raises:
      InputError: the file is missing, unreadable, truncated or corrupt, or a tensor is not F32, F16
        or BF16. With `packed`, U8 is allowed as well.
    """
    dtypes = STORED_DTYPES | _PACKED_DTYPES if packed else STORED_DTYPES
    try:
        # Opened here first, because the library reports a file without read permission as missing.
        with path.open("rb") as file, safe_open(path, framework="numpy"):
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {_REMEDY}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} ({path.stat().st_size} bytes) is truncated or corrupt: {error}; {_REMEDY}") from None
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if not name.isprintable():
            raise InputError(f"{path} is truncated or corrupt: it has a tensor named {name!r}; {_REMEDY}")
        if entry["dtype"] not in dtypes:
            raise _unsupported(path, name, entry["dtype"])
    return {
        name: StoredTensor(
            path, name, dtypes[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        )
        for name, entry in header.items()
    }


def require_plain(tensors: Mapping[str, StoredTensor]) -> None:
    """Raises InputError if a tensor of bytes is not part of a 4-bit weight."""
    for name, tensor in tensors.items():
        if tensor.dtype in _PACKED_DTYPES.values():
            raise _unsupported(tensor.path, name, "U8")


def read_into(tensor: StoredTensor, out: np.ndarray, first: int = 0) -> None:
    """Fills a C-contiguous array, a few MB at a time, and casts to its dtype (to nearest even).

    Args:
      first: the index of the tensor's value, in the order of its shape, that becomes the first one.
        Of a transposed tensor it is the first of a row.

    Raises:
      InputError: the file ends early, cannot be read, or contains NaN or infinity and `out` is
        floating-point.
    """
    if tensor.transposed:
        _read_transposed(tensor, out, first // tensor.shape[1])
        return
    flat = out.reshape(-1)
    try:
        # Unbuffered, because the buffer would be larger than many parts of a quantized tensor.
        with tensor.path.open("rb", buffering=0) as file:
            file.seek(tensor.offset + first * tensor.dtype.itemsize)
            for part in row_chunks(flat.size, tensor.dtype.itemsize):
                # If the dtypes match, the bytes are read directly into `out`.
                chunk = flat[part] if out.dtype == tensor.dtype else np.empty(part.stop - part.start, tensor.dtype)
                _fill(file, chunk, tensor)
                if chunk.dtype != out.dtype:
                    flat[part] = chunk
                require_finite(flat[part], tensor.path, tensor.name, shape=tensor.shape, start=first + part.start)
    except OSError as error:
        raise InputError(f"{tensor.path} cannot be read ({error}); check the disk and the permissions") from None


def _read_transposed(tensor: StoredTensor, out: np.ndarray, start: int) -> None:
    """Fills an array with rows from `start` on, which are columns in the file; reads no others."""
    columns, rows = tensor.shape
    stored = dataclasses.replace(tensor, shape=(rows, columns), transposed=False)
    part = np.empty((rows, len(out)), tensor.dtype)
    if len(out) == columns:
        read_into(stored, part)
    else:
        try:
            with tensor.path.open("rb", buffering=0) as file:
                for row, values in enumerate(part):
                    file.seek(tensor.offset + (row * columns + start) * tensor.dtype.itemsize)
                    _fill(file, values, tensor)
        except OSError as error:
            raise InputError(f"{tensor.path} cannot be read ({error}); check the disk and the permissions") from None
        if not np.isfinite(part).all():
            for row, values in enumerate(part):
                require_finite(values, tensor.path, tensor.name, shape=stored.shape, start=row * columns + start)
    out[...] = part.T


def same_values(left: StoredTensor, right: StoredTensor) -> bool:
    """Whether two tensors are stored with the same dtype, shape and bytes."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    with left.path.open("rb") as left_file, right.path.open("rb") as right_file:
        left_file.seek(left.offset)
        right_file.seek(right.offset)
        for part in row_chunks(left.num_bytes, 1):
            count = part.stop - part.start
            if left_file.read(count) != right_file.read(count):
                return False
    return True


def write_file(
    path: Path,
    tensors: Mapping[str, tuple[np.dtype, Shape]],
    fetch: Callable[[str], np.ndarray],
    *,
    metadata: dict[str, str],
) -> None:
    """Writes a safetensors file; calls `fetch` for one tensor after another.

    Args:
      path: the file, which is overwritten.
      tensors: name to (dtype, shape), in the order of the file.
      fetch: returns the named tensor, of that dtype and shape.
      metadata: the header's strings; transformers requires {"format": "pt"}.

    Raises:
      OSError: the disk is full or the path cannot be written.
    """
    names = {dtype: name for name, dtype in STORED_DTYPES.items()}
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, (dtype, shape) in tensors.items():
            array = np.ascontiguousarray(fetch(name))
            assert (array.dtype, array.shape) == (dtype, shape), name
            file.write(array.reshape(-1).view(np.uint8).data)


def _unsupported(path: Path, name: str, dtype: str) -> InputError:
    return InputError(
        f"{path}: {name} is stored as {dtype}; supported are {', '.join(STORED_DTYPES)} and the "
        "NF4 of bitsandbytes: use a checkpoint that is not quantized"
    )


def _fill(file: io.FileIO, chunk: np.ndarray, tensor: StoredTensor) -> None:
    rest = chunk.view(np.uint8).data
    while rest:
        count = file.readinto(rest)
        if not count:
            raise InputError(f"{tensor.path} is truncated or corrupt: it ends inside {tensor.name}; {_REMEDY}")
        rest = rest[count:]
