"""`python -m lcjax.train`: parse, build, train."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from pathlib import Path
from signal import Signals

from lcjax.startup import EXIT_CODES, importing, leave

with importing(__name__ == "__main__"):
    import jax
    from rich.console import Console

    from lcjax import api, cli, weights
    from lcjax.data import Data, check_data_paths
    from lcjax.errors import InputError
    from lcjax.flags import parse_in_sections
    from lcjax.leak import PackingLeak
    from lcjax.native_log import NativeLog
    from lcjax.train.allocators import pinnable_bytes, raise_limits
    from lcjax.train.arguments import SECTIONS, RunArguments, demo
    from lcjax.train.checkpoints.checkpoint import Checkpoints
    from lcjax.train.checkpoints.folder import RunFolder, open_run_folder
    from lcjax.train.checkpoints.resume import find_resume_point, refuse_damage
    from lcjax.train.data import load_run_data
    from lcjax.train.divergence import TrainingDiverged
    from lcjax.train.fit import host_bytes_at_most, room_here
    from lcjax.train.interrupt import Interrupted, StopRequest
    from lcjax.train.loop import train
    from lcjax.train.outcome import say_finished
    from lcjax.train.reporting.run_record import path_from
    from lcjax.train.reporting.terminal import mute_libraries, say, shown_warnings
    from lcjax.train.result import default_output_dir


@cli.entry_point
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    0 done, or stopped by a signal and saved; 130 or 143 where it came before the first step; 1 diverged or leaking; 2 bad input.
    """
    console = Console(stderr=True)
    mute_libraries()
    with shown_warnings(console), StopRequest() as stop, NativeLog() as native_log:
        try:
            arguments = parse(argv)
            check_data_paths(arguments.data)
            if arguments.programs_dir:
                cli.check_output_dir("--programs-dir", arguments.programs_dir)
            output_dir = arguments.output_dir or default_output_dir(str(arguments.model))
            with open_run_folder(output_dir, arguments) as folder:
                if folder.has_nothing_to_do(arguments):
                    say_finished(console, folder)
                    return 0
                data = read_data(arguments, folder, console)
                say(console, f"loading {arguments.model}")
                prepare_devices(arguments)
                if os.environ.get("XLA_FLAGS"):
                    with native_log.paused():  # a flag that XLA does not know ends the process in a line of XLA's
                        jax.local_devices()
                model, tokenizer = load(arguments)
                result = train(
                    model,
                    tokenizer,
                    data,
                    arguments,
                    console=console,
                    stop=stop,
                    native_log=native_log,
                    folder=folder,
                )
        except Interrupted as signal:
            say(
                console,
                f"{signal}: stopped before a step was taken; nothing is lost, start again with the same command",
            )
            return EXIT_CODES[signal.signal]
        except (PackingLeak, TrainingDiverged) as error:
            print("error:", error, file=sys.stderr)
            return 1
    return EXIT_CODES[Signals[result.stopped_by]] if result.stopped_by and not result.steps else 0


def parse(argv: list[str] | None = None) -> RunArguments:
    """The arguments of a run: flags over the resumed run's arguments, over the demo's, or over the defaults."""
    given = _parse(argv, RunArguments())
    if given.resume_from_checkpoint is not None:
        return _parse(argv, _arguments_of_resumed_run(given))
    return given if given.model is not None else _parse(argv, _demo_for(given, argv))


def read_data(arguments: RunArguments, folder: RunFolder, console: Console) -> Data:
    """The data, before any weights are loaded; of a model on the hub not even downloaded."""
    assert arguments.model is not None
    if Path(arguments.model).expanduser().exists():
        # A broken model is named before the data are read.
        weights.open_model_files(weights.resolve_model(arguments.model))
    tokenizer = weights.load_tokenizer(weights.resolve_model(arguments.model, with_weights=False))
    data = load_run_data(arguments.data, tokenizer, arguments.max_seq_length, arguments, folder.started, console)
    folder.refuse_other_data(data, arguments)
    return data


def prepare_devices(arguments: RunArguments) -> None:
    """Tells JAX what memory the run may take, before it starts."""
    assert arguments.model is not None
    config = weights.open_model_files(weights.resolve_model(arguments.model)).config
    raise_limits(host_bytes_at_most(config, arguments, pinnable_bytes()))


def load(arguments: RunArguments):
    """(model, tokenizer) with a fresh adapter, unless every weight is to be trained."""
    assert arguments.model is not None
    model, tokenizer = api.from_pretrained(
        arguments.model,
        arguments.max_seq_length,
        arguments.dtype,
        use_gradient_checkpointing=arguments.use_gradient_checkpointing,
        attention=arguments.attention,
        quantize=arguments.quantize,
        memory=arguments.memory,
        loss_chunk=arguments.loss_chunk,
        rope_scaling=arguments.rope_scaling,
        rope_theta=arguments.rope_theta,
        # Until it is known whether there is room for them.
        embeddings_on_host=room_here() is not None and arguments.memory == "auto" and not arguments.full_finetuning,
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


def _demo_for(given: RunArguments, argv: list[str] | None) -> RunArguments:
    """The demo, whose own numbers give way to what is given: none of them is refused for another that nobody gave."""
    words = sys.argv[1:] if argv is None else argv
    chosen = demo()
    epochs = given.max_steps == -1 and any(word.startswith("--num-train-epochs") for word in words)
    max_steps = -1 if epochs else given.max_steps if given.max_steps > 0 else chosen.max_steps
    warmup = 0 if given.warmup_ratio else min(chosen.warmup_steps, abs(max_steps))
    return dataclasses.replace(chosen, max_steps=max_steps, warmup_steps=warmup)


def _parse(argv: list[str] | None, default: RunArguments) -> RunArguments:
    return parse_in_sections(RunArguments, argv, "python -m lcjax.train", default, SECTIONS)


def _arguments_of_resumed_run(given: RunArguments) -> RunArguments:
    requested = given.resume_from_checkpoint
    output_dir = given.output_dir
    if output_dir is None and requested != "latest":
        output_dir = _run_directory(Path(str(requested)))
    point = find_resume_point(requested, output_dir)
    assert point is not None
    try:
        description = Checkpoints(point.directory).run(point.step)
        saved = description["arguments"]
        if "model" not in saved:
            raise InputError(f"{point} was written by lcjax.train() in a program; go on from that program")
        saved |= {"output_dir": output_dir, "resume_from_checkpoint": requested}
        saved.pop("programs_dir", None)  # machine code is loaded from where this user says, not from where a file says
        saved |= {name: tuple(saved[name]) for name in ("data", "data_weights", "target_modules") if name in saved}
        if "working_directory" in description:
            there = functools.partial(path_from, description["working_directory"])
            saved |= {"model": there(saved["model"]), "data": tuple(map(there, saved["data"]))}
        known = {field.name for field in dataclasses.fields(RunArguments)}
        return RunArguments(**{name: value for name, value in saved.items() if name in known})
    except (InputError, TypeError, ValueError, KeyError):
        refuse_damage(point)  # the better answer, if that is why
        raise


def _run_directory(checkpoint: Path) -> Path:
    """runs/x of runs/x, runs/x/checkpoints and runs/x/checkpoints/100."""
    if checkpoint.name.isdigit():
        checkpoint = checkpoint.parent
    return checkpoint.parent if checkpoint.name == "checkpoints" else checkpoint


if __name__ == "__main__":
    leave(main())
