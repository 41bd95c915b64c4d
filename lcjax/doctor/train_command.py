"""The lcjax.train command that follows from the findings."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

from lcjax.doctor.findings import Finding
from lcjax.train.result import default_output_dir


def train_command(requested: Mapping[str, str], data: Iterable[str], findings: Iterable[Finding]) -> str:
    """`lcjax train ...`, quoted for a shell.

    It has the requested flags, overridden by those of the findings, and a new output directory,
    with which the run can be resumed. A flag without a value is a switch.
    """
    flags = dict(requested)
    for finding in findings:
        flags |= finding.flags
    flags["output-dir"] = str(default_output_dir(flags["model"]))
    words = ["lcjax", "train"]
    for name, value in flags.items():
        words += [f"--{name}", value] if value else [f"--{name}"]
        if name == "model":
            words += ["--data", *data]
    return shlex.join(words)
