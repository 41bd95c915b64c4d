"""`python -m lcjax.evaluate`: parse, load, measure, report."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from pathlib import Path

from lcjax.startup import importing, leave

with importing(__name__ == "__main__"):
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from lcjax import cli
    from lcjax.errors import InputError
    from lcjax.evaluate.arguments import EvaluateArguments
    from lcjax.evaluate.context import contexts_up_to, loss_by_context
    from lcjax.evaluate.needle import needles
    from lcjax.evaluate.pictures import draw
    from lcjax.evaluate.positions import loss_by_position
    from lcjax.evaluate.results import Results
    from lcjax.evaluate.tables import tables
    from lcjax.evaluate.text import HeldOut
    from lcjax.model import Llama
    from lcjax.train.terminal import mute_libraries, say, shown_warnings


@cli.entry_point
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    arguments = cli.parse(EvaluateArguments, argv, "python -m lcjax.evaluate")
    console = Console(stderr=True)
    mute_libraries()
    with shown_warnings(console):
        folder = _output_dir(arguments)
        results = evaluate(arguments, console)
        described = {"model": arguments.model, "adapter": arguments.adapter and str(arguments.adapter)}
        settings = {"data": arguments.data, "max_seq_length": arguments.max_seq_length, "seed": arguments.seed}
        cli.write_json(described | settings | results.as_json(), str(folder / "results.json"))
        width = None if sys.stdout.isatty() else 120
        Console(width=width).print(*tables(results))
        for path in [folder / "results.json", *draw(results, folder)]:
            say(console, str(path))
    return 0


def evaluate(arguments: EvaluateArguments, console: Console) -> Results:
    """All that is asked for, of the base model and of the adapter, if there is one.

    Raises:
      InputError: data, model or adapter that the user can mend.
    """
    for path in arguments.data:
        if not Path(path).exists():
            raise InputError(f"{path} does not exist; check the path of --data")
    base, adapted, tokenizer = arguments.load(arguments.max_seq_length)
    text = HeldOut.load(
        arguments.data,
        tokenizer,
        arguments.max_seq_length,
        eval_fraction=arguments.eval_fraction,
        seed=arguments.seed,
        vocab_size=base.config.vocab_size,
        progress=console.is_terminal,
    )
    models = {"base": base} if adapted is None else {"base": base, "adapter": adapted}
    results = Results()
    with _progress(console) as progress:
        for task in arguments.tasks:
            for name, model in models.items():
                bar = progress.add_task(f"{task}, {name}", total=1.0)

                def advance(share: float, bar=bar) -> None:
                    progress.update(bar, completed=share)

                getattr(results, task)[name] = _MEASURES[task](model, tokenizer, text, arguments, advance)
                advance(1.0)
    return results


def _position(model: Llama, tokenizer, text: HeldOut, arguments: EvaluateArguments, advance: Callable[[float], None]):
    batches = list(text.batches(arguments.eval_batches))

    def told():
        for number, batch in enumerate(batches):
            advance(number / len(batches))
            yield batch

    return loss_by_position(model, told()).buckets()


def _context(model: Llama, tokenizer, text: HeldOut, arguments: EvaluateArguments, advance: Callable[[float], None]):
    documents = text.long_documents(contexts_up_to(arguments.max_seq_length)[-1], arguments.documents)
    return loss_by_context(model, documents, arguments.max_seq_length, advance)


def _needle(model: Llama, tokenizer, text: HeldOut, arguments: EvaluateArguments, advance: Callable[[float], None]):
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


def _output_dir(arguments: EvaluateArguments) -> Path:
    name = Path(arguments.model).stem.lower() or "model"
    folder = arguments.output_dir or Path("runs") / f"{name}-evaluation-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output-dir {folder} cannot be made ({error.strerror}); choose another") from None
    return folder


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn()
    return Progress(
        *columns, TextColumn("eta"), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )


if __name__ == "__main__":
    leave(main())
