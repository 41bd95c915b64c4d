"""What all command lines share: where results go, and which exit code and words a fault ends with.

Exit codes: 0 done; 1 the command's own "no" (it does not fit, it leaks, it diverged); 2 what the user can mend, said in one line on
standard error; 130 and 143 after Ctrl-C and SIGTERM; 141 where the reader of standard output has gone (`... | head`). A closed
standard stream counts as the null device.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lcjax import flags
from lcjax.errors import InputError
from lcjax.flags import parse as parse
from lcjax.flags import refuse_empty as refuse_empty
from lcjax.signals import Interrupted, Signals
from lcjax.startup import BROKEN_PIPE, EXIT_CODES, LAST_WORDS, discard, open_missing_streams

NVIDIA_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/dev/dxg"))  # the last one under WSL

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
"""The kinds of pictures that --plot writes."""

# What the file system refuses and the user can mend.
_ENVIRONMENT = {
    errno.EACCES: "check its permissions",
    errno.EDQUOT: "make room, or name another place",
    errno.EFBIG: "make room, or name another place",
    errno.EIO: "check the disk",
    errno.EISDIR: "name a file",
    errno.ELOOP: "check the links",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "make room, or name another place",
    errno.ENOTDIR: "check the path",
    errno.EPERM: "check its permissions",
    errno.EROFS: "name another place",
}


def entry_point(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Turns `main(argv) -> int` into a command's entry point, `main(argv=None) -> int`, that raises on our bugs only.

    The exit codes are those of this module's docstring.
    """

    @functools.wraps(main)
    def entry(argv: list[str] | None = None) -> int:
        if not any(device.exists() for device in NVIDIA_DEVICES):
            logging.getLogger("jax._src.xla_bridge").addFilter(_is_no_idle_plugin)
        flags.forget()
        with _robust_streams():
            try:
                with Signals():
                    return _finished(main, argv)
            except KeyboardInterrupt as stop:
                number = stop.signal if isinstance(stop, Interrupted) else signal.SIGINT
                _last_word(LAST_WORDS[number])
                return EXIT_CODES[number]
            except BrokenPipeError:
                discard(1)
                return BROKEN_PIPE
            except Exception as error:
                refused = as_input_error(error)
                if refused is None:
                    raise
                _last_word(f"error: {flags.in_flags(' '.join(str(refused).splitlines()))}")
                return 2

    return entry


def _finished(main: Callable[[list[str] | None], int], argv: list[str] | None) -> int:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the folder that the command runs in does not exist any more; change to another") from None
    try:
        code = main(argv)
    except SystemExit as stop:  # how tyro ends after --help
        code = 2 if stop.code else 0
    sys.stdout.flush()
    return code


def as_input_error(error: Exception) -> InputError | None:
    """What the user can mend, in words that say how; None for a bug of ours."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        what = str(error.filename or "standard output, or a file,")
        return InputError(
            f"{_shortened(what)} cannot be used ({os.strerror(error.errno)}); {_ENVIRONMENT[error.errno]}"
        )
    # JAX's own error, named by its text: this module imports no JAX.
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        reason = str(error).splitlines()[0] if str(error) else "no memory is left"
        return InputError(
            f"not enough memory ({_shortened(reason)}); use a smaller --max-seq-length, fewer sequences or a smaller model"
        )
    return None


def check_outputs(reads: Sequence[str | Path] = (), **paths: str | Path | None) -> None:
    """Raises InputError where an output, named as its flag is, cannot be written; "-" is standard output.

    Args:
      reads: the files and folders that the command reads, which no output may replace.
    """
    for name, path in paths.items():
        if path and str(path) != "-":
            _check_output(f"--{name}", Path(path))
            _refuse_to_replace(f"--{name}", Path(path), reads)
    picture = paths.get("plot")
    if picture and Path(picture).suffix.lower() not in PICTURES:
        raise InputError(f"--plot {picture} is no picture's name; end it in one of {', '.join(PICTURES)}")


def check_output_dir(name: str, path: Path) -> None:
    """Raises InputError where that directory is not there and cannot be made; whatever is made to know is removed again.

    Args:
      name: what the user calls it, such as --output-dir.
    """
    made: list[Path] = []
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{name} {path} is a file; name a folder")
        for folder in [*reversed(path.absolute().parents), path.absolute()]:
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
        if not os.access(path, os.W_OK | os.X_OK):
            raise InputError(f"{name} {path} cannot be written to (no permission); choose another")
    except OSError as error:
        raise InputError(f"{name} {_shortened(str(path))} cannot be made ({error.strerror}); choose another") from None
    finally:
        for folder in reversed(made):
            folder.rmdir()


def say(console: Console, line: str) -> None:
    """Prints a line as it is: a path may hold [brackets] and :colons:, which are no markup."""
    console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)


def write_json(content: Any, path: str | None) -> None:
    """Writes JSON to a file, to standard output for "-", or nowhere for None."""
    text = json.dumps(content, indent=1) + "\n"
    if path == "-":
        sys.stdout.write(text)
    elif path is not None:
        with replacing(Path(path)) as temporary:
            temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A context whose value is a path to write to; what is there at its end takes the place of `path`, unless it failed.

    What is no file, such as /dev/stdout or a pipe, is written itself.

    Raises:
      InputError: it cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            yield path
            return
        temporary = path.with_name(f".{os.getpid()}.tmp{path.suffix}")
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in _ENVIRONMENT:
            raise
        mend = _ENVIRONMENT[error.errno]
        raise InputError(f"{path} cannot be written ({os.strerror(error.errno)}); {mend}") from error


def tables_console(json_path: str | None) -> Console:
    """Where tables go: where they do not mix with JSON, and whole where nobody's terminal limits their width."""
    to_stderr = json_path == "-"
    terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    return Console(stderr=to_stderr, width=None if terminal else 160)


def _check_output(name: str, path: Path) -> None:
    try:
        parent = path.absolute().parent
        if path.is_dir():
            raise InputError(f"{name} {path} is a folder; name a file")
        if not parent.is_dir():
            raise InputError(f"{name} {path}: the directory {parent} does not exist")
        place = path if path.exists() else parent
        length = len(os.fsencode(path.name))
    except OSError as error:
        raise InputError(f"{name} {_shortened(str(path))} cannot be written ({error.strerror}); name another") from None
    if length > 230:  # what is written first has a longer name
        raise InputError(f"{name} {_shortened(str(path))} has a name of {length} bytes; give a shorter one")
    if not os.access(place, os.W_OK):
        raise InputError(f"{name} {path} cannot be written (no permission for {place}); name another")


def _refuse_to_replace(name: str, path: Path, reads: Sequence[str | Path]) -> None:
    if not path.is_file():
        return
    written = Path(os.path.realpath(path))
    for source in filter(None, map(str, reads)):
        place = Path(os.path.realpath(source))
        if place == written or place in written.parents or (place.is_file() and place.samefile(written)):
            raise InputError(f"{name} {path} would replace a file that is read, of {source}; name another file")


def _is_no_idle_plugin(record: logging.LogRecord) -> bool:
    """Without a GPU, JAX's plugin for one is there to plan with: that it does not start is no news, and JAX logs a traceback."""
    return not record.getMessage().startswith("Jax plugin configuration error")


@contextlib.contextmanager
def _robust_streams() -> Iterator[None]:
    """Within it standard streams are there, and a character that the terminal cannot show is shown as a question mark."""
    open_missing_streams()
    changed = []
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and getattr(stream, "errors", None) == "strict":
            changed.append(reconfigure)
            reconfigure(errors="replace")
    try:
        yield
    finally:
        for reconfigure in changed:
            reconfigure(errors="strict")


def _last_word(line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _shortened(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:100]}...{text[-40:]}"
