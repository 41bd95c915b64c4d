"""Advice that follows from the figures of an audit."""

from __future__ import annotations

from collections.abc import Iterator

from lcjax.audit.figures import AuditFigures, audit
from lcjax.audit.reuse import Reuse
from lcjax.data import TokenizedCorpus
from lcjax.tokens.figures import short

# The share from which reuse counts as present; text shuffled across documents stays below it (docs/data.md).
PRESENT = 0.005
# Of all tokens, those that should reach back over half the context, for its far half to be trained at all.
REACHING = 0.1
# Documents in a window above which most of its attention is masked out.
CROWDED = 8
# Tokens with a loss in a step: the size of a step in instruction tuning, 32 sequences of 2,048. With fewer, gradients are noisy.
TOKENS_A_STEP = 65536
# Optimizer steps below which a schedule means nothing: warm-up and decay are over before the gradient's noise has averaged out.
STEPS = 20
# Passes over the same text beyond which more of them mostly memorize it.
MOST_EPOCHS = 5
DUPLICATED = 0.02
# Documents from which chance is known well enough.
KNOWN = 10
# Contexts up to here need no advice on distances: in them nothing is far away. Before a training run so many tokens are counted.
SHORT, COUNTED = 2048, 1_000_000


def advice(figures: AuditFigures, rows_a_step: int, steps: int | None = None) -> list[str]:
    """Lines for people, each what to do and why; at least one.

    Args:
      rows_a_step: sequences in one optimizer step.
      steps: of the run; those of one epoch when None.
    """
    found = []
    if figures.corpus.windows.max_seq_length > SHORT:
        found += [*_on_reuse(figures), *_on_lengths(figures)]
    found += [*_on_packing(figures), *_on_steps(figures, rows_a_step, steps), *_on_duplicates(figures)]
    return found or [f"train at {figures.corpus.windows.max_seq_length:,} tokens: the documents have what it takes"]


def advice_before_training(
    corpus: TokenizedCorpus, max_seq_length: int, rows_a_step: int, steps: int | None = None
) -> list[str]:
    """The advice on about as many tokens as take a second to count; none for short contexts, in which nothing is far away."""
    if max_seq_length <= SHORT:
        return []
    return advice(audit(corpus, max_seq_length, COUNTED), rows_a_step, steps)


def reach(figures: AuditFigures) -> Reuse | None:
    """The farthest distances at which more comes back than by chance."""
    return next((bucket for bucket in reversed(figures.reuse) if bucket.share >= PRESENT), None)


def _on_reuse(figures: AuditFigures) -> Iterator[str]:
    farthest, length = reach(figures), figures.corpus.windows.max_seq_length
    if figures.corpus.documents < KNOWN:
        yield (
            f"{figures.corpus.documents} documents hardly tell what chance repeats, so that text of one kind looks as if it "
            f"came back for a reason; audit {KNOWN} or more"
        )
    if farthest is None:
        yield (
            "there is nothing to learn at a distance: beyond 1K tokens hardly anything comes back that chance would not repeat; "
            "train at --max-seq-length 2048, or on other documents"
        )
    elif farthest.stop < length:
        yield (
            f"beyond {short(farthest.stop)} tokens hardly anything comes back that chance would not repeat: --max-seq-length "
            f"{farthest.stop} is enough, or add documents in which it does"
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
            f"too few long documents: {reaching:.1%} of the tokens have {short(length // 2)} or more before them; add books, "
            "reports, long conversations, or repositories as one document each (--documents repository), or lower "
            f"--max-seq-length to {shorter}"
        )


def _on_packing(figures: AuditFigures) -> Iterator[str]:
    windows = figures.corpus.windows
    if windows.documents_per_window > CROWDED:
        yield (
            f"packing is high: a window of {short(windows.max_seq_length)} holds {windows.documents_per_window:.0f} documents, "
            "which do not see each other; join what belongs together into one document, or lower --max-seq-length and raise "
            "--gradient-accumulation-steps"
        )


def accumulation_for(figures: AuditFigures) -> int:
    """Sequences in a step that give it TOKENS_A_STEP with a loss; fewer where an epoch would have less than STEPS steps."""
    windows = figures.corpus.windows.count
    return max(1, min(-(-TOKENS_A_STEP // max(1, int(_learned(figures)))), windows // STEPS))


def steps_an_epoch(figures: AuditFigures, rows_a_step: int) -> int:
    """Optimizer steps in which every sequence is trained on once."""
    return -(-figures.corpus.windows.count // rows_a_step)


def epochs_for(figures: AuditFigures, rows_a_step: int) -> int:
    """Epochs that make STEPS steps, MOST_EPOCHS at most."""
    return min(MOST_EPOCHS, -(-STEPS // max(1, steps_an_epoch(figures, rows_a_step))))


def _learned(figures: AuditFigures) -> float:
    """Tokens with a loss in a sequence, on average."""
    return figures.corpus.learned / max(1, figures.corpus.windows.count)


def _on_steps(figures: AuditFigures, rows_a_step: int, steps: int | None) -> Iterator[str]:
    learned, needed = _learned(figures), accumulation_for(figures)
    if rows_a_step < needed:
        yield (
            f"few tokens a step: {learned * rows_a_step:,.0f} with a loss; --gradient-accumulation-steps {needed} gives "
            f"{learned * needed:,.0f}"
        )
    epoch = steps_an_epoch(figures, rows_a_step)
    if (epoch if steps is None else steps) < STEPS:
        yield (
            f"little text for a run: {epoch} optimizer step{'s' if epoch > 1 else ''} an epoch; add documents, or pass over them "
            f"more often, --num-train-epochs {epochs_for(figures, rows_a_step)}"
            + (f", with {needed} sequence{'s' if needed > 1 else ''} a step" if rows_a_step > needed else "")
        )


def _on_duplicates(figures: AuditFigures) -> Iterator[str]:
    duplicates = figures.duplicates
    if duplicates.tokens > DUPLICATED * figures.sampled_tokens:
        first, second = duplicates.groups[0][:2]
        yield (
            f"{duplicates.tokens / figures.sampled_tokens:.1%} of the tokens are in {duplicates.documents} near-duplicates; keep "
            f"one of each group, for example of {first} and {second}"
        )
