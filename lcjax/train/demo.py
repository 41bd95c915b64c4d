"""The run of `lcjax train` without a model and data."""

from __future__ import annotations

from lcjax.data.reading.files import stdlib_sources
from lcjax.train.arguments import RunArguments
from lcjax.weights.demo import demo_model


def demo() -> RunArguments:
    """The default preset: SmolLM2-135M-Instruct on Python's standard library.

    It takes about two minutes on two CPU cores. Held-out loss is measured on 4 rows of text, half
    of the default: each row takes two seconds, and there are three evaluations.

    Raises:
      InputError: the model's package is not installed.
    """
    return RunArguments(
        model=str(demo_model()),
        data=tuple(str(path) for path in stdlib_sources()),
        max_seq_length=1024,
        max_steps=20,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        eval_batches=4,
        save_steps=10,
        eval_steps=10,
    )
