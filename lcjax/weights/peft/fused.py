"""Adapters of experts as PEFT saves them with transformers 5, where experts share a parameter.

There the weights of a layer's E experts are two parameters, `gate_up_proj` [E, 2F, D] and
`down_proj` [E, D, F]. Those of gpt-oss are transposed, and its gate and up are one linear map. The
adapter of rank R of a parameter, whose experts map `in` to `out` features, is two matrices: A
[E * R, in], one expert after another, and B [out, R * E], where column `k * E + e` is of expert e.
The file names neither the experts nor the parameter, whose sizes identify it. If both are adapted,
the names of those of `gate_up_proj` contain `.base_layer`.

Shapes: E experts, R rank, D hidden size, F intermediate size of an expert.

Source: PEFT 0.21, `ParamWrapper` of `tuners/lora/layer.py` and
`utils/transformers_weight_conversion.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from lcjax.config import LlamaConfig
from lcjax.config.families import Family, Parameter
from lcjax.model.params import TensorName
from lcjax.weights.assembly import Shape
from lcjax.weights.peft.names import Factor, module_name, module_of, tensor_name
from lcjax.weights.safetensors_files import StoredTensor, read_into

PARAMETERS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""The modules whose rows a parameter of experts has, if a family does not have it as one module."""
_EXPERTS, _INNER = "mlp.experts", ".base_layer"
_PART = re.compile(r"(.+)\.(\w+)\[\d+\]\.(lora_[AB])\.weight")


@dataclasses.dataclass(frozen=True)
class _Fused:
    """The two factors of one parameter of one layer, and the rows of the table that it contains."""

    a: StoredTensor
    b: StoredTensor
    key: str
    layer: int
    rows: tuple[Parameter, ...]
    experts: int

    @property
    def rank(self) -> int:
        return self.a.shape[0] // self.experts


def separated(stored: Mapping[str, StoredTensor], config: LlamaConfig, *, use_rslora: bool) -> dict[str, Factor]:
    """The factors of every linear map by PEFT's names, where every expert has its own.

    PEFT converts an adapter of separate maps of rank r to one of `gate_up_proj` with rank 2r, whose
    B is zero outside two blocks. If it still is, the two maps get back their rank r. Otherwise both
    have A of rank 2r, and the rows of B that are theirs.

    Args:
      stored: the tensors of a file, of `lcjax.weights.peft.config.plain_names`.
      config: the model.
      use_rslora: whether the adapter is scaled by the root of its rank, so that a part of the
        rank cannot have a part of `lora_alpha`.

    Raises:
      InputError: a file cannot be read, or contains NaN or infinity.
    """
    fused = list(_fused(stored, config))
    read = {name for one in fused for name in (one.a.name, one.b.name)}
    factors = {name: _whole(name, tensor) for name, tensor in stored.items() if tensor.name not in read}
    whole_b = functools.lru_cache(maxsize=1)(_experts_first)
    joined = [one for one in fused if len(one.rows) > 1]
    divides = not use_rslora and all(_is_block_diagonal(one, whole_b(one.b, one.experts)) for one in joined)
    for one in fused:
        factors |= _factors(one, config, whole_b, parts=len(one.rows) if divides else 1)
    return factors


def parameter_keys(config: LlamaConfig) -> dict[str, str]:
    """The parameter that contains each linear map of an expert, by the map's name in the model."""
    keys = {}
    for parameter, rows in _parameters(config).items():
        for layer, row in itertools.product(range(config.num_hidden_layers), rows):
            for expert in range(config.experts.count):
                keys[module_name(row, layer, expert)] = f"{_prefix(row, layer)}.{parameter}"
    return keys


def target_parameters(modules: Sequence[str], family: Family) -> list[str]:
    """The modules that PEFT knows only as parameters of all experts, by its names."""
    return [f"{_EXPERTS}.{module}" for module in modules if family.adaptable[module].is_joint]


def file_tensors(names: Iterable[TensorName]) -> dict[str, list[TensorName]]:
    """The tensors of a file, each with its parts: the factors of all experts, or a single one."""
    names = list(names)
    parameters = {match[2] for name in names if (match := _PART.fullmatch(name.name))}
    found: dict[str, list[TensorName]] = {}
    for name in names:
        own = name.name
        if (match := _PART.fullmatch(own)) is not None:
            experts, parameter, factor = match.groups()
            infix = _INNER if parameter != "down_proj" and len(parameters) > 1 else ""
            own = f"{experts}{infix}.{factor}.weight"
        found.setdefault(own, []).append(name)
    return found


def file_shape(parts: Sequence[TensorName]) -> Shape:
    """The shape of a file's tensor with these parts."""
    rows, columns = parts[0].shape
    count = len(parts)
    return (rows * count, columns) if parts[0].path[-1] == "lora_A" else (rows, columns * count)


def file_array(parts: Sequence[TensorName], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """A file's tensor, given the arrays of its parts."""
    if parts[0].path[-1] == "lora_A":
        return np.concatenate(arrays)
    return np.stack(arrays, axis=-1).reshape(file_shape(parts))


def _parameters(config: LlamaConfig) -> dict[str, tuple[Parameter, ...]]:
    """The parameters of a layer's experts, with the rows of the table that they contain."""
    rows = {module: row for module, row in config.family.adaptable.items() if row.in_experts}
    found = {
        name: tuple(rows[module] for module in ((name,) if name in rows else modules) if module in rows)
        for name, modules in PARAMETERS.items()
    }
    return {name: rows for name, rows in found.items() if rows}


def _prefix(row: Parameter, layer: int) -> str:
    return row.hugging_face.partition(_EXPERTS)[0].format(layer=layer) + _EXPERTS


def _fused(stored: Mapping[str, StoredTensor], config: LlamaConfig) -> Iterator[_Fused]:
    parameters = _parameters(config)
    for layer in range(config.num_hidden_layers) if parameters else ():
        prefix = f"base_model.model.{_prefix(next(iter(parameters.values()))[0], layer)}"
        for infix in ("", _INNER):
            pair = [stored.get(f"{prefix}{infix}.{factor}.weight") for factor in ("lora_A", "lora_B")]
            for name, rows in parameters.items():
                if (one := _matched(pair, name, rows, layer, config)) is not None:
                    yield one


def _matched(
    pair: list[StoredTensor | None], name: str, rows: tuple[Parameter, ...], layer: int, config: LlamaConfig
) -> _Fused | None:
    """The parameter, if the pair of factors has its sizes."""
    a, b = pair
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2:
        return None
    experts = config.experts.count
    out_features, in_features = sum(row.shape(config)[0] for row in rows), rows[0].shape(config)[1]
    fits = (a.shape[1], b.shape[0]) == (in_features, out_features) and a.shape[0] == b.shape[1]
    if not fits or a.shape[0] == 0 or a.shape[0] % experts:
        return None
    module = str(module_of(a.name)).removesuffix(_INNER)
    return _Fused(a, b, f"{module}.{name}", layer, rows, experts)


def _whole(name: str, tensor: StoredTensor) -> Factor:
    def read(out: np.ndarray, start: int) -> None:
        read_into(tensor, out, start * out.shape[1])

    return Factor(tensor.shape, str(module_of(tensor.name)), read)


def _experts_first(b: StoredTensor, experts: int) -> np.ndarray:
    """B as float32 [E, out, R], which represents every stored dtype exactly."""
    values = np.empty(b.shape, np.float32)
    read_into(b, values)
    return np.ascontiguousarray(values.reshape(b.shape[0], -1, experts).transpose(2, 0, 1))


def _is_block_diagonal(one: _Fused, b_EOR: np.ndarray) -> bool:
    """Whether each map of the parameter uses only its own part of the ranks."""
    count = len(one.rows)
    if one.rank % count:
        return False
    blocks = b_EOR.reshape(one.experts, count, -1, count, one.rank // count)
    return not any(blocks[:, i, :, j].any() for i, j in itertools.permutations(range(count), 2))


def _factors(
    one: _Fused, config: LlamaConfig, whole_b: Callable[[StoredTensor, int], np.ndarray], *, parts: int
) -> dict[str, Factor]:
    """The factors of each map of each expert, where `parts` maps share the ranks."""
    rank, first_out, factors = one.rank // parts, 0, {}
    for place, row in enumerate(one.rows):
        out_features, in_features = row.shape(config)
        first_rank = place * rank if parts > 1 else 0
        for expert in range(one.experts):
            a = functools.partial(_read_a, one, expert * one.rank + first_rank)
            b = functools.partial(_read_b, one, whole_b, expert, first_out, slice(first_rank, first_rank + rank))
            for factor, shape, read in (("lora_A", (rank, in_features), a), ("lora_B", (out_features, rank), b)):
                factors[tensor_name(row, one.layer, expert, factor)] = Factor(shape, one.key, read, parts)
        first_out += out_features
    return factors


def _read_a(one: _Fused, first: int, out: np.ndarray, start: int) -> None:
    read_into(one.a, out, (first + start) * out.shape[1])


def _read_b(
    one: _Fused,
    whole_b: Callable[[StoredTensor, int], np.ndarray],
    expert: int,
    first: int,
    ranks: slice,
    out: np.ndarray,
    start: int,
) -> None:
    out[...] = whole_b(one.b, one.experts)[expert, first + start : first + start + len(out), ranks]
