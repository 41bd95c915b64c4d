"""What a run is refused for before its data are read, without starting JAX's devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcjax.api import resolve_dtype
from lcjax.config import LlamaConfig, target_modules_of
from lcjax.config.policies import check_policy
from lcjax.errors import InputError
from lcjax.memory.allocators import cpu_devices, may_have_gpu, visible_devices, visible_gpus
from lcjax.model.lora import check_targets
from lcjax.model.params import check_quantizable
from lcjax.ops.attention.registry import backend_of
from lcjax.pallas.triton.block_sizes import traced_for
from lcjax.parallel.processes import is_alone, processes_per_host
from lcjax.step import Hardware, resolve, resolve_mesh
from lcjax.step.program import balance_weight
from lcjax.train.arguments import RunArguments
from lcjax.train.checkpoints.folder import RunFolder
from lcjax.train.start.model import config_of_run


def check_policy_early(arguments: RunArguments) -> None:
    """Checks a policy before anything is read: it must be allowed if all devices share a sequence.

    If this process is alone, JAX's devices are not started.

    Raises:
      InputError: the policy is not allowed.
    """
    devices = arguments.mesh_request.context or (visible_devices() if is_alone() else jax.device_count())
    check_policy(arguments.use_gradient_checkpointing, -(-arguments.max_seq_length // devices))


def check_model(config: LlamaConfig, arguments: RunArguments, folder: RunFolder) -> None:
    """Checks that a run is possible with a model of this config.

    Raises:
      InputError: the resumed run had another model, or the model or the visible devices do not
        support some argument.
    """
    config = config_of_run(config, arguments)
    # First, because other arguments may not suit another model.
    folder.refuse_other_config(config)
    if arguments.full_finetuning and (experts := config.family.experts(config)) and experts.stored_format:
        raise InputError(
            f"--full-finetuning trains every weight, and the experts of {arguments.model} are in {experts.stored_format}: "
            f"convert it first with `lcjax convert {arguments.model} NEW_FOLDER --dtype bfloat16`, or train an "
            "adapter"
        )
    if not arguments.full_finetuning:
        modules = target_modules_of(config.family, arguments.target_modules)
        check_targets(config, modules, arguments.lora_dropout)
    balance_weight(config, arguments, trains_router=arguments.full_finetuning)
    check_quantizable(config, arguments.quantize)
    dtype = "bfloat16" if arguments.dtype == "auto" else arguments.dtype
    resolve(arguments.execution_request, config, jnp.dtype(dtype), "gpu")
    if arguments.attention != "auto" and backend_of(arguments.attention).needs_gpu and not may_have_gpu():
        raise InputError(
            f"attention={arguments.attention!r} needs a GPU, and JAX finds none here; use attention='auto', or "
            "start the run on a machine with one"
        )
    _check_mesh(config, arguments)


def check_attention_here(config: LlamaConfig, arguments: RunArguments) -> None:
    """Checks that JAX's devices can run the requested attention, before weights are loaded.

    Starts the devices.

    Raises:
      InputError: they cannot.
    """
    if arguments.attention != "auto" and jax.default_backend() == "gpu":
        with traced_for(jax.devices()[0]):
            resolve(arguments.execution_request, config, resolve_dtype(arguments.dtype), "gpu")


def _check_mesh(config: LlamaConfig, arguments: RunArguments) -> None:
    """Raises InputError if neither the GPUs nor the CPU's devices can share the work as requested.

    JAX runs on one or the other.
    """
    if is_alone():
        possible = [Hardware(count, count) for count in sorted((cpu_devices(), visible_gpus()))]
    else:
        possible = [Hardware(jax.device_count(), jax.local_device_count() * processes_per_host())]
    refusals = []
    for hardware in possible:
        try:
            resolve_mesh(
                arguments.mesh_request,
                config,
                hardware,
                max_seq_length=arguments.max_seq_length,
                micro_batches=arguments.gradient_accumulation_steps,
                weights_bytes=0,
                trains_every_weight=arguments.full_finetuning,
                attention=arguments.attention,
            )
        except InputError as refusal:
            refusals.append(refusal)
    if len(refusals) == len(possible):
        raise refusals[-1]
