"""Advice that follows from the numbers of an audit."""

from __future__ import annotations

from collections.abc import Iterator

from lcjax.audit.figures import AuditFigures, audit
from lcjax.audit.joining import Comparison
from lcjax.audit.reuse import Reuse
from lcjax.data import TokenizedCorpus
from lcjax.tokens.figures import short

# The share from which reuse counts as present; text shuffled across documents stays below it
# (docs/data.md).
PRESENT = 0.005
# The share of tokens that should have over half the context before them, so that its far half is
# trained at all.
REACHING = 0.1
# With more documents in a window, most of its attention is masked out.
CROWDED = 8
# Tokens with a loss in a step: the size of a step in instruction tuning, 32 sequences of 2,048.
# With fewer, gradients are noisy.
TOKENS_PER_STEP = 65536
# With fewer optimizer steps a schedule is useless: warm-up and decay end before the gradient noise
# averages out.
STEPS = 20
# More passes over the same text mostly memorize it.
MOST_EPOCHS = 5
DUPLICATED = 0.02
# Of the ways to join texts with this share of the highest gain, the one that repeats most is
# advised, because its documents are longer; of several with about as much, the first.
_NEARLY, _AS_MUCH = 0.8, 0.98
# The number of documents from which the effect of chance is known well enough.
KNOWN = 10
# Contexts up to SHORT need no advice on distances, because nothing in them is far away. COUNTED
# tokens are counted before a training run.
SHORT, COUNTED = 2048, 1_000_000


def advice(figures: AuditFigures, rows_per_step: int, steps: int | None = None) -> list[str]:
    """Lines of advice, each with what to do and why; at least one.

    Args:
      rows_per_step: sequences in one optimizer step.
      steps: steps of the run; None means those of one epoch.
    """
    found = []
    if figures.corpus.windows.max_seq_length > SHORT:
        found += [*_on_reuse(figures), *_on_lengths(figures)]
    found += [*_on_packing(figures), *_on_steps(figures, rows_per_step, steps), *_on_duplicates(figures)]
    return found or [f"train at {figures.corpus.windows.max_seq_length:,} tokens: the documents are suitable"]


def advice_before_training(
    corpus: TokenizedCorpus, max_seq_length: int, rows_per_step: int, steps: int | None = None
) -> list[str]:
    """The advice from a sample that takes a second to count; none for short contexts."""
    if max_seq_length <= SHORT:
        return []
    return advice(audit(corpus, max_seq_length, COUNTED), rows_per_step, steps)


def advice_on_joining(comparison: Comparison) -> str:
    """Which way of forming documents helps, and why."""
    separate = f"{comparison.separate:.1%} in separate texts"
    if not comparison.joinings:
        return "--documents file: there are no texts to join"
    gain = max(way.gain for way in comparison.joinings)
    ways = [way for way in comparison.joinings if way.gain >= min(gain, _NEARLY * gain)]
    best = next(way for way in ways if way.repeats >= _AS_MUCH * max(way.repeats for way in ways))
    if comparison.tokens <= comparison.max_seq_length:
        return (
            f"all text fits in one window, so joining it cannot be compared with chance: {best.repeats:.1%} of the "
            f"tokens repeat text from 1K or more before with --documents {best.documents}, {separate}; audit more text"
        )
    compared = f"{best.repeats:.1%} of the tokens repeat text from 1K or more before, {best.by_chance:.1%} by chance, "
    if best.gain < PRESENT:
        return f"joining texts does not help, so use --documents file: at best, {compared}{separate}"
    return f"--documents {best.documents} helps: {compared}{separate}"


def reach(figures: AuditFigures) -> Reuse | None:
    """The largest distances at which more text repeats than by chance."""
    return next((bucket for bucket in reversed(figures.reuse) if bucket.share >= PRESENT), None)


def _on_reuse(figures: AuditFigures) -> Iterator[str]:
    farthest, length = reach(figures), figures.corpus.windows.max_seq_length
    if figures.corpus.documents < KNOWN:
        yield (
            f"{figures.corpus.documents} documents are too few to estimate what repeats by "
            f"chance, so text of one kind seems to repeat for a reason; audit {KNOWN} or more"
        )
    if farthest is None:
        yield (
            "there is nothing to learn at a distance: beyond 1K tokens hardly anything repeats "
            "more than by chance; train at --max-seq-length 2048, or on other documents"
        )
    elif farthest.stop < length:
        yield (
            f"beyond {short(farthest.stop)} tokens hardly anything repeats more than by chance: "
            f"--max-seq-length {farthest.stop} is enough, or add documents in which it does"
        )


def _on_lengths(figures: AuditFigures) -> Iterator[str]:
    windows, tokens = figures.corpus.windows, figures.sampled_tokens
    length = windows.max_seq_length
    far = [bucket for bucket in figures.reuse if bucket.start >= length // 2]
    reaching = max((bucket.tokens for bucket in far), default=tokens) / max(1, tokens)
    if reaching < REACHING:
        served = [bucket.start for bucket in figures.reuse if bucket.tokens >= REACHING * tokens]
        shorter = min(length // 2, 2 * served[-1]) if served else 2048
        yield (
            f"too few long documents: {reaching:.1%} of the tokens have {short(length // 2)} or "
            "more before them; add books, reports, long conversations, or repositories as one "
            f"document each (--documents repository), or lower --max-seq-length to {shorter}"
        )


def _on_packing(figures: AuditFigures) -> Iterator[str]:
    windows = figures.corpus.windows
    if windows.documents_per_window > CROWDED:
        yield (
            f"packing is high: a window of {short(windows.max_seq_length)} has "
            f"{windows.documents_per_window:.0f} documents, which do not see each other; join "
            "what belongs together into one document, or lower --max-seq-length and raise "
            "--gradient-accumulation-steps"
        )


def accumulation_for(figures: AuditFigures) -> int:
    """Sequences per step for TOKENS_PER_STEP tokens with a loss, if an epoch then has STEPS steps.

    Otherwise, fewer sequences.
    """
    windows = figures.corpus.windows.count
    return max(1, min(-(-TOKENS_PER_STEP // max(1, int(_learned(figures)))), windows // STEPS))


def steps_per_epoch(figures: AuditFigures, rows_per_step: int) -> int:
    """Optimizer steps in which every sequence is trained on once."""
    return -(-figures.corpus.windows.count // rows_per_step)


def epochs_for(figures: AuditFigures, rows_per_step: int) -> int:
    """Epochs that give STEPS steps, at most MOST_EPOCHS."""
    return min(MOST_EPOCHS, -(-STEPS // max(1, steps_per_epoch(figures, rows_per_step))))


def _learned(figures: AuditFigures) -> float:
    """The mean number of tokens with a loss in a sequence."""
    return figures.corpus.learned / max(1, figures.corpus.windows.count)


def _on_steps(figures: AuditFigures, rows_per_step: int, steps: int | None) -> Iterator[str]:
    learned, needed = _learned(figures), accumulation_for(figures)
    if rows_per_step < needed:
        yield (
            f"few tokens per step: {learned * rows_per_step:,.0f} with a loss; "
            f"--gradient-accumulation-steps {needed} gives {learned * needed:,.0f}"
        )
    epoch = steps_per_epoch(figures, rows_per_step)
    if (epoch if steps is None else steps) < STEPS:
        yield (
            f"little text for a run: {epoch} optimizer step{'s' if epoch > 1 else ''} an epoch; "
            "add documents, or pass over them more often, --num-train-epochs "
            f"{epochs_for(figures, rows_per_step)}"
            + (f", with {needed} sequence{'s' if needed > 1 else ''} per step" if rows_per_step > needed else "")
        )


def _on_duplicates(figures: AuditFigures) -> Iterator[str]:
    duplicates = figures.duplicates
    if duplicates.tokens > DUPLICATED * figures.sampled_tokens:
        first, second = duplicates.groups[0][:2]
        yield (
            f"{duplicates.tokens / figures.sampled_tokens:.1%} of the tokens are in "
            f"{duplicates.documents} near-duplicates; use only one of each group, for example of "
            f"{first} and {second}"
        )
