"""The numbers of a corpus as tables that can be read in seconds."""

from __future__ import annotations

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from lcjax.tokens.figures import TokenFigures, short

_BAR_WIDTH = 32


def headline(figures: TokenFigures) -> str:
    """The size of the corpus, in one line."""
    line = f"{figures.documents:,} document{'s' * (figures.documents != 1)}, {figures.tokens:,} tokens"
    return line if figures.learned == figures.tokens else f"{line}, {figures.learned:,} of them with a loss"


def histogram_table(figures: TokenFigures) -> Table:
    """Documents and tokens by length."""
    table = Table(title="by the length of the document", title_justify="left")
    for name in ("tokens in it", "documents", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("share of all tokens", no_wrap=True)
    most = max(bucket.tokens for bucket in figures.histogram) or 1
    for bucket in figures.histogram:
        bar = Bar(most, 0, bucket.tokens, width=_BAR_WIDTH)
        table.add_row(
            f"{short(bucket.start)} to {short(bucket.stop)}", f"{bucket.documents:,}", f"{bucket.tokens:,}", bar
        )
    return table


def longest_table(figures: TokenFigures) -> Table:
    """The longest documents."""
    table = Table(title=f"longest (the median has {figures.median:,} tokens)", title_justify="left")
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("document")
    for name, tokens in figures.longest:
        table.add_row(f"{tokens:,}", Text(name))
    return table


def windows_table(figures: TokenFigures) -> Table:
    """How documents are packed and cut in windows of one length."""
    windows = figures.windows
    table = Table(title=f"in windows of {windows.max_seq_length:,} tokens", title_justify="left", show_header=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    for name, figure, note in (
        ("windows", f"{windows.count:,}", "training sequences"),
        ("documents in one", f"{windows.documents_per_window:.1f}", "or parts of documents, on average"),
        ("packed", f"{windows.packed_share:.1%}", "of the tokens share their window with another document"),
        ("cut", f"{windows.cut_share:.1%}", "of the tokens are in documents that are cut into windows"),
        ("padded", f"{windows.padded_share:.1%}", "of the positions have no token"),
    ):
        table.add_row(name, figure, note)
    return table
