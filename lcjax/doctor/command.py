"""The command line that the findings come to."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

from lcjax.doctor.findings import Finding


def command(asked: Mapping[str, str], data: Iterable[str], findings: Iterable[Finding]) -> str:
    """`python -m lcjax.train ...`, ready for a shell: what was asked for, overruled by the findings' flags.

    A flag without a value is a switch.
    """
    flags = dict(asked)
    for finding in findings:
        flags |= finding.flags
    words = ["python", "-m", "lcjax.train"]
    for name, value in flags.items():
        words += [f"--{name}", value] if value else [f"--{name}"]
        if name == "model":
            words += ["--data", *data]
    return shlex.join(words)
