"""The exception for errors that the user can correct, and its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A wrong path, file, flag or combination of flags.

    The message names the thing, the value and the remedy in one line. Command lines print only the
    message and exit with code 2 (see `lcjax.cli.entry`). Every other exception is a bug in lcjax
    and shows its traceback.
    """


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def unknown(what: str, value: str, known: Iterable[str]) -> str:
    """The message for a name that is not in `known`, with the closest matches first."""
    known = list(known)
    lower = value.lower()
    nearest = [name for name in known if name.startswith(lower)] or difflib.get_close_matches(lower, known, cutoff=0.4)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    named = f"{what} {value!r}" if " " in what else f"{what}={value!r}"
    return f"{named} is unknown; {hint}use one of {', '.join(known)}"
