"""Finds the commands and Python blocks of the documents, and runs or parses them at small size.

A command is a line of a fenced block, or inline code, that starts with one of STARTS. A command
that needs a GPU is marked in the text, with `# needs a GPU` on its line or (GPU) after its inline
code. It is only parsed.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import tyro

from lcjax.__main__ import COMMANDS as LCJAX

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = ("python ", "make ", "pip ", ".venv/bin/", "lcjax ")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(rf"`((?:lcjax (?:{'|'.join(LCJAX)})|python scripts/)\b[^`]*)`( \(GPU\))?")

# Placeholders in the documents for the reader's files, and their values in the tests.
PLACEHOLDERS = {
    **dict.fromkeys(("DIR_OR_HUB_ID", "M", "SOURCE", "llama-3.1-8b"), "smollm2"),
    **{"PATH...": "docs", "DESTINATION": "converted", "N": "256", "D": "saved"},
}
# Replaces the lengths in the documents, which are for GPUs.
LENGTH = "256"
# Flags that make a command take seconds. If a flag is given twice, the last one counts.
SHORTER = {
    "lcjax.train": "--max-steps 2 --eval-batches 1 --save-steps 1 --lora-r 2",
    "lcjax.evaluate": "--eval-batches 1 --num-documents 1 --samples 1 --depths 1",
    "lcjax.generate": "--max-new-tokens 2",
    "scripts/bench_train.py": "--model smollm2 --tokens 32 --steps 1 --rounds 1",
}
# Commands that take minutes or hours. They are only parsed here. The tests named here run their
# `main` at small size.
RUN_BY = {
    "scripts/kernel_report.py": "tests/scripts/codegen/test_kernel_report.py",
    "scripts/long_context_gain.py": "tests/scripts/studies/test_long_context_gain.py",
    "scripts/parity.py": "tests/scripts/verify/test_parity.py",
    "scripts/performance_page.py": "tests/scripts/pages/test_performance_page.py",
    "scripts/rope_study.py": "tests/scripts/studies/test_rope_study.py",
    "lcjax.plan": "tests/lcjax/plan/test_plan_command.py",
    "lcjax.doctor": "tests/lcjax/doctor/test_doctor.py",
}
# Commands that run in `make test-all` only. `make test` parses them.
RUN_BEFORE_A_RELEASE = ("scripts/bench_train.py",)
CODE = {
    "DIR_OR_HUB_ID": "smollm2",
    "max_steps=100": "max_steps=2, eval_batches=1",
    "max_seq_length=8192": "max_seq_length=256",
    "r=16,": "r=2,",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line in a document. `needs_gpu` is whether the text marks it so."""

    document: str
    line: int
    text: str
    needs_gpu: bool = False

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def is_python(self) -> bool:
        """Whether it runs a command of lcjax or a script of this repository."""
        return self.words[0] in ("lcjax", "python")

    @property
    def program(self) -> str:
        """The first word, or a name such as lcjax.train or scripts/parity.py."""
        words = self.words
        if words[0] == "lcjax":
            return f"lcjax.{words[1]}"
        return words[1] if words[0] == "python" else words[0]

    @property
    def argv(self) -> list[str]:
        """The arguments, with placeholders and lengths replaced, and with the flags of SHORTER."""
        words = self.words[2:]
        for number, word in enumerate(words[:-1]):
            if word == "--max-seq-length":
                words[number + 1] = LENGTH
        words = [PLACEHOLDERS.get(word, word) for word in words]
        return words + shlex.split(SHORTER.get(self.program, ""))

    @property
    def is_a_name(self) -> bool:
        """Whether the command only names a program, within a sentence."""
        return len(self.words) == 2


def commands(text: str, document: str) -> list[Command]:
    """Returns the commands of a document, in order."""
    return sorted([*_fenced(text, document), *_inline(text, document)], key=lambda command: command.line)


def _fenced(text: str, document: str) -> Iterator[Command]:
    for block in _FENCE.finditer(text):
        lines = block.group(2).splitlines()
        if block.group(1) or not lines or not lines[0].startswith(STARTS):
            continue  # another language, or the output of a command
        for number, line in enumerate(lines):
            if line.strip():
                yield Command(document, _line(text, block.start()) + 1 + number, line, "# needs a GPU" in line)


def _inline(text: str, document: str) -> Iterator[Command]:
    outside = _FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block.group()), text)
    for code in _INLINE.finditer(outside):
        yield Command(document, _line(text, code.start()), " ".join(code.group(1).split()), code.group(2) is not None)


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Returns (line, code) of the Python blocks of a document."""
    return [(_line(text, b.start()), b.group(2)) for b in _FENCE.finditer(text) if b.group(1) == "python"]


def json_block(text: str) -> str:
    """Returns the first JSON block of a document."""
    return next(block.group(2) for block in _FENCE.finditer(text) if block.group(1) == "json")


def yaml_block(text: str) -> str:
    """Returns the first YAML block of a document, with placeholders and lengths replaced."""
    block = next(block.group(2) for block in _FENCE.finditer(text) if block.group(1) == "yaml")
    return block.replace("DIR_OR_HUB_ID", PLACEHOLDERS["DIR_OR_HUB_ID"]).replace("8192", LENGTH)


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


class Parsed(BaseException):
    """Raised when a command's parser has accepted all flags."""


def run(command: Command, argv: list[str]) -> int:
    """Runs a Python command in this process; returns its exit code."""
    return _main(command)(argv)


def parse(command: Command, argv: list[str]) -> int:
    """Parses the flags with the command's parser; returns 0 or the parser's exit code."""
    read = tyro.cli

    def read_and_stop(*args, **kwargs):
        read(*args, **kwargs)
        raise Parsed

    with mock.patch.object(tyro, "cli", read_and_stop):
        try:
            return _main(command)(argv)
        except Parsed:
            return 0
        except SystemExit as stop:
            return int(stop.code or 0)


def _main(command: Command):
    name = command.program
    if name.startswith("scripts/"):
        assert (ROOT / name).is_file(), f"{command}: there is no such script"
        return importlib.import_module(Path(name).stem).main
    return importlib.import_module(f"{name}.__main__").main


def unknown_names(command: Command) -> list[str]:
    """Returns the nonexistent targets, extras, packages and programs that a command names.

    The command starts with `make`, `pip install` or `.venv/bin/`.
    """
    words = command.words
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [requirement for group in project["optional-dependencies"].values() for requirement in group]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return [word for word in words[1:] if word not in targets]
    if words[0] == "pip":
        wanted = [word for word in words[2:] if not word.startswith("-") and word != "."]
        extras = [name for word in wanted if word.startswith(".[") for name in word[2:-1].split(",")]
        packages = [re.split(r"[=<>]", word)[0] for word in wanted if not word.startswith(".[")]
        known = {re.split(r"[=<>\[]", requirement)[0] for requirement in required}
        return [name for name in extras if name not in project["optional-dependencies"]] + [
            name for name in packages if name not in known
        ]
    name = Path(words[0]).name
    return [] if name in " ".join(required) or name in project["scripts"] or name == "python" else [name]
