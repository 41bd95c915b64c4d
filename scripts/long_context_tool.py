"""Prepares a model for longer sequences: prints what its RoPE becomes, and saves it as a Hugging Face checkpoint.

    python scripts/long_context_tool.py --model smollm2 --max-seq-length 65536 --output-dir smollm2-64k
    python scripts/long_context_tool.py --model smollm2 --max-seq-length 65536 --rope-scaling base     # only look

Weights are copied as they are, one tensor in memory at a time. What is saved is not yet good at the new length: train it there.
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
    """A model, and the context that it is to have."""

    model: str
    """A Hugging Face directory, a .gguf file, or a hub id."""
    max_seq_length: int
    """Tokens."""
    rope_scaling: str = "auto"
    """auto (the model's own scaling extended, or else yarn), none, base, linear, dynamic, yarn or llama3."""
    rope_theta: float | None = None
    """RoPE's base, if not the model's; with --rope-scaling auto or base it is all that changes."""
    output_dir: Path | None = None
    """Where to save the model; without it nothing is written."""
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
