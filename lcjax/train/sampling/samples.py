"""Lets the model write during a run, without changing the run's numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lcjax import weights
from lcjax.cli.terminal import say
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.generate.generator import Generator
from lcjax.generate.sampling import Sampling
from lcjax.generate.text import TextStream
from lcjax.model import Llama
from lcjax.parallel.processes import is_alone
from lcjax.report.records import read_rows
from lcjax.train.reporting.metrics import JsonLines
from lcjax.train.running.computation import Computation
from lcjax.train.sampling.prompts import Prompt, prompt_ids, read_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SAMPLES = "samples.jsonl"
_SHOWN = 72  # characters of a prompt and of a text on the terminal


def check_samples(
    arguments: TrainingArguments, tokenizer: PreTrainedTokenizerFast | None = None, longest: int = 0
) -> None:
    """Checks --sample-prompts before anything else is read, and again with the tokenizer.

    Args:
      tokenizer: the model's, once it is there.
      longest: the most tokens of a prompt.

    Raises:
      InputError: the file is invalid, a prompt is too long, a conversation has no template, or the
        run has several processes.
    """
    if arguments.sample_prompts is None:
        return
    prompts = read_prompts(arguments.sample_prompts)
    if tokenizer is not None:
        prompt_ids(prompts, tokenizer, longest, arguments.sample_prompts)
    if not is_alone():
        raise InputError("--sample-prompts needs a run of one process; omit it, and use lcjax.generate after the run")


class Samples:
    """The prompts of a run and samples.jsonl, with a row for each prompt and each sampling."""

    def __init__(
        self,
        computation: Computation,
        tokenizer: PreTrainedTokenizerFast,
        arguments: TrainingArguments,
        output_dir: Path,
        start: int,
        console: Console,
    ):
        """Opens samples.jsonl, without the rows after step `start`.

        Raises:
          InputError: as `check_samples`; or GPUs share the weights; or the file cannot be written.
        """
        assert arguments.sample_prompts is not None
        check_samples(arguments)
        if computation.devices.shape.shard_axes:
            raise InputError(
                "--sample-prompts needs all weights on each GPU, and here the GPUs share them; give --shard-weights none, "
                "or omit --sample-prompts"
            )
        self._computation, self._tokenizer, self._arguments, self._console = computation, tokenizer, arguments, console
        model = computation.model
        self._prompts = read_prompts(arguments.sample_prompts)
        longest = model.settings.max_seq_length
        self._ids = prompt_ids(self._prompts, tokenizer, longest, arguments.sample_prompts)
        generation_config = json.loads(model.settings.generation_config or "{}")
        eos = tokenizer.eos_token_id, model.config.eos_token_id, generation_config.get("eos_token_id")
        self._stop = weights.stop_ids(*eos)
        path = output_dir / SAMPLES
        former = [row for row in read_rows(path) if row["step"] <= start] if start else []
        self._log = JsonLines(path, b"".join(json.dumps(row).encode() + b"\n" for row in former))

    def take(self, step: int) -> None:
        """Continues every prompt with the current weights, unless there are samples of this step.

        Writes a row {step, prompt, text} for each and shows it in short.
        """
        if any(row["step"] == step for row in self._log.rows):
            return
        for prompt, text in zip(self._prompts, self._texts(), strict=True):
            self._log.write({"step": step, "prompt": prompt, "text": text})
            say(self._console, f"sample at step {step}: {_in_short(prompt)} -> {_in_short(text)}")

    def close(self) -> None:
        self._log.close()

    def _texts(self) -> Iterator[str]:
        # The arrays are those of the run. What is allocated is the cache of one sequence.
        model = self._computation.trained()
        model = Llama(model.config, model.params, self._computation.model.settings)
        tokens = self._arguments.sample_tokens
        generator = Generator(model, max(map(len, self._ids)) + tokens)
        for ids in self._ids:
            stream = TextStream(self._tokenizer)
            found = generator.generate(ids, Sampling(), max_new_tokens=tokens, stop=self._stop)
            yield "".join(map(stream.add, found)) + stream.finish()


def _in_short(prompt: Prompt) -> str:
    text = " ".join((prompt if isinstance(prompt, str) else prompt[-1]["content"]).split())
    return json.dumps(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...", ensure_ascii=False)
