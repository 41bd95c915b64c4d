"""Runs `lcjax train` after its flags are parsed: reads data, loads the model, trains."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any, NoReturn

import jax
from rich.console import Console

from lcjax import api, weights
from lcjax.cli.entry import as_input_error
from lcjax.cli.flags import in_flags
from lcjax.cli.last_words import LastWords
from lcjax.cli.native_log import NativeLog
from lcjax.cli.outputs import check_output_dir
from lcjax.cli.startup import EXIT_CODES
from lcjax.cli.terminal import mute_libraries, say, show_warnings
from lcjax.config import LlamaConfig
from lcjax.config.run_record import as_json
from lcjax.data import Data, check_data_paths
from lcjax.errors import flag
from lcjax.leak import PackingLeak
from lcjax.model import Llama
from lcjax.parallel.distributed import join, meeting, unmet
from lcjax.parallel.processes import (
    AgreedError,
    first_before_others,
    from_first,
    is_alone,
    leave_together,
    require_same,
    together,
    writes_files,
)
from lcjax.train.arguments import RunArguments
from lcjax.train.checkpoints.folder import RunFolder, open_run_folder
from lcjax.train.data import load_run_data
from lcjax.train.devices import prepare_devices
from lcjax.train.divergence import TrainingDiverged
from lcjax.train.interrupt import Interrupted, StopRequest
from lcjax.train.loop import train
from lcjax.train.outcome import say_finished
from lcjax.train.refusals import check_model, check_policy_early
from lcjax.train.reporting.trackers import check_trackers
from lcjax.train.result import default_output_dir
from lcjax.train.running.early_weights import EarlyWeights, Placement
from lcjax.train.sampling.samples import check_samples
from lcjax.train.start.model import model_to_train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from lcjax.weights import Checkpoint

_LOST = (
    "this process ended because another process of the run had ended or no longer answered, or because it was "
    "killed; see the output of the others, and resume with --resume-from-checkpoint latest"
)


# If all processes fail, each prints its own message before JAX ends it because of the others.
_GRACE_S = 2


def run(arguments: RunArguments) -> int:
    """Trains; returns the exit code.

    0: finished, or stopped by a signal and saved. 130 or 143: a signal came before the first step.
    1: diverged, or leaking. 2: bad input.
    """
    mute_libraries()
    with contextlib.ExitStack() as contexts:
        last_words = contexts.enter_context(LastWords()) if (found := meeting(arguments.cluster)) else None
        native_log = contexts.enter_context(NativeLog(with_stdout=found is not None))
        if found is not None and last_words is not None:
            last_words.will_be(f"error: {unmet(found)}")
            join(found)
            last_words.will_be(f"error: {_LOST}")
        console = Console(stderr=True, quiet=not writes_files())
        contexts.enter_context(show_warnings(console))
        stop = contexts.enter_context(StopRequest())
        try:
            with contextlib.ExitStack() as opened:
                prepared = together(lambda: _prepare(arguments, console, native_log, opened))
                if prepared is None:
                    return 0
                folder, data, model, tokenizer = prepared
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
        except jax.errors.JaxRuntimeError as error:
            if is_alone():
                raise
            _end_at_once(f"{_LOST} ({str(error).splitlines()[0][:300]})", 1, contexts)
        except AgreedError as error:
            print("error:", in_flags(" ".join(str(error).splitlines())), file=sys.stderr, flush=True)
            assert last_words is not None
            last_words.will_be("")
            leave_together()
            return 2
        except Exception as error:
            refusal = as_input_error(error)
            if is_alone() or refusal is None:
                raise
            _end_at_once(in_flags(" ".join(str(refusal).splitlines())), 2, contexts)
    return EXIT_CODES[Signals[result.stopped_by]] if result.stopped_by and not result.steps else 0


def _prepare(
    arguments: RunArguments, console: Console, native_log: NativeLog, opened: contextlib.ExitStack
) -> tuple[RunFolder, Data, Llama, PreTrainedTokenizerFast] | None:
    """All that a run needs; None if it has nothing left to do.

    Several processes call this together. The output directory is open until `opened` is closed.
    """
    if not is_alone():
        # Before the processes first exchange something, which starts JAX's devices.
        prepare_devices(_config(arguments), arguments)
    check_policy_early(arguments)
    check_samples(arguments)
    check_trackers(arguments)
    check_data_paths(arguments.data)
    if arguments.programs_dir:
        check_output_dir("--programs-dir", arguments.programs_dir)
    require_same(_shared_by_processes(arguments))
    output_dir = Path(from_first(str(arguments.output_dir or default_output_dir(str(arguments.model)))))
    if arguments.config is not None and arguments.output_dir is None:
        say(console, f"a new run with the settings of {arguments.config}, in {output_dir}")
    folder = opened.enter_context(open_run_folder(output_dir, arguments))
    if folder.has_nothing_to_do(arguments):
        say_finished(console, folder)
        return None
    early = opened.enter_context(EarlyWeights())

    def start_to_load(checkpoint: Checkpoint) -> Checkpoint:
        _start_devices(checkpoint.config, arguments, native_log)
        return early.started(checkpoint, arguments)

    data, tokenizer, checkpoint = first_before_others(lambda: read_data(arguments, folder, console, start_to_load))
    require_same({"the data": data.fingerprint()})
    say(console, f"loading {arguments.model}")
    if checkpoint is None:
        checkpoint = weights.open_model_files(weights.resolve_model(str(arguments.model)))
        _start_devices(checkpoint.config, arguments, native_log)
    return folder, data, *load(arguments, (checkpoint, tokenizer))


def _start_devices(config: LlamaConfig, arguments: RunArguments, native_log: NativeLog) -> None:
    """Gets JAX's devices ready to be started, and starts them if that may end the process."""
    if is_alone():
        prepare_devices(config, arguments)
    if os.environ.get("XLA_FLAGS"):
        # XLA prints a line about an unknown flag and ends the process
        with native_log.paused():
            jax.local_devices()


def _end_at_once(message: str, code: int, contexts: contextlib.ExitStack) -> NoReturn:
    """Ends one of several processes. JAX would first wait for the others, and then abort."""
    print("error:", message, file=sys.stderr, flush=True)
    contexts.close()
    time.sleep(_GRACE_S)
    os._exit(code)


def _config(arguments: RunArguments) -> LlamaConfig:
    return weights.open_model_files(weights.resolve_model(str(arguments.model))).config


def _shared_by_processes(arguments: RunArguments) -> dict[str, Any]:
    """What must be the same in all processes: flags and software."""
    flags = {flag(name): value for name, value in as_json(dataclasses.asdict(arguments)).items()}
    flags.pop("--process-id")
    return flags | {name: version(name) for name in ("lcjax", "jax", "jaxlib")}


def read_data(
    arguments: RunArguments, folder: RunFolder, console: Console, start_to_load: Callable[[Checkpoint], Checkpoint]
) -> tuple[Data, PreTrainedTokenizerFast, Checkpoint | None]:
    """The data and its tokenizer; for a hub model before the weights are downloaded.

    The weights of a model on disk are loaded at the same time. Several processes load them later,
    together; the checkpoint is then None.
    """
    assert arguments.model is not None
    path = weights.resolve_model(arguments.model, with_weights=False)
    # A broken model on disk is reported before the data is read.
    is_here = path.suffix == ".gguf" or Path(arguments.model).expanduser().exists()
    checkpoint = weights.open_model_files(path) if is_here else None
    check_model(weights.load_config(path) if checkpoint is None else checkpoint.config, arguments, folder)
    checkpoint = None if checkpoint is None or not is_alone() else start_to_load(checkpoint)
    tokenizer = weights.load_tokenizer(path)
    check_samples(arguments, tokenizer, arguments.max_seq_length)
    data = load_run_data(arguments.data, tokenizer, arguments.max_seq_length, arguments, folder.started, console)
    folder.refuse_other_data(data, arguments)
    return data, tokenizer, checkpoint


def load(arguments: RunArguments, files: api.ModelFiles | None = None) -> tuple[Llama, PreTrainedTokenizerFast]:
    """(model, tokenizer), with an adapter unless every weight is trained.

    The weights are on the run's devices, each of which has its part of them. `files` are the
    model's, if they are open.
    """
    assert arguments.model is not None
    path = weights.resolve_model(arguments.model)
    checkpoint, tokenizer = files or (weights.open_model_files(path), weights.load_tokenizer(path))
    placement = Placement.of(checkpoint, arguments)
    model, _ = api.from_pretrained(
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
        embeddings_on_host=placement.embeddings_on_host,
        devices=placement.devices,
        files=(checkpoint, tokenizer),
    )
    return model_to_train(model, arguments), tokenizer
