"""The report as JSON and as a self-contained HTML page."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcjax_scripts.verify.parity.accuracy import LARGEST_QUOTIENT, pallas_over_triton
from lcjax_scripts.verify.parity.report.summary import present
from lcjax_scripts.verify.parity.verdicts import PEERS, Case, Verdict

PAGE = Path(__file__).with_name("page.html")

Caught = Mapping[str, Mapping[str, float | None]]


def as_json(cases: Sequence[Case], caught: Caught, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the report: counts, and every verdict in `results`. Infinite ratios are null."""
    return {
        "cases": len(cases),
        "failed": sum(case.failed for case in cases),
        "verdicts": sum(len(case.verdicts) for case in cases),
        "implementations": present(cases),
        "peers": list(PEERS),
        "pallas_over_triton": {name: _finite(quotient) for name, quotient in pallas_over_triton(cases).items()},
        "pallas_over_triton_limit": LARGEST_QUOTIENT,
        "mutants": {mutant: {name: _hunted(ratio) for name, ratio in row.items()} for mutant, row in caught.items()},
        **facts,
        "results": [_case(case) for case in cases],
    }


def page(report: Mapping[str, Any]) -> str:
    """Returns an HTML page with the report's JSON and the script that draws it, without links."""
    data = json.dumps(report, allow_nan=False).replace("</", "<\\/")
    return PAGE.read_text(encoding="utf-8").replace("/*REPORT*/", data)


def _case(case: Case) -> dict[str, Any]:
    fields = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    verdicts = {name: _verdict(verdict) for name, verdict in case.verdicts.items()}
    return fields | {"masks": list(case.masks), "verdicts": verdicts, "failed": case.failed}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    numbers = {"ratio": verdict.ratio, "largest": verdict.largest, "root_mean_square": verdict.root_mean_square}
    return {name: _finite(x) for name, x in numbers.items()} | {"failed": verdict.failed, "fault": verdict.fault}


def _hunted(ratio: float | None) -> dict[str, Any]:
    """Returns a mutant's result; `caught` is null if the implementation refuses the calls."""
    return {"ratio": _finite(ratio), "caught": None if ratio is None else ratio > 1}


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None
