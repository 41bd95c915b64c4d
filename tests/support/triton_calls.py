"""Calls of the Triton attention with random inputs and cotangents, and their errors."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import triton_ref
from lcjax_scripts.verify.cases import AttentionShape
from lcjax_scripts.verify.inputs import make_inputs
from tests.support.numerics import error_ratio, tree_error_ratio
from triton_ref import reference
from triton_ref.block_sizes import BlockSizes

# Small, so that short inputs have full, partly visible and hidden blocks on every side. Not 32 x
# 32, because numpy's BLAS sums such blocks in another order: where weights saturate, the scores of
# the backward pass must have the bits of the forward pass.
SMALL_BLOCK_SIZES = {
    "forward": BlockSizes(32, 64, 4, 2),
    "dq": BlockSizes(64, 32, 4, 2),
    "dkv": BlockSizes(64, 64, 4, 2),
}


@dataclasses.dataclass(frozen=True)
class Call:
    """The inputs of a call, and random cotangents of its results."""

    shape: AttentionShape
    inputs: dict[str, torch.Tensor]
    options: dict[str, Any]
    dout: torch.Tensor
    dlse: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.dout.dtype

    def run(self, attention: Callable, dtype: torch.dtype | None = None, **overrides: Any) -> dict[str, np.ndarray]:
        """Returns out, lse and the gradients by name, computed in `dtype` or that of the inputs."""
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
        """Computed in the dtype of the inputs, except the log-sum-exp, which is always float32."""
        return self.run(reference.attention) | {"lse": self.run(reference.attention, scores_dtype=torch.float32)["lse"]}

    def results(self, **overrides: Any) -> dict[str, np.ndarray]:
        attention = functools.partial(triton_ref.attention, return_lse=True)
        return self.run(attention, **({"block_sizes": SMALL_BLOCK_SIZES} | overrides))

    def ratios(self, results: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns the error of each result, divided by the allowed error."""
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
        """Returns the error ratio of all results together (see `numerics.tree_error_ratio`)."""
        results = self.results(**overrides)
        ratios = self.ratios(results)
        tensors = [name for name in self.exact if name not in ("lse", "dsinks_H")]
        leaves = ([x[name] for name in tensors] for x in (results, self.plain, self.exact))
        tree = tree_error_ratio(*leaves, dtype=str(self.dtype).removeprefix("torch."))
        return max(tree, *(ratio for name, ratio in ratios.items() if name not in tensors))


def make_call(shape: AttentionShape, dtype: torch.dtype | None = None, **options: Any) -> Call:
    """Makes inputs of a shape, in its dtype or another. `options` are further arguments."""
    dtype = dtype or getattr(torch, shape.dtype)
    arrays, own = make_inputs("a Triton call", dataclasses.replace(shape, dtype="float32", lse_cotangent=True))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    inputs = {name: tensors[name[0]].to(dtype) for name in ("q_BTHD", "k_BSKD", "v_BSKD")}
    if shape.sinks:
        inputs["sinks_H"] = tensors["sinks"]
    if shape.segments is not None:
        own |= {"query_segments_BT": tensors["query_segments"], "key_segments_BS": tensors["key_segments"]}
    return Call(shape, inputs, own | options, tensors["dout"].to(dtype), tensors["dlse"])
