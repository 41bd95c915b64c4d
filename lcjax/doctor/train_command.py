"""The lcjax.train command that follows from the findings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

from lcjax.config.run_record import as_json
from lcjax.config.yaml_files import as_yaml
from lcjax.doctor.findings import Finding
from lcjax.train.__main__ import parse
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


def config_file(command: str) -> str:
    """The text of a file for `--config` with the settings of a command of `train_command`."""
    words = shlex.split(command)[2:]
    arguments = vars(parse(words))
    given = [word.removeprefix("--").replace("-", "_") for word in words if re.fullmatch(r"--[a-z][a-z-]+", word)]
    settings = {name: as_json(arguments[name]) for name in given if name in arguments}
    return f"# From lcjax doctor. To start the run: lcjax train --config THIS_FILE\n{as_yaml(settings)}"
