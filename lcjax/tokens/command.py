"""Runs `lcjax tokens` after its flags are parsed: reads, encodes, counts."""

from __future__ import annotations

from rich.console import Console

from lcjax.cli.outputs import output_file, write_json
from lcjax.cli.terminal import tables_console
from lcjax.data.corpus import load
from lcjax.tokens.arguments import TokenArguments
from lcjax.tokens.figures import token_figures
from lcjax.tokens.plot import draw
from lcjax.tokens.report import headline, histogram_table, longest_table, windows_table


def run(arguments: TokenArguments) -> int:
    """Writes and prints the numbers; returns the exit code, 0."""
    figures = token_figures(load(arguments, Console(stderr=True)), arguments.max_seq_length)
    if arguments.plot:
        with output_file(arguments.plot) as temporary:
            draw(figures, temporary)
    write_json(figures.as_json(), arguments.json)
    tables_console(arguments.json).print(
        headline(figures), histogram_table(figures), longest_table(figures), windows_table(figures)
    )
    return 0
