"""Writes report.html: a run on one page that needs no network.

All text from the data, the prompts and the settings is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from lcjax.cli.outputs import written_atomically
from lcjax.report.curves import draw, of_steps
from lcjax.report.records import RunRecords, read_rows
from lcjax.report.summary import summary

PAGE = "report.html"
_MOST_SAMPLES = 60
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; background: #f5f7fa; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p.where { color: #616e7c; margin: 0 0 1.5rem; overflow-wrap: anywhere; }
section.card, figure { background: white; border: 1px solid #e4e7eb; border-radius: 10px; padding: 1rem 1.25rem; margin: 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); gap: 1rem; }
figcaption { font-weight: 600; margin-bottom: .25rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid #eef1f4; }
th { font-weight: 600; white-space: nowrap; color: #3e4c59; }
td { overflow-wrap: anywhere; }
td.text { white-space: pre-wrap; }
table.map { width: auto; } table.map td, table.map th { text-align: center; padding: .35rem .8rem; border: 2px solid white; }
details summary { cursor: pointer; font-weight: 600; }
"""


def write_report(folder: Path) -> Path:
    """Writes the page of the run in `folder`, all or nothing; returns its path.

    Raises:
      InputError: the folder has no record of a run.
      OSError: the page cannot be written; a former one still exists.
    """
    path = folder / PAGE
    with written_atomically(path) as temporary:
        temporary.write_text(page(RunRecords.read(folder)), encoding="utf-8")
    return path


def page(run: RunRecords) -> str:
    """The page of a run, as HTML."""
    title = escape(Path(run.arguments["model"]).name or "a model")
    sections = [_summary(run), _curves(run), *_evaluations(run.folder), *_samples(run.folder), _settings(run)]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}: a run of lcjax</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head><body><main>\n<h1>{title}</h1>\n"
        f'<p class="where">{escape(str(run.folder))}, started {escape(str(run.record["started"]))}</p>\n'
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def _summary(run: RunRecords) -> str:
    return f'<section class="card">{_table(summary(run).items())}</section>'


def _curves(run: RunRecords) -> str:
    found = []
    losses = [of_steps(run.steps, "loss", "training"), of_steps(run.evaluations, "eval_loss", "held out")]
    losses = [curve for curve in losses if curve[1]]
    if losses:
        found.append(_figure("Loss", draw(losses, "step", "nats per token")))
    for field, name in (("learning_rate", "Learning rate"), ("grad_norm", "Gradient norm")):
        if (curve := of_steps(run.steps, field, name))[1]:
            found.append(_figure(name, draw([curve], "step", name.lower())))
    if run.evaluations and (by_position := run.evaluations[-1].get("eval_loss_by_position")):
        first = run.evaluations[0]["eval_loss_by_position"]
        curves = [(name, [int(at) for at in row], list(row.values())) for name, row in _named(first, by_position)]
        svg = draw(curves, "position in the document", "nats per token", by_powers=True)
        found.append(_figure("Held-out loss by position", svg))
    return f'<h2>Curves</h2><div class="grid">{"".join(found)}</div>'


def _named(first: dict[str, float], last: dict[str, float]) -> list[tuple[str, dict[str, float]]]:
    return [("after", last)] if first is last else [("before", first), ("after", last)]


def _evaluations(folder: Path) -> Iterator[str]:
    """The newest results of lcjax.evaluate --run in this folder."""
    for path in sorted(folder.glob("evaluation-*/results.json"), reverse=True)[:1]:
        try:
            results = json.loads(path.read_bytes())
            shown = [*_positions(results.get("position", {})), *_needle(results.get("needle", {}))]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # not written by this version of lcjax.evaluate
        yield f'<h2>Evaluation</h2><p class="where">{escape(path.parent.name)}</p><div class="grid">{"".join(shown)}</div>'


def _positions(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    curves = [(model, [b["start"] for b in buckets], [b["loss"] for b in buckets]) for model, buckets in found.items()]
    if curves:
        svg = draw(curves, "position in the document", "nats per token", by_powers=True)
        yield _figure("Loss by position", svg)


def _needle(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Maps of the share that was retrieved: a row for each depth, a column for each length."""
    for model, cells in found.items():
        for task in dict.fromkeys(cell["task"] for cell in cells):
            own = {(c["depth"], c["length"]): float(c["retrieved"]) for c in cells if c["task"] == task}
            lengths, depths = sorted({length for _, length in own}), sorted({depth for depth, _ in own})
            head = "".join(f"<th>{int(length):,}</th>" for length in lengths)
            rows = "".join(
                f"<tr><th>{depth:.0%}</th>{''.join(_cell(own.get((depth, length))) for length in lengths)}</tr>"
                for depth in depths
            )
            title = f"{task} retrieved, {model}"
            yield _figure(title, f'<table class="map"><tr><th>depth</th>{head}</tr>{rows}</table>')


def _cell(share: float | None) -> str:
    if share is None:
        return "<td></td>"
    # From red over yellow to green.
    return f'<td style="background: hsl({120 * share:.0f} 60% 78%)">{share:.0%}</td>'


def _samples(folder: Path) -> Iterator[str]:
    rows = read_rows(folder / "samples.jsonl")[-_MOST_SAMPLES:]
    if rows:
        body = "".join(
            f'<tr><td>{row["step"]:,}</td><td class="text">{escape(_prompt(row["prompt"]))}</td>'
            f'<td class="text">{escape(str(row["text"]))}</td></tr>'
            for row in rows
        )
        head = "<tr><th>step</th><th>prompt</th><th>text of the model</th></tr>"
        yield f'<h2>Samples</h2><section class="card"><table>{head}{body}</table></section>'


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, list):
        return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)
    return str(prompt)


def _settings(run: RunRecords) -> str:
    parts = [("Arguments", run.arguments), ("What followed from them", run.record.get("resolved", {}))]
    shown = "".join(
        f'<section class="card"><details><summary>{name}</summary>{_table(values.items())}</details></section>'
        for name, values in parts
        if values
    )
    return f'<h2>Settings</h2><div class="grid">{shown}</div>'


def _table(rows: Any) -> str:
    body = "".join(f"<tr><th>{escape(str(name))}</th><td>{escape(_text(value))}</td></tr>" for name, value in rows)
    return f"<table>{body}</table>"


def _text(value: Any) -> str:
    if isinstance(value, list):
        shown = " ".join(map(str, value[:20]))
        return f"{shown} and {len(value) - 20:,} more" if len(value) > 20 else shown
    return str(value)


def _figure(title: str, content: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{content}</figure>"
