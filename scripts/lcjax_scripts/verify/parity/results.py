"""The results of a side's process for one shape, in a file that is written atomically."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

# Tensors by name, or an error message of one line.
Outcome = dict[str, np.ndarray] | str


@dataclasses.dataclass(frozen=True)
class SideResult:
    """One side's results for one shape."""

    digest: str
    """The digest of the inputs (see `inputs.digest`)."""
    outcomes: dict[str, Outcome]
    """Tensors or an error, by implementation. Tensors are float32, the reference is float64."""
    refused: dict[str, str]
    """By implementation, why it does not support the shape."""


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
