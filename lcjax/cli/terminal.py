"""What is printed on the terminal in addition to progress: warnings of lcjax only."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import warnings
from collections.abc import Iterator

from rich.console import Console

from lcjax.cli.flags import in_flags
from lcjax.cli.outputs import printable


def say(console: Console, line: str) -> None:
    """Prints a line literally: [brackets] and :colons: in a path are not markup."""
    console.print(printable(line), highlight=False, markup=False, emoji=False, soft_wrap=True)


def tables_console(json_path: str | None) -> Console:
    """A console for tables: 160 columns wide if it is not a terminal.

    It is standard error if JSON goes to standard output.
    """
    to_stderr = json_path == "-"
    terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    return Console(stderr=to_stderr, width=None if terminal else 160)


class _ConsoleHandler(logging.Handler):
    """Prints records on a rich console, so that they appear above a live progress bar."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        say(self._console, f"{record.levelname.lower()}: {in_flags(self.format(record))}")


@contextlib.contextmanager
def show_warnings(console: Console) -> Iterator[None]:
    """A context in which warnings of lcjax go to `console`."""
    logger, handler = logging.getLogger("lcjax"), _ConsoleHandler(console)
    propagates = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # otherwise a handler of the root logger could print it twice
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


@contextlib.contextmanager
def collected_warnings(name: str, *, shown: bool = True) -> Iterator[list[str]]:
    """A context with the list of the warnings of a logger, and of those below it, so far.

    Args:
      name: of the logger.
      shown: whether other handlers get the warnings as well.
    """
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger(name), Collector(logging.WARNING)
    propagates = logger.propagate
    logger.addHandler(handler)
    logger.propagate = propagates and shown
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


@functools.cache
def mute_libraries() -> None:
    """Silences, for the rest of the process, library messages that the user cannot act on.

    orbax logs every phase of every save, its clean-up of incomplete saves and, with a traceback,
    errors that it raises anyway. If one array cannot be written, the writes of the others end after
    orbax has closed their event loop, some of them during interpreter shutdown. matplotlib logs
    where its font cache is. JAX warns if a compiled program cannot be cached; the consequence for a
    run is reported when it is resumed.
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
