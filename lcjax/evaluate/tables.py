"""Results as tables that can be read in seconds."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from lcjax.evaluate.context import ContextLoss
from lcjax.evaluate.needle import TASKS, Cell
from lcjax.evaluate.positions import Bucket
from lcjax.evaluate.results import Results


def tables(results: Results) -> Iterator[Table]:
    """The tables of the evaluations that were made."""
    if results.position:
        yield position_table(results.position)
    if results.context:
        yield context_table(results.context)
    for model, cells in results.needle.items():
        yield from (needle_table(model, task, cells) for task in TASKS)


def position_table(found: dict[str, list[Bucket]]) -> Table:
    """Loss by position, one column per model."""
    table = _table("loss by position in the document (nats per token)", "positions", "tokens", *_columns(found))
    for buckets in zip(*found.values(), strict=True):
        first = buckets[0]
        table.add_row(first.label, f"{first.tokens:,}", *_figures([b.loss for b in buckets]))
    return table


def context_table(found: dict[str, list[ContextLoss]]) -> Table:
    """Loss and perplexity of the same tokens by context length, columns for each model."""
    title = "the same tokens, given only this much context before them (nats per token)"
    table = _table(title, "context", "tokens", *_columns(found), *(f"perplexity, {model}" for model in found))
    for losses in zip(*found.values(), strict=True):
        perplexities = [f"{loss.perplexity:,.2f}" for loss in losses]
        figures = _figures([loss.loss for loss in losses])
        table.add_row(f"{losses[0].context:,}", f"{losses[0].tokens:,}", *figures, *perplexities)
    return table


def needle_table(model: str, task: str, cells: list[Cell]) -> Table:
    """The share retrieved, depth by length."""
    own = {(cell.depth, cell.length): cell for cell in cells if cell.task == task}
    depths, lengths = sorted({cell.depth for cell in cells}), sorted({cell.length for cell in cells})
    table = _table(f"{task} retrieved, {model}", "depth", *(f"{length:,}" for length in lengths))
    for depth in depths:
        table.add_row(f"{depth:.0%}", *(f"{own[depth, length].retrieved:.0%}" for length in lengths))
    return table


def _columns(found: dict[str, list]) -> list[str]:
    return [*found, "change"] if len(found) > 1 else list(found)


def _figures(losses: list[float]) -> list[str]:
    figures = [f"{loss:.4f}" for loss in losses]
    return [*figures, f"{losses[-1] - losses[0]:+.4f}"] if len(losses) > 1 else figures


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", min_width=len(title))
    for column in columns:
        table.add_column(column, justify="right")
    return table
