"""Kills runs of `lcjax.train`, resumes them, and compares every bit with uninterrupted runs.

    python scripts/exact_resume.py --tokenizer DIR_OR_GGUF --data PATH... --output-dir exact

The model has the shape of a preset and random weights. Each case has three processes. The first
starts without any compiled program and is killed after a few steps, the second resumes it, and the
third runs without interruption. All metrics and all weight files must be equal. Also prints the
time from the start of each process to its first step.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import sys
from pathlib import Path

from lcjax.cli.entry import entry_point
from lcjax.cli.flags import parse
from lcjax.errors import InputError
from lcjax.train.compiled.builder import builder
from lcjax_scripts.studies import exact_resume


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Kill runs, resume them, and compare every bit with uninterrupted runs."""

    data: tuple[str, ...]
    """Text to train on."""
    tokenizer: str
    """A Hugging Face directory with a tokenizer, or a .gguf file."""
    output_dir: Path
    """Where models, runs and results.json go."""
    preset: str = "llama-3.2-1b"
    """The preset that gives the model's shape."""
    layers: int = 16
    """Number of layers of the model."""
    max_seq_length: int = 32_768
    """Tokens per row."""
    steps: int = 10
    """Steps per run. A checkpoint is saved every second step."""
    kill_after: int = 5
    """Number of steps after which the first process is killed."""
    cases: tuple[str, ...] = tuple(exact_resume.CASES)
    """Cases to run."""
    at_once: int = 1
    """Number of cases that share the GPU."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    """Prints a line for each case; returns 1 if any bits differ."""
    arguments = parse(Arguments, argv, "python scripts/exact_resume.py")
    if unknown := sorted(set(arguments.cases) - set(exact_resume.CASES)):
        raise InputError(f"--cases {unknown[0]} is unknown; use some of {', '.join(exact_resume.CASES)}")
    shared = ("data", "output_dir", "max_seq_length", "steps", "kill_after", "at_once")
    model = exact_resume.random_model(arguments.preset, arguments.layers, arguments.tokenizer, arguments.output_dir)
    experiment = exact_resume.Experiment(model=model, **{name: getattr(arguments, name) for name in shared})
    print(json.dumps(builder()), flush=True)
    with concurrent.futures.ThreadPoolExecutor(arguments.at_once) as pool:
        futures = [pool.submit(exact_resume.run_case, experiment, name) for name in arguments.cases]
        results = []
        for future in concurrent.futures.as_completed(futures):
            results.append(future.result())
            print(json.dumps(results[-1]), flush=True)
    (arguments.output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0 if all(result.get("equal") for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
