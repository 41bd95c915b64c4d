"""What a side's process hands back about one shape: tensors by implementation, in a file that appears all at once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

# Tensors by name, or in one line why there are none.
Outcome = dict[str, np.ndarray] | str


@dataclasses.dataclass(frozen=True)
class SideResult:
    """One side's results for one shape."""

    digest: str
    """Of the inputs (see `inputs.digest`)."""
    outcomes: dict[str, Outcome]
    """By implementation: float32 tensors that hold the dtype's values, float64 of the reference; or what went wrong."""
    refused: dict[str, str]
    """By implementation: why it does not support the shape."""


def save(result: SideResult, path: Path) -> None:
    arrays = {
        f"{implementation}/{tensor}": array
        for implementation, outcome in result.outcomes.items()
        if not isinstance(outcome, str)
        for tensor, array in outcome.items()
    }
    faults = {name: outcome for name, outcome in result.outcomes.items() if isinstance(outcome, str)}
    facts = {"digest": result.digest, "faults": faults, "refused": result.refused}
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)
    unfinished.rename(path)


def load(path: Path) -> SideResult:
    with np.load(path) as file:
        facts = json.loads(str(file["facts"]))
        outcomes: dict[str, Outcome] = dict(facts["faults"])
        for key in file.files:
            implementation, _, tensor = key.partition("/")
            if tensor:
                outcome = outcomes.setdefault(implementation, {})
                assert not isinstance(outcome, str)
                outcome[tensor] = file[key]
    return SideResult(facts["digest"], outcomes, facts["refused"])
