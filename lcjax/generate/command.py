"""Runs `lcjax generate` after its flags are parsed: loads, generates."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from signal import SIGINT

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lcjax import weights
from lcjax.cli.model_loading import check_adapter, load_model
from lcjax.cli.signals import Interrupted
from lcjax.cli.terminal import mute_libraries, say, show_warnings
from lcjax.errors import InputError
from lcjax.generate.arguments import GenerateArguments
from lcjax.generate.chat import chat_ids, message
from lcjax.generate.generator import Generator, check_length
from lcjax.generate.text import TextStream, stop_ids

# The default length of a conversation: a cache for a large model's whole context would fill a GPU.
_CONVERSATION_TOKENS = 8192


def run(arguments: GenerateArguments) -> int:
    """Generates; returns the exit code: 0 success, 2 bad input, 130 interrupted."""
    console = Console(stderr=True)
    mute_libraries()
    with show_warnings(console):
        command = Command(arguments, console)
        if arguments.is_conversation:
            command.converse()
        else:
            command.answer()
    return 0


class Command:
    """One invocation of the command line."""

    def __init__(self, arguments: GenerateArguments, console: Console):
        self.arguments = arguments
        self.console = console
        check_adapter(arguments)
        self.path = weights.resolve_model(arguments.model)
        self.config = weights.open_model_files(self.path).config
        self.tokenizer = weights.load_tokenizer(self.path)
        self.stop = stop_ids(self.tokenizer, self.path)

    def answer(self) -> None:
        """Continues the prompt."""
        text = self.arguments.text()
        if self.arguments.chat:
            ids = chat_ids(self.tokenizer, [*self._system(), message("user", text)])
        else:
            # verbose=False, because otherwise it would warn of every prompt beyond the trained
            # context.
            ids = self.tokenizer(text, verbose=False)["input_ids"]
        capacity = self.arguments.max_seq_length or len(ids) + self.arguments.max_new_tokens
        check_length(ids, capacity)  # before weights are loaded
        generator = self._generator(capacity)
        self._write(generator, ids)

    def converse(self) -> None:
        """Answers line by line until standard input ends."""
        chat_ids(
            self.tokenizer, [*self._system(), message("user", "")]
        )  # report an error now, not after the first turn
        usable = min(self.config.max_position_embeddings, _CONVERSATION_TOKENS)
        capacity = self.arguments.max_seq_length or usable
        generator = self._generator(capacity)
        messages = self._system()
        for turn in _lines():
            messages.append(message("user", turn))
            ids = chat_ids(self.tokenizer, messages)
            if len(ids) > capacity:
                raise InputError(
                    f"the conversation now has {len(ids):,} tokens, more than the {capacity:,} of --max-seq-length; "
                    "start a new conversation, with a larger --max-seq-length if it is to be longer"
                )
            messages.append(message("assistant", self._write(generator, ids, stops_on_interrupt=True)))

    def _system(self) -> list[dict[str, str]]:
        return [] if self.arguments.system is None else [message("system", self.arguments.system)]

    def _generator(self, capacity: int) -> Generator:
        say(self.console, f"loading {self.arguments.model}")
        base, adapted, _ = load_model(self.arguments, capacity)
        return Generator(adapted or base, capacity)

    def _write(self, generator: Generator, ids: Sequence[int], *, stops_on_interrupt: bool = False) -> str:
        """Prints the continuation of `ids` as it is generated, then the speed; returns the text.

        The speed goes to standard error. With `stops_on_interrupt`, Ctrl-C ends the text but not
        the command.
        """
        pieces: list[str] = []
        try:
            self._write_pieces(generator, ids, pieces)
        except Interrupted as stop:
            if not (stops_on_interrupt and stop.signal == SIGINT):
                raise
            print(flush=True)
            say(self.console, "stopped; Ctrl-C at the prompt, or Ctrl-D, ends the conversation")
        return "".join(pieces)

    def _write_pieces(self, generator: Generator, ids: Sequence[int], pieces: list[str]) -> None:
        stream, count = TextStream(self.tokenizer), 0
        began = read = time.perf_counter()
        if not self.console.is_terminal:
            say(self.console, f"reading the prompt, {len(ids):,} tokens")
        with _reading(self.console) as progress:
            task = progress.add_task("reading the prompt", total=len(ids))
            tokens = generator.generate(
                ids,
                self.arguments.sampling(),
                max_new_tokens=self.arguments.max_new_tokens,
                stop=self.stop,
                seed=self.arguments.seed,
                on_prefill=lambda done: progress.update(task, completed=done),
            )
            for count, token in enumerate(tokens, start=1):
                if count == 1:
                    read = time.perf_counter()
                    progress.stop()
                pieces.append(stream.add(token))
                print(pieces[-1], end="", flush=True)
        pieces.append(stream.finish())
        print(pieces[-1], flush=True)
        rate = (count - 1) / (time.perf_counter() - read) if count > 1 else 0.0
        say(self.console, f"{len(ids):,} tokens read in {read - began:.1f} s, {count:,} written, {rate:.1f} per second")


def _reading(console: Console) -> Progress:
    """A progress bar until the first token; nothing without a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _lines() -> Iterator[str]:
    """The nonempty lines of standard input, until its end."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt)
            line.encode()  # fails for undecodable bytes, e.g. in the locale C
        except EOFError:
            return
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            raise InputError(f"standard input is not UTF-8 (byte {error.start} of a line); give text") from None
        if line.strip():
            yield line
