"""The computation of a run: its step, compiled for its devices, and the state that it changes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from lcjax import step
from lcjax.cli.terminal import say
from lcjax.config.training import TrainingArguments
from lcjax.data import Batch, Data, iterate
from lcjax.leak import refuse_leak
from lcjax.model import Llama, ModelSettings, lora
from lcjax.parallel.devices import Devices
from lcjax.parallel.processes import together
from lcjax.plan.choosing.budget import budget_here
from lcjax.plan.compiling.run import Run
from lcjax.step.program import build_program
from lcjax.train.checkpoints.checkpoint import Checkpoints
from lcjax.train.compiled.execution import SavedExecution, open_programs, settings_for_rows
from lcjax.train.compiled.fitting import COMPILED_AGAIN, fitting_settings
from lcjax.train.devices import mesh_of_model
from lcjax.train.reporting.start_line import start_line
from lcjax.train.start.point import Start
from lcjax.train.start.state import initial_state


class Step(NamedTuple):
    """What a step has measured.

    Attributes:
      batch: the rows that it trained on.
      loss: nats per token.
      grad_norm: the norm of the gradient before it is clipped.
      learning_rate: of this step.
      tokens: the number of tokens that are not padding.
      seconds: the time that it took.
      router_aux_loss: the loss that balances experts, before its weight; None if there is none.
    """

    batch: Batch
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    seconds: float
    router_aux_loss: float | None


class Computation:
    """The step of a run and its state.

    Attributes:
      state: the trained weights, the optimizer's state and the random key.
      batches: the iterator over the training rows; its state is saved in checkpoints.
      devices: those of the run.
      settings: those of the model for held-out rows.
      token_scores: `lcjax.step.jit_token_scores` on the devices.
      programs, saved_execution, execution: the compiled programs, see `lcjax.train.compiled`.
      trainable: the number of trainable parameters.
    """

    def __init__(
        self,
        model: Llama,
        data: Data,
        arguments: TrainingArguments,
        max_steps: int,
        saved_execution: SavedExecution | None,
        start: Start | None,
        optimizer_steps: int,
        *,
        console: Console,
        move_native_log: Callable[[], str],
        resources: contextlib.ExitStack,
    ):
        """Prepares everything that a step needs.

        Args:
          max_steps: the number of steps of the run.
          saved_execution: how a resumed run has computed so far.
          start: the checkpoint from which a new run takes its weights.
          optimizer_steps: as in `build_program`.
          move_native_log: sends the output of XLA to a file, and returns its path or "".
          resources: until it is closed, JAX compiles into the run's own folder of programs.
        """
        self.model, self.data, self.arguments, self.max_steps = model, data, arguments, max_steps
        self.console, self._move_native_log = console, move_native_log
        self.saved_execution = saved_execution
        self._start, self._optimizer_steps = start, optimizer_steps
        self._open_programs(resources)
        self._build()

    def _open_programs(self, resources: contextlib.ExitStack) -> None:
        """Makes JAX compile into the run's own folder of programs and reuse the programs in it."""
        self.programs = open_programs(self.model, self.arguments, self.saved_execution)
        resources.enter_context(self.programs.compiling())
        if self.programs.lost:
            say(self.console, f"warning: {self.programs.lost}; {COMPILED_AGAIN}")

    def _build(self) -> None:
        arguments, model = self.arguments, self.model
        self.devices = Devices.of(mesh_of_model(model, arguments))
        params = self.devices.distribute(model.params)
        settings = settings_for_rows(model.settings, self.data.train_plan, "training")
        settings = step.with_mesh(settings, self.devices.shape)
        fitted = self._fitting_settings(settings, params)
        self.execution = SavedExecution.of(self.programs, fitted)
        settings = fitted or settings
        program = build_program(model.config, params, settings, arguments, self.max_steps, self._optimizer_steps)
        self._frozen, self._schedule = program.frozen, program.schedule
        if not arguments.skip_leak_check:
            say(self.console, "checking that packed documents do not see each other")
            refuse_leak(Llama(model.config, params, settings), self.data, self.devices)
        self._train_step = step.jit_train_step(program.objective, program.optimizer, devices=self.devices)
        self.token_scores = step.jit_token_scores(self.devices)
        evaluated = settings_for_rows(model.settings, self.data.held_out_plan, "held-out")
        self.settings = dataclasses.replace(settings, one_document_a_row=evaluated.one_document_a_row)
        self.state = initial_state(program, arguments.seed, self.devices, self._start)
        self.batches = iterate(
            self.data.train_dataset(arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps)
        )
        self.trainable = sum(leaf.size for leaf in jax.tree.leaves(program.trainable))
        say(self.console, start_line(model, settings, self.data, arguments, self.trainable, self.max_steps))

    def _fitting_settings(self, settings: ModelSettings, params: lora.Tree) -> ModelSettings | None:
        """The settings with which the step fits this GPU; None on a CPU."""
        budget, model = budget_here(), self.model
        if budget is None:
            return None
        run = Run.here(model.config, params, self.arguments, model.settings.lora)
        log = together(self._move_native_log)
        say(self.console, f"compiling the candidate forms of the step{log and f'; output of XLA goes to {log}'}")
        return fitting_settings(run, settings, self.saved_execution, budget, self.console)

    def restore(self, checkpoints: Checkpoints, step: int) -> None:
        """Sets the state, and the position in the data, to those after `step` steps.

        Raises:
          InputError: the checkpoint is missing or damaged.
        """
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), self.state
        )
        # The device may not have enough memory for a second state.
        del self.state
        self.state, iterator = checkpoints.restore(step, like)
        self.batches.set_state(iterator)

    def step(self, number: int) -> Step:
        """Takes step `number`, and waits for it."""
        began = time.perf_counter()
        batch = next(self.batches)
        divided = self.devices.divide_step({k: batch[k] for k in step.BATCH_KEYS})
        self.state, metrics = self._train_step(self.state, self._frozen, divided)
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)
        tokens = int(np.count_nonzero(batch["segment_ids"]))
        seconds = time.perf_counter() - began
        rate = float(jnp.asarray(self._schedule(number - 1)))
        balance = None if metrics.router_aux_loss is None else float(metrics.router_aux_loss)
        return Step(batch, loss, grad_norm, rate, tokens, seconds, balance)

    def trained(self) -> Llama:
        """The model with its current weights, on the devices of the run, for held-out rows."""
        return Llama(self.model.config, lora.combine(self.state.trainable, self._frozen), self.settings)

    def publish_programs(self) -> None:
        """Stores the compiled programs, before a checkpoint refers to them."""
        compiled = self.programs.publish()
        if compiled and self.saved_execution is not None and not self.programs.lost:
            say(
                self.console,
                f"warning: the step is compiled to another program than at the start of the run; {COMPILED_AGAIN}",
            )
