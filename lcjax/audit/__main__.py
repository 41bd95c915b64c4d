"""`python -m lcjax.audit`: read, encode, measure, advise."""

from __future__ import annotations

import dataclasses

from lcjax.startup import importing, leave

with importing(__name__ == "__main__"):
    from rich.console import Console

    from lcjax.audit.advice import advice
    from lcjax.audit.figures import audit
    from lcjax.audit.plot import draw
    from lcjax.audit.report import duplicates_table, headline, reuse_table
    from lcjax.cli import entry_point, parse, replacing, tables_console, write_json
    from lcjax.corpus import CorpusArguments, load
    from lcjax.errors import InputError
    from lcjax.tokens.report import windows_table
    from lcjax.train.reporting.terminal import say


@dataclasses.dataclass(frozen=True)
class AuditArguments(CorpusArguments):
    """Whether the data have anything long-range to learn, and what to change if not.

    Counts how much text comes back after 1K, 2K, ... tokens and no nearer, beyond what chance repeats (docs/data.md has the
    equation), long documents, packing and near-duplicates. Examples:

      python -m lcjax.audit books/ --max-seq-length 131072
      python -m lcjax.audit repositories/ --documents repository --max-seq-length 65536 --plot reuse.png
    """

    per_device_train_batch_size: int = 1
    """As in lcjax.train: sequences on the device at once."""
    gradient_accumulation_steps: int = 1
    """As in lcjax.train: batches whose gradients make one step."""
    max_tokens: int = 20_000_000
    """Count reuse and near-duplicates on about so many tokens, in documents drawn at random; about 100 bytes of memory each."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is out of range; it must be at least 1"
                )


@entry_point
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 2 bad input."""
    arguments = parse(AuditArguments, argv, "python -m lcjax.audit")
    console = Console(stderr=True)
    corpus = load(arguments, console)
    say(console, "counting what comes back")
    figures = audit(corpus, arguments.max_seq_length, arguments.max_tokens)
    lines = advice(figures, arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps)
    if arguments.plot:
        with replacing(arguments.plot) as temporary:
            draw(figures, temporary)
    write_json(figures.as_json() | {"advice": lines}, arguments.json)
    tables = tables_console(arguments.json)
    tables.print(headline(figures), reuse_table(figures), windows_table(figures.corpus), duplicates_table(figures))
    for line in lines:
        tables.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    leave(main())
