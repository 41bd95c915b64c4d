"""The verdict of a case: the error of each implementation divided by the allowed error.

The rule is in `lcjax_scripts.verify.tolerance`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from lcjax_scripts.verify.parity.jobs import Job
from lcjax_scripts.verify.parity.results import Outcome, SideResult
from lcjax_scripts.verify.tolerance import Ratios, leaves_ratios, ratios_of

REFERENCES = ("exact", "plain")
# Peers are reported, but do not fail a case: torch's attention rounds dk and dv of every query head
# before it adds them.
PEERS = ("sdpa",)
# Results that are always float32, independent of the dtype of q, k and v.
FLOAT32_TENSORS = ("lse", "dsinks")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The largest and the root-mean-square error of an implementation, over the allowed error."""

    largest: float
    root_mean_square: float
    fault: str | None = None
    """The error message, if the implementation failed."""

    @property
    def ratio(self) -> float:
        return max(self.largest, self.root_mean_square)

    @property
    def failed(self) -> bool:
        return not self.ratio <= 1


@dataclasses.dataclass(frozen=True)
class Case:
    """One tensor of one shape, with the verdict of every implementation that supports the shape."""

    name: str
    operation: str
    dtype: str
    head_dim: int
    gqa_ratio: int
    length: int
    masks: tuple[str, ...]
    tensor: str
    verdicts: dict[str, Verdict]
    refused: dict[str, str]
    """Why the other implementations do not support the shape."""

    @property
    def failed(self) -> bool:
        return any(verdict.failed for name, verdict in self.verdicts.items() if name not in PEERS)


def judge(job: Job, sides: Iterable[SideResult]) -> list[Case]:
    """Returns the cases of a finished job.

    Raises:
      AssertionError: the sides had different inputs, or a reference is not finite.
    """
    sides = list(sides)
    assert len({side.digest for side in sides}) == 1, f"{job.name}: the sides drew different inputs"
    outcomes = {name: outcome for side in sides for name, outcome in side.outcomes.items()}
    refused = {name: reason for side in sides for name, reason in side.refused.items()}
    shape = job.shape
    cases = []
    for tensor in shape.tensors:
        verdicts = {
            name: _verdict(job, tensor, outcome, outcomes)
            for name, outcome in outcomes.items()
            if name not in REFERENCES and (isinstance(outcome, str) or names_of(tensor, outcome))
        }
        axes = (shape.dtype, shape.head_dim, shape.gqa_ratio, shape.tokens, shape.masks)
        cases.append(Case(job.name, shape.operation, *axes, tensor, verdicts, refused))
    return cases


def _verdict(job: Job, tensor: str, outcome: Outcome, outcomes: dict[str, Outcome]) -> Verdict:
    if isinstance(outcome, str):
        return Verdict(math.inf, math.inf, outcome)
    plain, exact = (outcomes[name] for name in ("plain", "exact"))
    assert not isinstance(plain, str)
    assert not isinstance(exact, str)
    names = names_of(tensor, exact)
    for name in names:
        if name not in outcome or outcome[name].shape != exact[name].shape:
            found = list(outcome[name].shape) if name in outcome else "nothing"
            return Verdict(math.inf, math.inf, f"{name} is {found}, not {list(exact[name].shape)}")
    dtype = "float32" if tensor in FLOAT32_TENSORS else job.shape.dtype
    leaves = [(outcome[name], plain[name], exact[name]) for name in names]
    if len(leaves) > 1:
        return Verdict(*leaves_ratios(leaves, dtype))
    return Verdict(*_ratios(*leaves[0], dtype))


def names_of(tensor: str, outcome: dict[str, np.ndarray]) -> list[str]:
    """Returns the names of a tensor's arrays: `tensor`, or names that start with `tensor/`."""
    return [name for name in outcome if name == tensor or name.startswith(tensor + "/")]


def _ratios(actual: np.ndarray, plain: np.ndarray, exact: np.ndarray, dtype: str) -> Ratios:
    """Returns the ratios. The lse of a query without keys is -inf, and must be exactly that."""
    blind = np.isneginf(exact)
    assert (np.isneginf(plain) == blind).all()
    if (np.isneginf(actual) != blind).any():
        return Ratios(math.inf, math.inf)
    actual, plain, exact = (np.where(blind, 0, x) for x in (actual, plain, exact))
    return ratios_of(actual, plain, exact, dtype)
