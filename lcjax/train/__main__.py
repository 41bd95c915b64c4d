"""`python -m lcjax.train`: parse, build, train."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path

import tyro
from rich.console import Console

from lcjax import api, cli
from lcjax.errors import InputError
from lcjax.train.arguments import RunArguments, demo
from lcjax.train.checkpoint import Checkpoints
from lcjax.train.interrupt import StopRequest
from lcjax.train.loop import TrainingDiverged, train
from lcjax.train.resume import find_resume_point


@cli.entry_point
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done or stopped by a signal, 1 diverged, 2 bad input."""
    arguments = parse(argv)
    logging.getLogger("lcjax").addHandler(logging.StreamHandler())
    console = Console(stderr=True)
    with StopRequest() as stop:
        model, tokenizer = load(arguments)
        try:
            train(model, tokenizer, arguments.data, arguments, console=console, stop=stop)
        except TrainingDiverged as error:
            print("error:", error, file=sys.stderr)
            return 1
    return 0


def parse(argv: list[str] | None = None) -> RunArguments:
    """The arguments of a run: flags over the resumed run's arguments, over the demo's, or over the defaults."""
    given = _parse(argv, RunArguments())
    if given.resume_from_checkpoint is not None:
        return _parse(argv, _arguments_of_resumed_run(given))
    return given if given.model is not None else _parse(argv, demo())


def load(arguments: RunArguments):
    """(model, tokenizer) with a fresh adapter, unless every weight is to be trained."""
    assert arguments.model is not None
    model, tokenizer = api.from_pretrained(
        arguments.model,
        arguments.max_seq_length,
        arguments.dtype,
        use_gradient_checkpointing=arguments.use_gradient_checkpointing,
        attention=arguments.attention,
    )
    if not arguments.full_finetuning:
        model = api.get_peft_model(
            model,
            r=arguments.lora_r,
            lora_alpha=arguments.lora_alpha,
            target_modules=arguments.target_modules,
            use_rslora=arguments.use_rslora,
            lora_dropout=arguments.lora_dropout,
            use_gradient_checkpointing=arguments.use_gradient_checkpointing,
            random_state=arguments.seed,
        )
    return model, tokenizer


def _parse(argv: list[str] | None, default: RunArguments) -> RunArguments:
    return tyro.cli(RunArguments, args=argv, default=default, prog="python -m lcjax.train")


def _arguments_of_resumed_run(given: RunArguments) -> RunArguments:
    requested = given.resume_from_checkpoint
    if requested == "latest" and given.output_dir is None:
        raise InputError("--resume-from-checkpoint latest needs the --output-dir of the run to go on with")
    output_dir = given.output_dir or _run_directory(Path(str(requested)))
    point = find_resume_point(requested, output_dir)
    assert point is not None
    checkpoints = Checkpoints(point.directory)
    saved = checkpoints.run(point.step)["arguments"]
    checkpoints.close()
    if "model" not in saved:
        raise InputError(f"{point.directory} was written by lcjax.train() in a program; go on from that program")
    saved |= {"output_dir": output_dir, "resume_from_checkpoint": requested}
    saved |= {name: tuple(saved[name]) for name in ("data", "target_modules")}
    return RunArguments(**{field.name: saved[field.name] for field in dataclasses.fields(RunArguments)})


def _run_directory(checkpoint: Path) -> Path:
    """runs/x of runs/x, runs/x/checkpoints and runs/x/checkpoints/100."""
    if checkpoint.name.isdigit():
        checkpoint = checkpoint.parent
    return checkpoint.parent if checkpoint.name == "checkpoints" else checkpoint


if __name__ == "__main__":
    sys.exit(main())
