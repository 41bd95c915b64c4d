"""A run's objective, optimizer and schedule, from its arguments, for training and planning."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lcjax.config import LlamaConfig
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.memory import place_embeddings
from lcjax.model import ModelSettings, lora
from lcjax.optim.adamw import make_optimizer
from lcjax.optim.layerwise import host_bytes
from lcjax.optim.schedules import make_schedule
from lcjax.step import Objective

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Program:
    """Arguments of `lcjax.step.jit_train_step` and `init_state`, and the split parameters."""

    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    trainable: Tree
    frozen: Tree

    @property
    def host_state_bytes(self) -> int:
        """Bytes of the optimizer's state that are in host memory between steps."""
        return host_bytes(jax.eval_shape(self.optimizer.init, self.trainable))


def build_program(
    config: LlamaConfig,
    params: Tree,
    settings: ModelSettings,
    arguments: TrainingArguments,
    max_steps: int,
    optimizer_steps: int = 0,
) -> Program:
    """The program of a run over `max_steps` steps.

    `optimizer_steps` are those that the optimizer's state has taken before the first step of the
    run, at which the schedule begins.

    Only the adapter is trained, or all parameters if `settings` has no adapter. `params` may
    contain ShapeDtypeStructs instead of arrays; no values are read. Embedding and head are moved to
    the memory that the settings specify.

    Raises:
      InputError: the settings place trainable embeddings in host memory.
    """
    memory = settings.form.memory
    on_host = memory is not None and memory.embeddings_on_host
    if on_host and settings.lora is None:
        raise InputError(
            "memory=embeddings_on_host=true is for frozen embeddings, but here they are trained; "
            "omit it, or train an adapter"
        )
    params = place_embeddings(params, on_host=on_host)
    trains = lora.everything if settings.lora is None else lora.adapters_only
    mask = lora.trainable_mask(params, trains)
    trainable, frozen = lora.partition(params, mask)
    schedule = make_schedule(
        arguments.lr_scheduler_type,
        arguments.learning_rate,
        max_steps,
        warmup_steps=arguments.warmup_steps,
        warmup_ratio=arguments.warmup_ratio,
    )
    masters = _has_masters(trainable)
    optimizer = make_optimizer(
        schedule if optimizer_steps == 0 else lambda count: schedule(count - optimizer_steps),
        mask,
        weight_decay=arguments.weight_decay,
        max_grad_norm=arguments.max_grad_norm,
        by_layers=masters,
        on_host=optimizer_is_on_host(arguments, trainable),
        mesh=settings.execution.mesh,
    )
    objective = Objective(config, settings, balance_weight(config, arguments, trains_router=settings.lora is None))
    return Program(objective, optimizer, schedule, trainable, frozen)


def balance_weight(config: LlamaConfig, arguments: TrainingArguments, *, trains_router: bool) -> float:
    """The weight of the loss that balances experts; 0 if there is no router to train.

    Raises:
      InputError: a weight is given, and there is none.
    """
    experts, given = config.family.experts(config), arguments.router_aux_loss_coef
    if experts is None or not trains_router:
        if given:
            why = f"a {config.model_type} model has no experts" if experts is None else "an adapter trains no router"
            remedy = "omit it" if experts is None else "omit it, or train every weight with --full-finetuning"
            raise InputError(f"--router-aux-loss-coef {given} has no effect, because {why}; {remedy}")
        return 0.0
    return float(experts.router_aux_loss_coef if given is None else given)


def optimizer_is_on_host(arguments: TrainingArguments, trainable: Tree) -> bool:
    """Whether the optimizer's state is in host memory between steps."""
    requested = arguments.optimizer_memory
    return requested == "host" or (requested == "auto" and _has_masters(trainable))


def _has_masters(trainable: Tree) -> bool:
    """Whether the optimizer has float32 copies of the weights."""
    return any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(trainable))
