"""`python -m lcjax.tokens`: read, encode, count."""

from __future__ import annotations

import dataclasses

from lcjax.startup import importing, leave

with importing(__name__ == "__main__"):
    from rich.console import Console

    from lcjax.cli import entry_point, parse, replacing, tables_console, write_json
    from lcjax.corpus import CorpusArguments, load
    from lcjax.tokens.figures import token_figures
    from lcjax.tokens.plot import draw
    from lcjax.tokens.report import headline, histogram_table, longest_table, windows_table


@dataclasses.dataclass(frozen=True)
class TokenArguments(CorpusArguments):
    """How many tokens the data have, document by document, and how they fill windows of a length.

    Examples:

      python -m lcjax.tokens docs/ rows.jsonl --model DIR_OR_HUB_ID --max-seq-length 8192
      python -m lcjax.tokens repositories/ --documents repository --plot lengths.png
    """


@entry_point
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 2 bad input."""
    arguments = parse(TokenArguments, argv, "python -m lcjax.tokens")
    figures = token_figures(load(arguments, Console(stderr=True)), arguments.max_seq_length)
    if arguments.plot:
        with replacing(arguments.plot) as temporary:
            draw(figures, temporary)
    write_json(figures.as_json(), arguments.json)
    tables_console(arguments.json).print(
        headline(figures), histogram_table(figures), longest_table(figures), windows_table(figures)
    )
    return 0


if __name__ == "__main__":
    leave(main())
