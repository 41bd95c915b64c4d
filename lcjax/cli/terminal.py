"""What reaches the user's terminal beside the progress: lcjax's warnings, and not the chatter of the libraries below."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import warnings
from collections.abc import Iterator

from rich.console import Console

from lcjax.cli.flags import in_flags


def say(console: Console, line: str) -> None:
    """Prints a line as it is: a path may hold [brackets] and :colons:, which are no markup."""
    console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)


def tables_console(json_path: str | None) -> Console:
    """Where tables go: where they do not mix with JSON, and whole where nobody's terminal limits their width."""
    to_stderr = json_path == "-"
    terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    return Console(stderr=to_stderr, width=None if terminal else 160)


class _ConsoleHandler(logging.Handler):
    """Prints records on a rich console, so that they appear above a live progress bar and not through it."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        say(self._console, f"{record.levelname.lower()}: {in_flags(self.format(record))}")


@contextlib.contextmanager
def shown_warnings(console: Console) -> Iterator[None]:
    """A context in which warnings of lcjax go to `console`."""
    logger, handler = logging.getLogger("lcjax"), _ConsoleHandler(console)
    propagates = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # some library may have given the root logger a handler, which would say it twice
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


@functools.cache
def mute_libraries() -> None:
    """Silences, to the end of the process, what libraries print and the user can do nothing about.

    orbax logs every phase of every save, its clean-up of torn saves and, with a traceback, whatever it raises anyway. Where one
    array cannot be written, the writes of the others end after orbax has closed the event loop that they report to, some of them
    while the interpreter shuts down. matplotlib tells where its font cache lies. JAX warns where a compiled program cannot be kept;
    what that means for a run is said when it is resumed.
    """
    for name in ("absl", "asyncio", "matplotlib"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry", UserWarning)
    previous = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    sys.unraisablehook = hook
