"""Reads and writes Hugging Face checkpoints, with one tensor in memory at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike

from lcjax.config import LlamaConfig
from lcjax.config.families.experts import STORED_FORMAT
from lcjax.errors import InputError
from lcjax.model.params import TensorName, tensor_names
from lcjax.weights.assembly import DTYPES, Checkpoint, abridged, check_tensors, parameter_dtype, tree_leaves
from lcjax.weights.bnb import require_whole_stacks, take_packed_weights
from lcjax.weights.cards.card import write_card
from lcjax.weights.experts import joined, joint_tensors, stored_shape, take_experts
from lcjax.weights.generation import GENERATION_CONFIG, write_generation_config
from lcjax.weights.packing import Packing, Shape
from lcjax.weights.safetensors_files import StoredTensor, read_header, read_into, write_file
from lcjax.weights.spelling import is_buffer, plain_names
from lcjax.weights.staging import staged
from lcjax.weights.tokenizer import TOKENIZER_FILES, save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 2**30
OUR_FILES = (SINGLE_FILE, INDEX, "model-*-of-*.safetensors")

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def load_config(directory: str | os.PathLike[str]) -> LlamaConfig:
    """Reads config.json of a model directory; code that it refers to (`auto_map`) is ignored."""
    return LlamaConfig.from_json(Path(directory) / "config.json")


def load_params(directory: str | os.PathLike[str], config: LlamaConfig, dtype: DTypeLike) -> dict[str, Any]:
    """Loads a model directory's weights.

    Args:
      directory: contains `model.safetensors`, or shards and `model.safetensors.index.json`.
      config: the model; see `load_config`.
      dtype: float32 or bfloat16. Stored F32, F16 or BF16 is rounded to nearest even.

    Returns:
      The parameter tree of `lcjax.model.params`, JAX arrays on the default device. The peak of host
      memory is the tree and a few MB.

    Raises:
      InputError: a file is missing or corrupt, or the tensors do not match the config, which is
        checked before any weight is read; or a weight is NaN or infinite.
    """
    return open_checkpoint(directory, config).load(dtype)


def open_checkpoint(directory: str | os.PathLike[str], config: LlamaConfig | None = None) -> Checkpoint:
    """Reads and checks all headers without reading weights; raises the errors of `load_params`."""
    directory = Path(directory)
    config = config or load_config(directory)
    stored, in_mxfp4 = take_experts(plain_names(_headers(directory), config), config)
    stored, in_nf4 = take_packed_weights(stored, config)
    packed = in_mxfp4 | in_nf4
    require_whole_stacks(packed, config)
    check_tensors(
        {name: tensor.shape for name, tensor in (stored | packed).items()},
        {name.name: name.shape for name in tensor_names(config)},
        source=directory,
        remedy="use the config.json that belongs to these weights",
    )

    def read(name: TensorName, out: np.ndarray, start: int = 0) -> None:
        if name.name in packed:
            packed[name.name].read(out, start)
        else:
            read_into(stored[name.name], out, start * math.prod(name.shape[1:]))

    def packing(name: TensorName) -> Packing | None:
        return packed[name.name].packing() if name.name in packed else None

    if STORED_FORMAT in config.family.own_keys:  # config.json may be of another copy of the model
        config = config.with_own_value(STORED_FORMAT, "mxfp4" if in_mxfp4 else None)
    # bfloat16 represents MXFP4 exactly.
    all_bfloat16 = not in_nf4 and all(tensor.dtype == DTYPES["bfloat16"] for tensor in stored.values())
    return Checkpoint(config, DTYPES["bfloat16" if all_bfloat16 else "float32"], read, packing)


def save_checkpoint(
    directory: str | os.PathLike[str],
    params: dict[str, Any],
    config: LlamaConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    dtype: DTypeLike | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    generation_config: str | None = None,
) -> None:
    """Saves a model as transformers reads it: config.json, weights and tokenizer; all or nothing.

    Args:
      directory: created if missing; in an existing one, a former checkpoint is replaced and other
        files stay.
      params: the parameter tree of `lcjax.model.params`.
      config: the model.
      tokenizer: saved with the weights, if given; see `save_tokenizer`.
      dtype: float32 or bfloat16; None keeps the leaves' dtype, if all have the same.
      max_shard_bytes: the most bytes of tensors in one file, unless a single tensor has more.
      generation_config: the text of generation_config.json, if there is to be one.

    Raises:
      InputError: the directory cannot be written or the disk is full; the former content is intact.
      ValueError: params is not the tree of this config.
    """
    leaves = tree_leaves(params, tensor_names(config))
    stored = {leaf.dtype.name for leaf, _ in leaves.values()}
    if dtype is None and len(stored) > 1:
        raise ValueError(f"params mixes {' and '.join(sorted(stored))}; say which dtype to save")
    target = parameter_dtype(stored.pop() if dtype is None else dtype)

    def fetch(name: TensorName) -> np.ndarray:
        leaf, _ = leaves[name.name]
        # One layer at a time: `np.asarray` of a whole stack would copy it to the host and keep it
        # there.
        return np.asarray(leaf[name.index] if name.index else leaf).astype(target, copy=False)

    write_checkpoint(
        directory,
        fetch,
        config,
        tokenizer,
        dtype=target,
        max_shard_bytes=max_shard_bytes,
        generation_config=generation_config,
    )


def write_checkpoint(
    directory: str | os.PathLike[str],
    fetch: Callable[[TensorName], np.ndarray],
    config: LlamaConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    dtype: np.dtype,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    generation_config: str | None = None,
    card: str | None = None,
) -> None:
    """`save_checkpoint` for tensors made one at a time: `fetch` returns a tensor in `dtype`.

    `card` is the text of README.md, if there is to be one; see `lcjax.weights.cards`.
    """
    tensors, fetch_tensor = _stored_tensors(config, fetch)
    shards = _shards(tensors, dtype.itemsize, max_shard_bytes)
    total_bytes = sum(math.prod(shape) * dtype.itemsize for shape in tensors.values())
    # A former model's chat template and stop tokens must not survive next to a new tokenizer.
    former = OUR_FILES if tokenizer is None else (*OUR_FILES, GENERATION_CONFIG, *TOKENIZER_FILES)
    with staged(Path(directory), total_bytes, replaces=former) as staging:
        for file_name, shard in shards.items():
            write_file(
                staging / file_name,
                {name: (dtype, tensors[name]) for name in shard},
                fetch_tensor,
                metadata={"format": "pt"},
            )
        if len(shards) > 1:
            weight_map = {name: file_name for file_name, shard in shards.items() for name in shard}
            write_json(staging / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
        # transformers 4 reads torch_dtype, version 5 reads dtype.
        write_json(staging / "config.json", {**config.to_dict(), "dtype": dtype.name, "torch_dtype": dtype.name})
        if tokenizer is not None:
            save_tokenizer(tokenizer, staging)
        write_generation_config(staging, generation_config)
        write_card(staging, Path(directory), card)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file in the layout of transformers."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def refuse_pickles(directory: Path, wanted: str) -> NoReturn:
    """Raises InputError for a directory without `wanted`; explains how to convert pickles."""
    if not directory.is_dir():
        raise InputError(f"{directory} is not an existing directory; check the path")
    if pickles := sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern)):
        raise InputError(
            f"{directory} has {abridged(pickles)} and no {wanted}: pickles are never opened, "
            "since they can run code; if you trust them, convert them with "
            "`save_pretrained(..., safe_serialization=True)`"
        )
    raise InputError(f"{directory} has no {wanted}; give the directory of a complete download")


def _headers(directory: Path) -> dict[str, StoredTensor]:
    if (directory / SINGLE_FILE).exists():
        return read_header(directory / SINGLE_FILE, packed=True)
    if (directory / INDEX).exists():
        return _sharded_headers(directory / INDEX)
    refuse_pickles(directory, SINGLE_FILE)


def _sharded_headers(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_index(index)
    stored: dict[str, StoredTensor] = {}
    for file_name in sorted(set(weight_map.values())):
        for name, tensor in read_header(index.parent / file_name, packed=True).items():
            if weight_map.get(name) == file_name:
                stored[name] = tensor
            elif not is_buffer(name):
                raise InputError(f"{index} does not list {name}, which is in {file_name}; download the model again")
    if absent := [name for name in weight_map if name not in stored and not is_buffer(name)]:
        raise InputError(
            f"{index} lists {len(absent)} tensors that its files lack ({abridged(absent)}); download the model again"
        )
    return stored


def read_index(index: Path) -> dict[str, str]:
    """The file of each tensor of a sharded checkpoint: a plain file name in the index's directory.

    Raises:
      InputError: the index cannot be read, or is not valid.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index} is not a valid index ({error!r}); download it again") from None
    except OSError as error:
        raise InputError(f"{index} cannot be read ({error.strerror}); check its permissions") from None
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_file_name, weight_map.values())):
        raise InputError(
            f"{index} is not a valid index: weight_map must give a file name for each tensor; download it again"
        )
    return weight_map


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and os.path.basename(value) == value


def _stored_tensors(
    config: LlamaConfig, fetch: Callable[[TensorName], np.ndarray]
) -> tuple[dict[str, Shape], Callable[[str], np.ndarray]]:
    """(the shapes of a file's tensors by name, what fetches one of them)."""
    joint, in_parts = joint_tensors(config), {}
    for tensor, parts in joint.items():
        in_parts |= {name.name: tensor for name in parts}
    names = {name.name: name for name in tensor_names(config)}
    shapes = {
        in_parts.get(name, name): stored_shape(joint[in_parts[name]]) if name in in_parts else names[name].shape
        for name in names
    }

    def fetch_tensor(name: str) -> np.ndarray:
        return joined([fetch(part) for part in joint[name]]) if name in joint else fetch(names[name])

    return shapes, fetch_tensor


def _shards(tensors: Mapping[str, Shape], item_size: int, max_shard_bytes: int) -> dict[str, list[str]]:
    """The tensors of each file, in order, filled greedily."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, shape in tensors.items():
        size = math.prod(shape) * item_size
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, start=1)}
