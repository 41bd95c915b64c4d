"""The training step: what training, planning, evaluation and the tests all compile.

resolve.py      from what a user requests to how the model runs
attention.py    which implementation computes attention, and why
objective.py    the loss and its gradient over micro-batches
update.py       one optimizer step, and how it is compiled
on_devices.py   a model on all devices, for commands that do not train
program.py      a run's objective, optimizer and schedule, made from its arguments
"""

from lcjax.step.attention import why_attention as why_attention
from lcjax.step.attention import with_attention as with_attention
from lcjax.step.objective import BATCH_KEYS as BATCH_KEYS
from lcjax.step.objective import Batch as Batch
from lcjax.step.objective import Objective as Objective
from lcjax.step.objective import gradients as gradients
from lcjax.step.objective import token_scores as token_scores
from lcjax.step.resolve import Hardware as Hardware
from lcjax.step.resolve import resolve as resolve
from lcjax.step.resolve import resolve_mesh as resolve_mesh
from lcjax.step.resolve import resolved_settings as resolved_settings
from lcjax.step.resolve import with_mesh as with_mesh
from lcjax.step.resolve import with_request as with_request
from lcjax.step.update import StepMetrics as StepMetrics
from lcjax.step.update import TrainState as TrainState
from lcjax.step.update import abstract_state as abstract_state
from lcjax.step.update import init_state as init_state
from lcjax.step.update import jit_token_scores as jit_token_scores
from lcjax.step.update import jit_train_step as jit_train_step
from lcjax.step.update import train_step as train_step
