"""What a run computes with, made from its arguments: the trainer compiles it, and so does the planner."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax

from lcjax import lora, optim
from lcjax.config import LlamaConfig
from lcjax.model import ModelSettings
from lcjax.step import Objective
from lcjax.train.arguments import TrainingArguments

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Program:
    """The arguments of `lcjax.step.jit_train_step` and `init_state`, and what is trained and what is not."""

    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    trainable: Tree
    frozen: Tree


def build_program(
    config: LlamaConfig, params: Tree, settings: ModelSettings, arguments: TrainingArguments, max_steps: int
) -> Program:
    """The program of a run over `max_steps` steps: the adapter alone learns, or everything where `settings` has none.

    `params` may hold ShapeDtypeStructs in place of arrays; no value is looked at.
    """
    trains = lora.everything if settings.lora is None else lora.adapters_only
    mask = lora.trainable_mask(params, trains)
    trainable, frozen = lora.partition(params, mask)
    schedule = optim.make_schedule(
        arguments.lr_scheduler_type,
        arguments.learning_rate,
        max_steps,
        warmup_steps=arguments.warmup_steps,
        warmup_ratio=arguments.warmup_ratio,
    )
    optimizer = optim.make_optimizer(
        schedule, mask, weight_decay=arguments.weight_decay, max_grad_norm=arguments.max_grad_norm
    )
    return Program(Objective(config, settings), optimizer, schedule, trainable, frozen)
