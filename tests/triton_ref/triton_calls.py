"""Calls of the Triton attention with random inputs and cotangents, and how far off their results are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

import triton_ref
from numerics import error_ratio, tree_error_ratio
from triton_ref import reference
from triton_ref.tiles import Tile

# Small, so that short inputs have full, partly visible and hidden blocks on every side; but not 32 x 32, which numpy's BLAS
# sums in another order: where weights saturate, the scores of the backward pass must be the forward's to the bit.
SMALL_TILES = {"forward": Tile(32, 64, 4, 2), "dq": Tile(64, 32, 4, 2), "dkv": Tile(64, 64, 4, 2)}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A call of `triton_ref.attention`. `segments` is None, "packed" (ascending ids) or "arbitrary" (ids in any order)."""

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    batch: int = 1
    keys: int | None = None
    segments: str | None = None
    sinks: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Call:
    """The inputs of one call and a random cotangent of each of its results."""

    shape: Shape
    inputs: dict[str, torch.Tensor]
    options: dict[str, Any]
    dout: torch.Tensor
    dlse: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.dout.dtype

    def run(self, attention: Callable, dtype: torch.dtype | None = None, **overrides: Any) -> dict[str, np.ndarray]:
        """out, lse and the gradients of the inputs by name, all computed in `dtype` or else in that of the inputs."""
        inputs = {
            name: x.to(torch.float32 if dtype is None and name == "sinks_H" else dtype or x.dtype)
            .detach()
            .requires_grad_()
            for name, x in self.inputs.items()
        }
        out, lse = attention(**inputs, **(self.options | overrides))
        cotangents = self.dout.to(out.dtype), self.dlse.to(lse.dtype)
        gradients = torch.autograd.grad((out, lse), list(inputs.values()), cotangents)
        results = {"out": out, "lse": lse} | {f"d{name}": x for name, x in zip(inputs, gradients, strict=True)}
        return {name: x.detach().to(torch.float64).numpy() for name, x in results.items()}

    @functools.cached_property
    def exact(self) -> dict[str, np.ndarray]:
        return self.run(reference.attention, torch.float64)

    @functools.cached_property
    def plain(self) -> dict[str, np.ndarray]:
        """In the dtype of the inputs, but for the log-sum-exp, which is float32 in every implementation."""
        return self.run(reference.attention) | {"lse": self.run(reference.attention, torch.float32)["lse"]}

    def results(self, **overrides: Any) -> dict[str, np.ndarray]:
        attention = functools.partial(triton_ref.attention, return_lse=True)
        return self.run(attention, **({"tiles": SMALL_TILES} | overrides))

    def ratios(self, results: dict[str, np.ndarray]) -> dict[str, float]:
        """How far each result is off, in parts of what the tolerance rule allows."""
        finite = np.isfinite(self.exact["lse"])
        np.testing.assert_array_equal(results["lse"][~finite], self.exact["lse"][~finite])
        return {
            name: error_ratio(
                *((x[name][finite] if name == "lse" else x[name]) for x in (results, self.plain, self.exact)),
                dtype="float32" if name in ("lse", "dsinks_H") else str(self.dtype).removeprefix("torch."),
            )
            for name in self.exact
        }

    def ratio(self, **overrides: Any) -> float:
        """The same for all results together (see `numerics.tree_error_ratio` on why not the largest of `ratios`)."""
        results = self.results(**overrides)
        ratios = self.ratios(results)
        tensors = [name for name in self.exact if name not in ("lse", "dsinks_H")]
        leaves = ([x[name] for name in tensors] for x in (results, self.plain, self.exact))
        tree = tree_error_ratio(*leaves, dtype=str(self.dtype).removeprefix("torch."))
        return max(tree, *(ratio for name, ratio in ratios.items() if name not in tensors))


def make_call(shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0, sharpness: float = 1.0) -> Call:
    rng = np.random.default_rng(seed)
    keys = shape.tokens if shape.keys is None else shape.keys

    def normal(*sizes: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=sizes))

    inputs = {
        "q_BTHD": normal(shape.batch, shape.tokens, shape.heads, shape.head_dim).mul(sharpness).to(dtype),
        "k_BSKD": normal(shape.batch, keys, shape.kv_heads, shape.head_dim).to(dtype),
        "v_BSKD": normal(shape.batch, keys, shape.kv_heads, shape.head_dim).to(dtype),
    }
    if shape.sinks:
        inputs["sinks_H"] = normal(shape.heads).float()
    options = dict(shape.options)
    if shape.segments is not None:
        key_segments = rng.integers(-1, 4, (shape.batch, keys))
        if shape.segments == "packed":
            key_segments = np.sort(key_segments, axis=1)
        query_segments = key_segments if keys == shape.tokens else rng.integers(-1, 4, (shape.batch, shape.tokens))
        options["query_segments_BT"] = torch.from_numpy(query_segments).int()
        options["key_segments_BS"] = torch.from_numpy(key_segments).int()
    dout = normal(shape.batch, shape.tokens, shape.heads, shape.head_dim).to(dtype)
    return Call(shape, inputs, options, dout, normal(shape.batch, shape.heads, shape.tokens).float())
