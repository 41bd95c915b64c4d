"""Runs `lcjax data show` after its flags are parsed."""

from __future__ import annotations

import sys

from rich.console import Console

from lcjax import weights
from lcjax.cli.terminal import collected_warnings, say
from lcjax.data.load import load_corpus
from lcjax.data.reading.sources import check_data_paths
from lcjax.data.show.arguments import ShowArguments
from lcjax.data.show.report import row_lines, summary_lines
from lcjax.weights.demo import demo_model


def run(arguments: ShowArguments) -> int:
    """Prints rows and the summary; returns the exit code, 0."""
    check_data_paths(arguments.data)
    model = weights.resolve_model(arguments.model or demo_model(), with_weights=False)
    tokenizer = weights.load_tokenizer(model)
    with collected_warnings("lcjax", shown=False) as skipped:
        data = load_corpus(
            arguments.data,
            tokenizer,
            arguments.max_seq_length,
            held_out_fraction=arguments.eval_fraction,
            seed=arguments.seed,
            documents=arguments.documents,
            columns=arguments.columns,
            weights=arguments.data_weights,
            progress=Console(stderr=True),
        )
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    # rich also respects NO_COLOR and TERM=dumb.
    color = sys.stdout.isatty() and console.color_system is not None and not console.no_color
    batches = data.train_dataset(batch_size=1)
    for step in range(min(arguments.rows, len(data.train_plan))):
        batch = batches[step]
        assert batch is not None
        for line in row_lines(data, int(batch["rows"].item()), step + 1, tokenizer, arguments.most_tokens, color=color):
            console.print(line)
        console.print()
    for line in summary_lines(data, skipped):
        say(console, line)
    return 0
