"""Files of settings, for `--config`: a YAML file with a key for each flag, or a run's run.yaml."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcjax.cli.outputs import shortened
from lcjax.config.run_record import FORMAT, FORMER_FORMAT
from lcjax.config.yaml_files import parse_yaml
from lcjax.errors import InputError, flag

# What a new run does not take from the record of another one: its folders and its processes.
_OF_ONE_RUN = (
    "config", "output_dir", "resume_from_checkpoint", "programs_dir", "coordinator", "num_processes", "process_id",
)  # fmt: skip
# A file may come from someone else, and machine code is loaded from this folder.
_ON_THE_COMMAND_LINE = ("config", "programs_dir")
_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """A file of settings: its path, and the values of fields of a dataclass of flags."""

    path: Path
    values: dict[str, Any]

    def over(self, default: Any) -> Any:
        """An object with the attributes of `default`, some of them replaced; nothing is checked."""
        return types.SimpleNamespace(**{**vars(default), **self.values})

    def without_other_start(self, words: list[str]) -> ConfigFile:
        """The file without what its run started from, if a word says what this one starts from."""
        starts = any(word.partition("=")[0] in ("--adapter", "--start-from") for word in words)
        dropped = ("adapter", "start_from", "optimizer_state") if starts else ()
        return ConfigFile(self.path, {name: value for name, value in self.values.items() if name not in dropped})

    def blamed(self, error: InputError, words: list[str]) -> InputError:
        """The error, with the file's name if it is about a flag that only the file sets."""
        typed = {word.partition("=")[0] for word in words}
        named = [flag(name) for name in self.values if f"{flag(name)} " in f"{error} " and flag(name) not in typed]
        return InputError(f"{error} ({named[0]} is set in {self.path})") if named else error


def given_config(argv: list[str] | None, kind: type, command: str = "this command") -> ConfigFile | None:
    """The file that `--config FILE` names, if the words have it; None also for --help.

    Args:
      kind, command: as in `read_config`.

    Raises:
      InputError: as `read_config`.
    """
    words = sys.argv[1:] if argv is None else argv
    path = None
    for position, word in enumerate(words):
        if word in ("-h", "--help", "--version"):
            return None
        if word.startswith("--config="):
            path = word.removeprefix("--config=")
        elif word == "--config" and position + 1 < len(words):
            path = words[position + 1]
    return None if path in (None, "") or "\0" in path else read_config(Path(path), kind, command)


def read_config(path: Path, kind: type, command: str = "this command") -> ConfigFile:
    """The settings in a file.

    The file is a mapping from names of flags, with underscores or dashes, to values. A run's
    run.yaml has such a mapping at `arguments`; the run's own folders and processes are left out.

    Args:
      kind: a class whose annotations are the names and types of the flags.
      command: the command with these flags, for messages.

    Raises:
      InputError: the file cannot be read, a key is unknown or occurs twice, or a value has the
        wrong type.
    """
    content = _content(path)
    is_record = isinstance(content.get("arguments"), dict) and "format" in content
    if is_record and content["format"] not in (FORMAT, FORMER_FORMAT):
        raise InputError(
            f"--config {path} has format {shortened(repr(content['format']))}, but this lcjax reads format {FORMAT}; use "
            "the lcjax that wrote it, or write its settings in a file of your own"
        )
    if is_record and "lora_r" not in content["arguments"]:
        raise InputError(f"--config {path} was written by lcjax.train() in a program; repeat the run from that program")
    return ConfigFile(path, _values(path, content["arguments"] if is_record else content, kind, command, is_record))


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.is_dir():
            raise InputError(f"--config {path} is a folder; give a file, such as {path / 'run.yaml'}")
        if path.exists() and not path.is_file():
            raise InputError(f"--config {path} is not a regular file; give a YAML file of settings")
        with path.open("rb") as file:
            content = parse_yaml(file.read(2**20 + 1))
    except OSError as error:
        raise InputError(
            f"--config {shortened(str(path))} cannot be read ({error.strerror}); give a YAML file of settings"
        ) from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--config {path} is not a file of settings ({shortened(str(error))}); correct it") from None
    if not isinstance(content, dict):
        raise InputError(f"--config {path} has no settings; write one on each line, such as max_steps: 100")
    return content


def _values(path: Path, content: Mapping[str, Any], kind: type, command: str, is_record: bool) -> dict[str, Any]:
    hints, values = typing.get_type_hints(kind), {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if is_record and name in _OF_ONE_RUN:
            continue
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1, cutoff=0.45)
            meant = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"{shortened(key)} in {path} is no flag of {command}; {meant}see --help for all")
        if name in _ON_THE_COMMAND_LINE:
            raise InputError(f"{key} in {path} is not read from a file; give {flag(name)} on the command line")
        if name in values:
            raise InputError(f"{name} is in {path} twice, with an underscore and with a dash; remove one of them")
        try:
            values[name] = _converted(value, hints[name])
        except (TypeError, OverflowError):
            place, wrong, hint = _wrong(key, value, hints[name])
            raise InputError(
                f"{place}: {shortened(reprlib.repr(wrong))} in {path} is {_kind(wrong)}; give {_expected(hint)}"
            ) from None
    return values


def _converted(value: Any, hint: Any) -> Any:
    """The value as an object of a field's type; raises TypeError if it is of another type."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return tuple(_converted(item, options[0]) for item in (value if isinstance(value, list) else [value]))
    if options and value is None:
        return None
    [kind] = [option for option in options or (hint,) if option is not type(None)]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not (str if kind is Path else kind) or value == "" or (isinstance(value, str) and "\0" in value):
        raise TypeError
    return kind(value)


def _wrong(key: str, value: Any, hint: Any) -> tuple[str, Any, Any]:
    """(place, value, type) of what cannot be converted: the first such item of a list."""
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        kind = typing.get_args(hint)[0]
        for number, item in enumerate(value, start=1):
            try:
                _converted(item, kind)
            except (TypeError, OverflowError):
                return f"{key}, item {number}", item, kind
    return key, value, hint


def _expected(hint: Any) -> str:
    options = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"a list, each item {_EXPECTED[options[0]]}"
    [kind] = [option for option in options or (hint,) if option is not type(None)]
    return _EXPECTED[kind] + (", or null" if options else "")


def _kind(value: Any) -> str:
    """What a value of a YAML file is, in words."""
    if isinstance(value, float) and math.isfinite(value):
        return "a number with a fraction or an exponent"
    names = {str: "text", bool: "true or false", int: "a whole number", list: "a list", dict: "a mapping"}
    return "empty" if value in (None, "") else names.get(type(value), f"of type {type(value).__name__}")
