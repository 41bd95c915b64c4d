"""The public functions, with names known from Unsloth and PEFT."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lcjax import weights
from lcjax.config import (
    ALL_LINEAR,
    ExecutionRequest,
    LlamaConfig,
    LoraConfig,
    MemorySettings,
    parse_memory,
    target_modules_of,
)
from lcjax.config.policies import check_policy_name
from lcjax.config.precision import check_dtype, check_quantize
from lcjax.config.rope_choice import check_choice, choose_rope, describe_rope
from lcjax.errors import InputError
from lcjax.model import Llama, lora
from lcjax.model.params import TensorName
from lcjax.ops.attention.registry import check_implementation
from lcjax.parallel.devices import ON_ONE, Devices
from lcjax.step import resolved_settings, with_request
from lcjax.weights.cards.card import adapter_card, model_card

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    ModelFiles: TypeAlias = tuple[weights.Checkpoint, PreTrainedTokenizerFast]

logger = logging.getLogger("lcjax")


def from_pretrained(
    name_or_path: str | Path,
    max_seq_length: int | None = None,
    dtype: str | None = None,
    use_gradient_checkpointing: str = "auto",
    attention: str = "auto",
    quantize: str | None = None,
    memory: MemorySettings | str = "auto",
    rope_scaling: str = "auto",
    rope_theta: float | None = None,
    embeddings_on_host: bool = False,
    loss_chunk: int | None = None,
    devices: Devices = ON_ONE,
    files: ModelFiles | None = None,
) -> tuple[Llama, PreTrainedTokenizerFast]:
    """Loads a model and its tokenizer.

    Args:
      name_or_path: a Hugging Face directory (config.json and safetensors), a .gguf file, or a hub
        id.
      max_seq_length: the largest length of sequences, in tokens; None means the model's trained
        context.
      dtype: "float32" or "bfloat16"; None means bfloat16 on an accelerator and float32 on a CPU.
      use_gradient_checkpointing: for full fine-tuning; `get_peft_model` has its own.
      attention: the implementation, see `lcjax.ops.attention`.
      quantize: "nf4" stores the layers' linear maps in 4 bits, as bitsandbytes does, for training
        adapters on them; activations stay in `dtype`. A checkpoint that bitsandbytes wrote in NF4
        stays in NF4 in any case.
      memory: how layers run in tiles: `lcjax.config.MemorySettings`, its text form
        ("tile=4096,head_groups=8"), "none", or "auto", which uses tiles above 32,768 tokens.
      rope_scaling, rope_theta: how RoPE is extended beyond the trained context, see
      `lcjax.config.rope_choice.choose_rope`. A log line reports the choice. The model's config
      contains it, and so do saved files.
      embeddings_on_host: puts embedding and head in pinned host memory, where training may leave
        them, until they are needed. `memory` may request this as well.
      loss_chunk: number of tokens whose logits exist at a time during training; None means as many
        as fill 32 to 128 MiB.
      devices: that get the weights, or each a part of them, see `lcjax.parallel.devices`; by
        default the first device alone. `lcjax.train` distributes them itself if they are on one.
      files: the model's files and its tokenizer, if the caller has opened them.

    Returns:
      (model, tokenizer): a `lcjax.model.Llama` and a transformers `PreTrainedTokenizerFast`.

    Raises:
      InputError: the model or an argument is not usable; the message names it and the remedy.
    """
    jax_dtype = resolve_dtype(dtype)
    check_implementation(attention)
    check_quantize(quantize)
    check_choice(rope_scaling, rope_theta)
    source = weights.resolve_model(str(name_or_path))
    memory = parse_memory(memory) if isinstance(memory, str) else memory
    checkpoint, tokenizer = files or (weights.open_model_files(source), weights.load_tokenizer(source))
    length = checkpoint.config.max_position_embeddings if max_seq_length is None else max_seq_length
    config = _with_chosen_rope(checkpoint.config, length, rope_scaling, rope_theta)
    settings = resolved_settings(
        ExecutionRequest(attention, use_gradient_checkpointing, memory, loss_chunk),
        config,
        jax_dtype,
        length,
        name_or_path=str(name_or_path),
        generation_config=weights.read_generation_config(source),
        mesh=devices.shape if devices.mesh is not None or _runs_on_one() else None,
    )
    left = embeddings_on_host or (isinstance(memory, MemorySettings) and memory.embeddings_on_host)
    params = checkpoint.load(jax_dtype, quantize, embeddings_on_host=left, devices=devices)
    return Llama(config, params, settings), tokenizer


def get_peft_model(
    model: Llama,
    r: int = 16,
    lora_alpha: float = 32,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    use_rslora: bool = False,
    lora_dropout: float = 0.0,
    use_gradient_checkpointing: str = "auto",
    random_state: int = 0,
) -> Llama:
    """A model with a new adapter on `target_modules`; shares the base weights of `model`.

    `model` is unchanged. The adapter's B is zero, so the new model computes what the old one does
    until it is trained.

    Args:
      model: a model without an adapter.
      r, lora_alpha, target_modules, use_rslora, lora_dropout: see `lcjax.config.LoraConfig`;
      target_modules may be one name, and "all-linear" stands for all of the model's.
      use_gradient_checkpointing: "auto", "none", "full", "offload" (or "unsloth"), "offload_attn";
        see `lcjax.memory.checkpoint`.
      random_state: seed of the adapter's A.

    Raises:
      InputError: a value is out of range, or the model already has an adapter.
    """
    modules = target_modules_of(model.config.family, target_modules)
    config = LoraConfig(r, lora_alpha, modules, use_rslora, lora_dropout)
    check_policy_name(use_gradient_checkpointing)
    adapter = lora.init_adapter(model.config, config, jax.random.key(random_state))
    return _with_adapter(model, config, adapter, use_gradient_checkpointing)


def load_adapter(model: Llama, directory: str | Path, *, keep_rope: bool = False) -> Llama:
    """A model with the adapter of a PEFT directory on the weights of `model`.

    The directory has adapter_config.json and adapter_model.safetensors. The model uses the RoPE
    that the adapter was trained with, if `save_pretrained` wrote it, or its own with `keep_rope`. A
    warning says if the adapter was trained on another model of the same shapes. `lcjax.train`
    continues to train the adapter, and does not change the directory.

    Raises:
      InputError: the directory has no adapter, or one of another model or of an unsupported kind.
    """
    lora_config, adapter = weights.load_adapter(Path(directory), model.config)
    if (warning := weights.other_base(Path(directory), model.settings.name_or_path)) is not None:
        logger.warning(warning)
    config = model.config if keep_rope else weights.base_config(directory, model.config)
    chosen, line = choose_rope(config, model.settings.max_seq_length)
    if chosen != model.config:
        logger.warning("RoPE is now that of the adapter in %s: %s", directory, describe_rope(config))
        if line is not None:
            logger.warning(line)
        model = Llama(chosen, model.params, model.settings)
    model = _with_adapter(model, lora_config, adapter, model.settings.requested.use_gradient_checkpointing)
    return Llama(model.config, model.params, dataclasses.replace(model.settings, adapter=str(directory)))


def save_pretrained(
    model: Llama, directory: str | Path, tokenizer=None, figures: Mapping[str, str] | None = None
) -> None:
    """Writes the adapter, as `peft.PeftModel.from_pretrained(base, directory)` reads it.

    The tokenizer is written as well, if given, and a card (README.md) with `figures` of the
    training. A README.md that lcjax did not write stays. base_config.json is the base model's
    config with the RoPE of the training. If that was scaled, transformers' base model needs it
    (`transformers.AutoConfig.from_pretrained("DIRECTORY/base_config.json")`).

    Raises:
      InputError: the model has no adapter, or the directory cannot be written.
    """
    config = model.settings.lora
    if config is None:
        raise InputError("this model has no adapter to save; use save_merged for the full weights")
    _, adapter = lora.detach(model.params)
    name = model.settings.name_or_path
    card = adapter_card(name, config, model.config, figures)
    weights.save_adapter(Path(directory), adapter, config, name, model.config, tokenizer, card)


def save_merged(model: Llama, directory: str | Path, tokenizer=None, figures: Mapping[str, str] | None = None) -> None:
    """Writes a full Hugging Face checkpoint in the base weights' dtype, tensor by tensor.

    The adapter, if any, is merged in. The base model's generation_config.json and the files of an
    unchanged tokenizer are copied byte for byte. Quantized weights are dequantized first: the whole
    checkpoint has the dtype of the embedding, and is many times larger than the model. A card is
    written as by `save_pretrained`.

    Raises:
      InputError: the directory cannot be written.
    """
    scaling = model.settings.lora.scaling if model.settings.lora else 0.0
    params = model.params

    def fetch(name: TensorName) -> np.ndarray:
        return np.asarray(lora.merged_tensor(params, name, scaling).astype(model.dtype))

    weights.write_checkpoint(
        Path(directory),
        fetch,
        model.config,
        tokenizer,
        dtype=np.dtype(model.dtype),
        generation_config=model.settings.generation_config,
        card=model_card(model.settings.name_or_path, merged=model.settings.lora is not None, figures=figures),
    )


def save_gguf(
    model: Llama, path: str | Path, tokenizer: PreTrainedTokenizerFast, type: str = "auto", overwrite: bool = False
) -> None:
    """Writes one file for llama.cpp, tensor by tensor, with the tokenizer and the chat template.

    The adapter, if any, is merged in as `save_merged` does. Quantized weights are dequantized
    first.

    Args:
      model: the model.
      path: the file, whose name ends in .gguf; its folder is created if missing.
      tokenizer: the model's; its stop tokens and those of the base model's generation_config.json
        are written.
      type: of the matrices: "f32", "f16", "bf16", "q8_0", "q4_0" or "mxfp4"; "auto" means bf16 if
        the model is in bfloat16, otherwise f16. See docs/models.md.
      overwrite: replace a file at the path.

    Raises:
      InputError: the file exists or has another name, there is no tokenizer, or GGUF cannot express
        the model or its tokenizer, which is checked before anything is written; or the file cannot
        be written.
    """
    weights.check_gguf_path(path, overwrite=overwrite)
    if tokenizer is None:
        raise InputError(f"{path} needs the model's tokenizer; give the one that from_pretrained returned")
    scaling = model.settings.lora.scaling if model.settings.lora else 0.0
    content = weights.gguf_content(
        model.config,
        tokenizer,
        weights.gguf_type(type, np.dtype(model.dtype)),
        name=model.settings.name_or_path,
        generation_config=model.settings.generation_config,
    )
    for note in content.notes:
        logger.warning(note)

    def fetch(name: TensorName) -> np.ndarray:
        return np.asarray(lora.merged_tensor(model.params, name, scaling).astype(jnp.float32))

    weights.write_gguf(path, content, fetch)


def resolve_dtype(name: str | None):
    """The dtype of that name; for None, the best one for the default device.

    Raises:
      InputError: the name is neither float32 nor bfloat16.
    """
    check_dtype(name)
    if name is None or name == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(name).type


def _with_chosen_rope(
    config: LlamaConfig, length: int, rope_scaling: str = "auto", rope_theta: float | None = None
) -> LlamaConfig:
    config, line = choose_rope(config, length, rope_scaling, rope_theta)
    if line is not None:
        logger.warning(line)
    return config


def _runs_on_one() -> bool:
    """Whether a model can only run on one device; otherwise a run chooses how many share it."""
    return jax.device_count() == 1


def _with_adapter(model: Llama, config: LoraConfig, adapter: lora.Tree, use_gradient_checkpointing: str) -> Llama:
    if model.settings.lora is not None:
        raise InputError("this model already has an adapter; start from the base model, or from save_merged")
    lora.check_targets(model.config, config.target_modules, config.lora_dropout)
    settings = dataclasses.replace(model.settings, lora=config)
    settings = with_request(
        settings, mesh_is_known=_runs_on_one(), use_gradient_checkpointing=use_gradient_checkpointing
    )
    return Llama(model.config, lora.attach(model.params, adapter), settings)
