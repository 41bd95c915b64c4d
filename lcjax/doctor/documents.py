"""Do the documents justify the length, and how many sequences make a step?"""

from __future__ import annotations

from collections.abc import Iterator

from lcjax.audit.advice import accumulation_for, advice, epochs_for, steps_per_epoch
from lcjax.audit.figures import AuditFigures
from lcjax.audit.report import headline
from lcjax.doctor.findings import Finding

QUESTION = "do the documents justify the length?"
STEPS = "how many tokens per step?"


def on_documents(figures: AuditFigures) -> Iterator[Finding]:
    """The audit's advice, line by line, the gradient accumulation, and the number of steps."""
    accumulation = accumulation_for(figures)
    yield Finding(QUESTION, headline(figures))
    for line in advice(figures, rows_per_step=accumulation):
        yield Finding("", line)
    learned = figures.corpus.learned / max(1, figures.corpus.windows.count) * accumulation
    steps, epochs = steps_per_epoch(figures, accumulation), epochs_for(figures, accumulation)
    flags = {"gradient-accumulation-steps": str(accumulation)} if accumulation > 1 else {}
    if epochs > 1:
        flags["num-train-epochs"] = str(epochs)
    by = f"{accumulation} sequence{'s' if accumulation > 1 else ''} per step"
    yield Finding(
        STEPS, f"{learned:,.0f} with a loss, from {by}; about {steps * epochs:,} steps in {_passes(epochs)}", flags
    )


def _passes(epochs: int) -> str:
    return "one pass over the data" if epochs == 1 else f"{epochs} passes over the data"
