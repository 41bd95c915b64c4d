"""Changes a model's RoPE for longer sequences, and saves it as a Hugging Face checkpoint.

    python scripts/long_context_tool.py --model smollm2 --max-seq-length 65536 --output-dir OUTPUT
    python scripts/long_context_tool.py --model smollm2 --max-seq-length 65536 --rope-scaling base

Without --output-dir, the script only prints the change.

Weights are copied unchanged, with one tensor in memory at a time. The saved model is not yet good
at the new length; it must be trained there.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import tyro

from lcjax.cli.entry import entry_point
from lcjax.config.rope_choice import choose_rope
from lcjax.convert.arguments import ConvertArguments
from lcjax.convert.command import convert
from lcjax.ops.rope.report import report
from lcjax.weights import open_model_files, resolve_model


@dataclasses.dataclass(frozen=True)
class Tool:
    """A model and its new context length."""

    model: str
    """A Hugging Face directory, a .gguf file, or a hub id."""
    max_seq_length: int
    """The new context length in tokens."""
    rope_scaling: str = "auto"
    """none, base, linear, dynamic, yarn, llama3, or auto. The default, auto, extends the model's
    own scaling; a model without scaling gets yarn."""
    rope_theta: float | None = None
    """RoPE's base, if not the model's. With --rope-scaling auto or base, nothing else changes."""
    output_dir: Path | None = None
    """The folder to save the model in. Without it, nothing is written."""
    overwrite: bool = False
    """Replace a model at --output-dir."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    tool = tyro.cli(Tool, args=argv, description=__doc__)
    before = open_model_files(resolve_model(tool.model)).config
    after, line = choose_rope(before, tool.max_seq_length, tool.rope_scaling, tool.rope_theta)
    print(*report(before, after, tool.max_seq_length), sep="\n")
    if tool.output_dir is None:
        print(line or "the model's own context is enough: nothing changes")
    else:
        settings = {name: getattr(tool, name) for name in ("max_seq_length", "rope_scaling", "rope_theta", "overwrite")}
        convert(ConvertArguments(tool.model, tool.output_dir, **settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
