"""Parses flags, and rewrites the library's errors in terms of flags: `--lora-r 0` for `r=0`."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import importlib.metadata
import inspect
import io
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from lcjax.cli.help import help_texts, print_help
from lcjax.errors import InputError, flag

Arguments = TypeVar("Arguments")

# The library's argument names whose flags have other names.
_FIELD_OF = {
    "r": "lora_r",
    "held_out_fraction": "eval_fraction",
    "weights": "data_weights",
    "batch_size": "per_device_train_batch_size",
    "accumulation": "gradient_accumulation_steps",
}
# Flags for which an empty value is meaningful.
_MAY_BE_EMPTY = ("--system",)
_PYTHON_REASONS = (
    (re.compile(r"invalid literal for int\(\) with base 10: ('.*')"), r"\1 is not a whole number"),
    (re.compile(r"could not convert string to float: ('.*')"), r"\1 is not a number"),
    (re.compile(r"Could not find valid parse for arguments: \[(.*)\]"), r"not all of \1 are numbers"),
)

_parsed: contextvars.ContextVar[Any] = contextvars.ContextVar("parsed", default=None)


def parse(
    kind: type[Arguments], argv: list[str] | None, program: str, default: Arguments | None = None, **options: Any
):
    """Parses flags into a dataclass; for --help and --version, prints and exits.

    Args:
      default: values of flags that are not given.
      options: further arguments of `tyro.cli`.

    Raises:
      InputError: flags that do not parse, or values that the dataclass rejects, in one line.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if "--version" in words:
        print(f"{program} {importlib.metadata.version('lcjax')}")
        raise SystemExit(0)
    if {"-h", "--help"} & set(words):
        print_help(kind, program, default, options)
        raise SystemExit(0)
    refuse_empty(words)
    printed = io.StringIO()
    if default is not None:
        options["default"] = default
    try:
        with contextlib.redirect_stderr(printed):
            parsed = tyro.cli(kind, args=words, prog=program, **options)
    except SystemExit as stop:
        if isinstance(stop.__context__, InputError):
            raise InputError(_all_in_flags(str(stop.__context__), kind)) from None
        if not stop.code:
            raise
        raise InputError(f"{_in_one_line(printed.getvalue())}; see {program} --help") from None
    _parsed.set(parsed)
    return parsed


def parse_in_sections(
    kind: type[Arguments],
    argv: list[str] | None,
    program: str,
    default: Arguments,
    sections: Mapping[str, Sequence[str]],
) -> Arguments:
    """`parse` for a dataclass whose help shows its fields in sections.

    Args:
      sections: titles, and the names of the fields under each; every field is in one section.

    Raises:
      InputError: as in `parse`.
    """
    helps, types = help_texts(kind), typing.get_type_hints(kind)
    groups: list[tuple[str, type, Any]] = []
    for number, (title, names) in enumerate(sections.items()):
        fields = [
            (
                name,
                Annotated[types[name], tyro.conf.arg(help=helps[name])],
                dataclasses.field(default=getattr(default, name)),
            )
            for name in names
        ]
        group = dataclasses.make_dataclass(f"Section{number}", fields, frozen=True)
        group.__doc__ = ""
        groups.append((re.sub(r"\W+", "_", title), group, dataclasses.field(default=group())))
    whole = dataclasses.make_dataclass(kind.__name__, groups, frozen=True)
    description = inspect.getdoc(kind)
    parsed = parse(whole, argv, program, description=description, config=(tyro.conf.OmitArgPrefixes,))
    values = {name: value for group in vars(parsed).values() for name, value in vars(group).items()}
    try:
        _parsed.set(kind(**values))
    except InputError as error:
        forget()
        raise InputError(_all_in_flags(str(error), kind)) from None
    return _parsed.get()


def forget() -> None:
    """Clears the parsed flags before this process's next command.

    Until flags are parsed again, `in_flags` changes nothing.
    """
    _parsed.set(None)


def in_flags(message: str) -> str:
    """The message with `--flag value` for each `name=value` that this command was given."""
    arguments = _parsed.get()
    if arguments is None:
        return message
    names = {field.name: field.name for field in dataclasses.fields(arguments)}
    for name, field in (names | {k: v for k, v in _FIELD_OF.items() if v in names}).items():
        value = getattr(arguments, field)
        for part in (value, *value) if isinstance(value, tuple) else (value,):
            message = _in_flag(message, name, field, part)
    return message


def _in_flag(message: str, name: str, field: str, value: Any) -> str:
    """The message with the field's flag and value for `name=value`, and with the flag for others.

    The others are values that the message suggests.
    """
    words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    for written in dict.fromkeys((repr(value), str(value), f"{value:,}" if isinstance(value, int) else repr(value))):
        found = re.compile(rf"(?<![\w.-]){name}={re.escape(written)}(?![\w.])")
        if found.search(message):
            message = found.sub(f"{flag(field)} {words}".replace("\\", "\\\\"), message)
            message = re.sub(rf"(?<![\w.-]){name}='(\w+)'", rf"{flag(field)} \1", message)
    return message


def _all_in_flags(message: str, kind: type) -> str:
    """`in_flags` for messages of the arguments' own checks, in which every name is a flag's."""
    names = {field.name: field.name for field in dataclasses.fields(kind)}
    for name, field in (names | {k: v for k, v in _FIELD_OF.items() if v in names}).items():
        message = re.sub(rf"(?<![\w.-]){name}='([^']*)'", rf"{flag(field)} \1", message)
        message = re.sub(rf"(?<![\w.-]){name}=", f"{flag(field)} ", message)
    return message


def refuse_empty(words: list[str]) -> None:
    """Raises InputError for an empty value or a zero byte; Path("") is the current directory."""
    before = ""
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if equals and not value and name not in _MAY_BE_EMPTY:
            raise InputError(f"{name or 'an argument'} is empty; give a value, or omit it")
        if "\0" in value:
            raise InputError(f"{name or 'an argument'} has a zero byte, which no path or name can have")
        before = name if word.startswith("--") else before


# What tyro says about the value of a flag that may be omitted: a reason for each of its types.
_OPTIONAL = re.compile(r": (?i:no type) matching .* - <class '(?!NoneType)\w+'>: (.*)$")


def _in_one_line(box: str) -> str:
    """The first paragraph of tyro's error box, and the flag that it suggests, in one line."""
    framed = [line.strip("│").rstrip() for line in box.splitlines() if line.startswith("│")]
    lines = framed or [line[1:].rstrip() for line in box.splitlines() if line.strip()][2:]
    paragraphs, current = [], []
    for line in [*lines, "──"]:
        if set(line.strip()) in ({"─"}, {"-"}):
            paragraphs.append(current)
            current = []
        else:
            current.append(line)
    if not any(paragraphs):
        return " ".join(box.split())
    first = paragraphs[0]
    if first[0].strip().startswith("Missing from"):
        names = [line.split()[0] for line in first[1:] if re.match(r" {5}\S", line)]
        return f"{' and '.join(names)} must be given"
    message = " ".join(line.strip() for line in first).rstrip(".")
    for pattern, words in _PYTHON_REASONS:
        message = pattern.sub(words, message)
    message = _OPTIONAL.sub(r": \1", message)
    message = message.removeprefix("Error parsing ").replace("Unrecognized options:", "unknown:")
    similar = [word for lines in paragraphs[1:] if "Perhaps" in lines[0] for word in lines[1].split()[:1]]
    return message[:1].lower() + message[1:] + (f"; did you mean {similar[0]}?" if similar else "")
