"""The model that a run trains: with a new adapter, with one that was trained before, or without."""

from __future__ import annotations

import dataclasses

from lcjax import api, weights
from lcjax.config import LlamaConfig
from lcjax.config.rope_choice import choose_rope
from lcjax.model import Llama
from lcjax.train.arguments import RunArguments
from lcjax.train.checkpoints.checkpoint import Checkpoints
from lcjax.train.checkpoints.resume import find_resume_point
from lcjax.train.compiled.execution import open_adapter_programs
from lcjax.train.start.point import find_start, with_saved_rope


def model_to_train(model: Llama, arguments: RunArguments) -> Llama:
    """The loaded model as the run trains it.

    A run that starts from a checkpoint, or is resumed, has its trained weights there, and they
    replace those of this model. It does not read the adapter that it had started from.

    Raises:
      InputError: the adapter cannot be read, or it belongs to another model.
    """
    if arguments.adapter is not None and arguments.resume_from_checkpoint is None:
        model = api.load_adapter(model, arguments.adapter, keep_rope=_chooses_rope(arguments))
        assert model.settings.lora is not None
        lora = dataclasses.replace(model.settings.lora, lora_dropout=arguments.lora_dropout)
        return Llama(model.config, model.params, dataclasses.replace(model.settings, lora=lora))
    trained = _trained_so_far(model.config, arguments)
    if trained is not None:
        model = Llama(_extended(model.config, trained, arguments), model.params, model.settings)
    if arguments.full_finetuning:
        return model
    programs = open_adapter_programs(model, arguments)
    with programs.compiling():
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
    programs.publish()
    return model


def config_of_run(config: LlamaConfig, arguments: RunArguments) -> LlamaConfig:
    """The model's own config with the RoPE of the run: as requested, or as trained so far.

    Raises:
      InputError: the arguments do not suit the model.
    """
    trained = _trained_so_far(config, arguments)
    if trained is not None:
        return _extended(config, trained, arguments)
    return choose_rope(config, arguments.max_seq_length, arguments.rope_scaling, arguments.rope_theta)[0]


def _extended(config: LlamaConfig, trained: LlamaConfig, arguments: RunArguments) -> LlamaConfig:
    """The config with the RoPE of trained weights, extended to the run's length if necessary."""
    return choose_rope(config.with_rope_of(trained), arguments.max_seq_length)[0]


def _chooses_rope(arguments: RunArguments) -> bool:
    return arguments.rope_scaling != "auto" or arguments.rope_theta is not None


def _trained_so_far(config: LlamaConfig, arguments: RunArguments) -> LlamaConfig | None:
    """A config with the RoPE of the weights that the run starts from.

    None if they are new, or if the arguments choose RoPE.
    """
    if (arguments.adapter is None and arguments.start_from is None) or _chooses_rope(arguments):
        return None
    if arguments.resume_from_checkpoint is not None:
        point = find_resume_point(arguments.resume_from_checkpoint, arguments.output_dir)
        assert point is not None
        return with_saved_rope(config, Checkpoints(point.directory).run(point.step))
    if (start := find_start(arguments)) is not None:
        return start.with_its_rope(config)
    return weights.base_config(str(arguments.adapter), config)
