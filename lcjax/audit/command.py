"""Runs `lcjax audit` after its flags are parsed: reads, encodes, measures, advises."""

from __future__ import annotations

import dataclasses

from rich.console import Console

from lcjax.audit.advice import SHORT, advice, advice_on_joining
from lcjax.audit.arguments import AuditArguments
from lcjax.audit.figures import audit
from lcjax.audit.joining import MOST_TOKENS, compare
from lcjax.audit.plot import draw
from lcjax.audit.report import duplicates_table, headline, joining_table, reuse_table
from lcjax.cli.outputs import output_file, write_json
from lcjax.cli.terminal import say, tables_console
from lcjax.data.corpus import load
from lcjax.tokens.report import windows_table


def run(arguments: AuditArguments) -> int:
    """Writes and prints numbers and advice; returns the exit code, 0."""
    console = Console(stderr=True)
    corpus = load(arguments, console)
    say(console, "counting repeated text")
    figures = audit(corpus, arguments.max_seq_length, arguments.max_tokens)
    lines = advice(figures, arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps)
    comparison = None
    if arguments.max_seq_length > SHORT:
        say(console, "comparing ways to form documents")
        separate = dataclasses.replace(arguments, documents="file")
        texts = corpus if arguments.documents == "file" else load(separate, console)
        comparison = compare(texts, arguments.paths, arguments.max_seq_length, min(arguments.max_tokens, MOST_TOKENS))
        lines.append(advice_on_joining(comparison))
    if arguments.plot:
        with output_file(arguments.plot) as temporary:
            draw(figures, temporary)
    joining = {"joining": dataclasses.asdict(comparison)} if comparison else {}
    write_json(figures.as_json() | joining | {"advice": lines}, arguments.json)
    tables = tables_console(arguments.json)
    tables.print(headline(figures), reuse_table(figures), windows_table(figures.corpus), duplicates_table(figures))
    if comparison:
        tables.print(joining_table(comparison))
    for line in lines:
        tables.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)
    return 0
