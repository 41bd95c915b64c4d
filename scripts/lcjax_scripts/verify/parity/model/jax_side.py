"""SmolLM2 with a LoRA adapter in lcjax: logits and gradients for each attention implementation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

import lcjax
from lcjax import step
from lcjax.errors import InputError
from lcjax.model import lora
from lcjax.weights.peft import adapter_names
from lcjax_scripts.verify.inputs import Arrays, digest
from lcjax_scripts.verify.parity.jobs import Job, outcome_of
from lcjax_scripts.verify.parity.model.inputs import (
    GRADIENTS,
    LORA_ALPHA,
    TARGET_MODULES,
    adapter_tensor,
    model_shape,
    text,
    tokens_and_labels,
)
from lcjax_scripts.verify.parity.results import Outcome, SideResult

# Halves the compile time on a CPU, and still uses the libraries' matrix products.
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 1}


def run(job: Job, implementations: Iterable[str]) -> SideResult:
    shape = model_shape(job)
    assert job.model_file is not None
    base, tokenizer = lcjax.from_pretrained(job.model_file, max_seq_length=shape.tokens, dtype=shape.dtype)
    model = lcjax.get_peft_model(base, r=shape.rank, lora_alpha=LORA_ALPHA, target_modules=TARGET_MODULES)
    assert model.settings.lora is not None
    names = adapter_names(model.settings.lora, model.config)
    values = {name.name: adapter_tensor(name.name, name.shape) for name in names}
    tokens, labels = tokens_and_labels(tokenizer(text())["input_ids"], shape)
    outcomes: dict[str, Outcome] = {}
    refused: dict[str, str] = {}
    for implementation in implementations:
        compute = functools.partial(
            _logits_and_gradients, _with_adapter(model, names, values, implementation), tokens, labels
        )
        # Multiply in full float32 as torch does. By default, a GPU rounds to TF32.
        with jax.default_matmul_precision("highest"):
            try:
                outcomes[implementation] = outcome_of(compute, refusal=InputError)
            except InputError as reason:
                refused[implementation] = str(reason)
    return SideResult(digest({"tokens": tokens, "labels": labels, **values}), outcomes, refused)


def _with_adapter(model: lcjax.Llama, names, values: Arrays, implementation: str) -> lcjax.Llama:
    layers: dict[tuple[str, ...], list[np.ndarray]] = {}
    for name in names:
        layers.setdefault(name.path, []).append(values[name.name])
    base, adapter = lora.detach(model.params)
    leaves = {path: jnp.stack([jnp.asarray(x) for x in of_layer]) for path, of_layer in layers.items()}
    adapter = jax.tree.map_with_path(lambda path, _: leaves[tuple(key.key for key in path)], adapter)
    requested = dataclasses.replace(model.settings.requested, attention=implementation)
    execution = step.resolve(requested, model.config, model.dtype)
    settings = dataclasses.replace(model.settings, requested=requested, execution=execution)
    return lcjax.Llama(model.config, lora.attach(base, adapter), settings)


def _logits_and_gradients(model: lcjax.Llama, tokens: np.ndarray, labels: np.ndarray) -> Arrays:
    options = QUICK_TO_COMPILE if jax.default_backend() == "cpu" else None
    logits = jax.jit(lambda model, tokens: model(tokens), compiler_options=options)(model, tokens)
    trainable, frozen = lora.partition(model.params, lora.trainable_mask(model.params, lora.adapters_only))
    batch = {
        "tokens": tokens,
        "labels": labels,
        "positions": np.arange(tokens.shape[1], dtype=np.int32)[None],
        "segment_ids": np.ones_like(tokens),
    }
    objective = step.Objective(model.config, model.settings)
    compute = jax.jit(step.gradients, static_argnums=0, compiler_options=options)
    *_, gradients = compute(objective, trainable, frozen, {k: jnp.asarray(x)[None] for k, x in batch.items()}, None)
    leaves = jax.tree.leaves_with_path(gradients)
    named = {".".join(key.key for key in path[1:]): np.asarray(leaf, np.float32) for path, leaf in leaves}
    return {"logits": np.asarray(logits, np.float32)} | {f"{GRADIENTS}/{k}": x for k, x in named.items()}
