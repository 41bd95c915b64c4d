"""The help of a command: no line breaks inside of values, and paragraphs as wide as the terminal.

The library that parses flags breaks lines at every comma, as in "32,768", and does not break those
of a command's description.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import re
import shutil
import sys
import textwrap
import typing
from typing import Annotated, Any

import tyro

# Stands for a comma between two characters of a word while lines are broken; of a private area.
_COMMA = "\ue000"


class _Captured(io.StringIO):
    """What is printed, with the colors and frames that standard output can show."""

    def __init__(self):
        super().__init__()
        self._stream = sys.stdout

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.encoding or "utf-8"


def print_help(kind: type, program: str, default: Any, options: dict[str, Any]) -> None:
    """Prints the help of a dataclass of flags.

    Args:
      default: values of flags that are not given; None for those of the dataclass.
      options: further arguments of `tyro.cli`.
    """
    captured = _Captured()
    options = {"description": inspect.getdoc(kind), **options}
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(captured):
        tyro.cli(_explained(kind, default), args=["--help"], prog=program, **options)
    print(_tidied(captured.getvalue()), end="")


def help_texts(kind: type) -> dict[str, str]:
    """The docstring after each field, of the class and of its base classes."""
    texts: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in itertools.pairwise(tree.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                    texts[name] = re.sub(r"(?<=\S),(?=\S)", _COMMA, " ".join(docstring.split()))
    return texts


def _explained(kind: type, default: Any) -> type:
    """A dataclass with the same flags, whose texts are those of `help_texts`."""
    if dataclasses.is_dataclass(dataclasses.fields(kind)[0].type):
        return kind  # it consists of sections, which have their texts
    texts, types = help_texts(kind), typing.get_type_hints(kind, include_extras=True)
    fields = []
    for field in dataclasses.fields(kind):
        own = {"default": field.default, "default_factory": field.default_factory}
        given = own if default is None else {"default": getattr(default, field.name)}
        hint = Annotated[types[field.name], tyro.conf.arg(help=texts[field.name])]
        fields.append((field.name, hint, dataclasses.field(**given)))
    return dataclasses.make_dataclass(kind.__name__, fields, frozen=True)


def _tidied(text: str) -> str:
    lines = text.replace(_COMMA, ",").split("\n")
    width = shutil.get_terminal_size().columns
    return "\n".join(itertools.chain.from_iterable(_wrapped(line, width) for line in lines))


def _wrapped(line: str, width: int) -> list[str]:
    """The lines of a paragraph; an indented line is a command to copy."""
    if not line[:1].isalpha() or len(line) <= width:
        return [line]
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
