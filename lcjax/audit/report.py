"""The numbers of an audit as tables that can be read in seconds."""

from __future__ import annotations

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from lcjax.audit.figures import AuditFigures
from lcjax.audit.joining import Comparison
from lcjax.tokens.figures import short

_BAR_WIDTH = 16
_LISTED_GROUPS = 5


def headline(figures: AuditFigures) -> str:
    """How much of the corpus is long, in one line."""
    corpus = figures.corpus
    return (
        f"{corpus.documents:,} documents, {corpus.tokens:,} tokens; longer than "
        f"{short(figures.long)}: {figures.long_documents:.1%} of the documents, "
        f"{figures.long_tokens:.1%} of the tokens"
    )


def reuse_table(figures: AuditFigures) -> Table:
    """Repeated text, by the distance to its last occurrence."""
    table = Table(title="text that repeats at this distance, and no nearer", title_justify="left")
    for name in ("distance", "tokens that\nreach it", "repeat", "by chance", "beyond\nchance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    most = max((bucket.share for bucket in figures.reuse), default=0)
    for bucket in figures.reuse:
        tokens = bucket.tokens or 1
        table.add_row(
            f"{short(bucket.start)} to {short(bucket.stop)}",
            f"{bucket.tokens / max(1, figures.sampled_tokens):.1%}",
            f"{bucket.observed / tokens:.2%}",
            f"{bucket.expected / tokens:.2%}",
            f"{bucket.share:.2%}",
            Bar(most or 1, 0, max(0.0, bucket.share), width=_BAR_WIDTH),
        )
    return table


def joining_table(comparison: Comparison) -> Table:
    """What each way of forming documents brings together."""
    title = (
        f"text of the same window that repeats from 1K or more before, by --documents ({comparison.tokens:,} tokens)"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("--documents")
    for name in ("documents", "repeat", "by chance", "gain"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("file", "", f"{comparison.separate:.2%}", "", "")
    for way in comparison.joinings:
        table.add_row(way.documents, f"{way.number:,}", f"{way.repeats:.2%}", f"{way.by_chance:.2%}", f"{way.gain:.2%}")
    return table


def duplicates_table(figures: AuditFigures) -> Table:
    """The largest groups of near-duplicates."""
    duplicates = figures.duplicates
    share = duplicates.tokens / max(1, figures.sampled_tokens)
    title = f"near-duplicates: {duplicates.documents:,} documents, {share:.1%} of the tokens"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("group")
    for group in duplicates.groups[:_LISTED_GROUPS]:
        more = f" and {len(group) - 3} more" if len(group) > 3 else ""
        table.add_row(Text(", ".join(group[:3]) + more))
    return table
