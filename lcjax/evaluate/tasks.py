"""The tasks of an evaluation: which its text allows, and their measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lcjax.errors import InputError
from lcjax.evaluate.arguments import EVALUATIONS, EvaluateArguments
from lcjax.evaluate.context import loss_by_context
from lcjax.evaluate.lengths import SHORTEST_CONTEXT, contexts_up_to
from lcjax.evaluate.needle import check_needles, needles
from lcjax.evaluate.positions import loss_by_position
from lcjax.evaluate.results import Results
from lcjax.evaluate.text import Text
from lcjax.model import Llama

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def possible_tasks(arguments: EvaluateArguments, tokenizer, text: Text, say_line: Callable[[str], None]) -> list[str]:
    """The requested tasks, checked before the first one starts.

    For a run without --tasks, those that its text allows.

    Raises:
      InputError: a task that was explicitly requested needs longer text.
    """
    possible = []
    for task in arguments.tasks or EVALUATIONS:
        try:
            _CHECKS[task](tokenizer, text, arguments)
        except InputError as error:
            if arguments.tasks:
                raise
            say_line(f"{task} is omitted: {error}")
        else:
            possible.append(task)
    return possible


def measure(
    tasks: Sequence[str],
    models: Mapping[str, Llama],
    tokenizer: PreTrainedTokenizerFast,
    text: Text,
    arguments: EvaluateArguments,
    console: Console,
) -> Results:
    """Runs every task on every model, with a progress bar if `console` is a terminal."""
    results = Results()
    with _progress(console) as progress:
        for task in tasks:
            for name, model in models.items():
                bar = progress.add_task(f"{task}, {name}", total=1.0)

                def advance(share: float, bar=bar) -> None:
                    progress.update(bar, completed=share)

                getattr(results, task)[name] = _MEASURES[task](model, tokenizer, text, arguments, advance)
                advance(1.0)
    return results


def _check_context(tokenizer, text: Text, arguments: EvaluateArguments) -> None:
    if arguments.max_seq_length < SHORTEST_CONTEXT:
        raise InputError(
            f"--max-seq-length {arguments.max_seq_length} is below {SHORTEST_CONTEXT}, the shortest context compared"
        )
    text.long_documents(contexts_up_to(arguments.max_seq_length)[-1], arguments.num_documents)


def _check_needle(tokenizer, text: Text, arguments: EvaluateArguments) -> None:
    lengths = arguments.needle_lengths()
    if not lengths:
        raise InputError(f"--max-seq-length {arguments.max_seq_length} is too short for needles in text")
    check_needles(tokenizer, text.haystack, lengths)


_CHECKS = {"position": lambda *_: None, "context": _check_context, "needle": _check_needle}


def _position(model: Llama, tokenizer, text: Text, arguments: EvaluateArguments, advance: Callable[[float], None]):
    batches = list(text.batches(arguments.eval_batches))

    def with_progress():
        for number, batch in enumerate(batches):
            advance(number / len(batches))
            yield batch

    return loss_by_position(model, with_progress()).buckets()


def _context(model: Llama, tokenizer, text: Text, arguments: EvaluateArguments, advance: Callable[[float], None]):
    documents = text.long_documents(contexts_up_to(arguments.max_seq_length)[-1], arguments.num_documents)
    return loss_by_context(model, documents, arguments.max_seq_length, advance)


def _needle(model: Llama, tokenizer, text: Text, arguments: EvaluateArguments, advance: Callable[[float], None]):
    return needles(
        model,
        tokenizer,
        text.haystack,
        arguments.needle_lengths(),
        arguments.needle_depths(),
        samples=arguments.samples,
        seed=arguments.seed,
        on_row=advance,
    )


_MEASURES = {"position": _position, "context": _context, "needle": _needle}


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn()
    return Progress(
        *columns, TextColumn("eta"), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )
