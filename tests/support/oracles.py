"""One model in three versions: lcjax, and transformers + PEFT in the same dtype and in float64."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import peft
import torch
import transformers

import lcjax
from lcjax import step, weights
from lcjax.model import lora
from lcjax.model.params import TensorName, tensor_names
from lcjax.ops.cross_entropy import IGNORE
from lcjax.weights.peft import adapter_names
from tests.support import plain_attention
from tests.support.compiling import QUICK_TO_COMPILE, QUICKEST_TO_COMPILE
from tests.support.fused_experts import parameter_of, tensor_of
from tests.support.settings import model_settings
from tests.support.shapes import MODEL_COMMON

JAX_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Oracle:
    """A checkpoint on disk, optionally with an adapter, that all three versions read."""

    directory: Path
    adapter: Path | None = None
    dtype: str = "float32"

    def model(self, **settings: Any) -> lcjax.Llama:
        """The model in lcjax."""
        config, params, _ = weights.load_model_files(self.directory, JAX_DTYPES[self.dtype])
        model = lcjax.Llama(config, params, model_settings(1024, config, **settings))
        return model if self.adapter is None else lcjax.load_adapter(model, self.adapter)

    @functools.cached_property
    def original(self):
        """The model in transformers, in the checkpoint's dtype. Its angles are float32 products."""
        return self._with_adapter(getattr(torch, self.dtype))

    @functools.cached_property
    def plain(self):
        """The model in transformers, in the checkpoint's dtype, with exact angles."""
        return _with_exact_angles(self._with_adapter(getattr(torch, self.dtype)))

    @functools.cached_property
    def exact(self):
        """The model in transformers, in float64, with exact angles of its float32 frequencies."""
        model = _with_exact_angles(self._with_adapter(torch.float32).double())
        for module in model.modules():
            # transformers always computes these in float32
            for kind, forward in (("RMSNorm", _exact_norm), ("MoeTopKRouter", _exact_router)):
                if type(module).__name__.endswith(kind):
                    module.forward = functools.partial(forward, module)
        return model

    def _with_adapter(self, dtype: torch.dtype):
        model = transformers.AutoModelForCausalLM.from_pretrained(self.directory, dtype=dtype)
        if not model._supports_sdpa:  # the attention that it has is never float64
            model.set_attn_implementation(plain_attention.NAME)
        model.set_experts_implementation("eager")  # the others are never float64
        if self.adapter is not None:
            # No autocast, because the adapter's products must have that dtype too.
            with warnings.catch_warnings():
                # PEFT says so of adapters of experts, and applies the pattern.
                warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")
                model = peft.PeftModel.from_pretrained(
                    model, str(self.adapter), is_trainable=True, autocast_adapter_dtype=False
                )
        return model.eval()


def _with_exact_angles(model):
    """Changes a model of transformers to have float64 angles of its float32 frequencies."""
    [rotary] = (module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding"))
    in_float32 = rotary.forward

    def forward(x, position_ids, *layer_type):
        in_float32(x, position_ids, *layer_type)  # it may depend on the length
        inv_freq, scaling = (
            getattr(rotary, "_".join([*layer_type, name])) for name in ("inv_freq", "attention_scaling")
        )
        angles = position_ids[..., None].double() * inv_freq.double()
        if "GptOss" not in type(rotary).__name__:  # its cosines are those of one half
            angles = torch.cat([angles, angles], dim=-1)
        return tuple((scaling * f(angles)).to(x.dtype) for f in (torch.cos, torch.sin))

    rotary.forward = forward
    return model


def make_oracle(directory: Path, *, adapter: bool = True, seed: int = 0, **fields: Any) -> Oracle:
    """Makes a random model with large attention scores, an adapter, and norms and biases.

    Both A and B of the adapter are random. `fields` are those of config.json.
    """
    torch.manual_seed(seed)
    dtype = fields.pop("dtype", "float32")
    fields = {"model_type": "llama", **MODEL_COMMON, **fields, "initializer_range": 0.15}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "sinks")) or "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    model.to(getattr(torch, dtype)).save_pretrained(directory / "model")
    oracle = Oracle(directory / "model", dtype=dtype)
    return with_random_adapter(oracle, directory / "adapter") if adapter else oracle


def with_random_adapter(oracle: Oracle, directory: Path, scale: float = 0.05, **fields: Any) -> Oracle:
    """Returns the oracle with a PEFT adapter whose B is not zero."""
    options = {"r": 5, "lora_alpha": 7, "target_modules": "all-linear", **fields}
    config = oracle.model().config
    if config.family.experts(config) is not None:
        return _with_our_adapter(oracle, directory, scale, **options)
    model = transformers.AutoModelForCausalLM.from_pretrained(oracle.directory, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(**options, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, scale)
    model.save_pretrained(str(directory))
    return dataclasses.replace(oracle, adapter=directory)


def _with_our_adapter(oracle: Oracle, directory: Path, scale: float, **options: Any) -> Oracle:
    """An adapter of experts that lcjax writes: PEFT's own has no separate ones of gate and up."""
    model = lcjax.get_peft_model(oracle.model(), **options)
    base, adapter = lora.detach(model.params)
    rng = np.random.default_rng(0)
    filled = jax.tree.map_with_path(
        lambda path, x: x if path[-1].key == "lora_A" else jnp.asarray(rng.normal(0, scale, x.shape), x.dtype), adapter
    )
    lcjax.save_pretrained(lcjax.Llama(model.config, lora.attach(base, filled), model.settings), directory)
    return dataclasses.replace(oracle, adapter=directory)


def make_batch(
    vocabulary: int, rows: int, tokens: int, *, positions: Any = None, documents: int = 1, seed: int = 0
) -> Batch:
    """Makes random tokens with labels, some of them IGNORE.

    Each row has `documents` packed documents, or the given positions.
    """
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(1, documents + 1, (rows, tokens)), axis=1)
    if positions is None:
        positions = np.stack([np.arange(tokens) - np.searchsorted(row, row) for row in segments])
    labels = rng.integers(0, vocabulary, (rows, tokens))
    labels[rng.random((rows, tokens)) < 0.2] = IGNORE
    arrays = {
        "tokens": rng.integers(0, vocabulary, (rows, tokens)),
        "labels": labels,
        "positions": np.broadcast_to(positions, (rows, tokens)),
        "segment_ids": segments,
    }
    return {name: np.ascontiguousarray(value, dtype=np.int32) for name, value in arrays.items()}


def torch_logits(model, batch: Batch) -> torch.Tensor:
    """Returns transformers' logits. The mask is explicit, so that positions can be arbitrary."""
    tokens, positions = (torch.from_numpy(batch[k]).long() for k in ("tokens", "positions"))
    mask = torch_mask(model, batch)
    return model(input_ids=tokens, position_ids=positions, attention_mask=mask, use_cache=False).logits


def torch_mask(model, batch: Batch) -> Any:
    """Returns which tokens see which, in the form that the model of transformers takes."""
    segments = torch.from_numpy(batch["segment_ids"]).long()
    mask = (segments[:, :, None] == segments[:, None, :]).tril()[:, None]
    if (window := getattr(model.config, "sliding_window", None)) is not None:
        in_window = mask.triu(1 - window)
        differ = len(set(getattr(model.config, "layer_types", None) or ())) > 1
        mask = {"full_attention": mask, "sliding_attention": in_window} if differ else in_window
    return mask


def torch_loss(model, batch: Batch) -> torch.Tensor:
    """Returns the mean loss over labels that are not IGNORE."""
    logits = torch_logits(model, batch)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    labels = torch.from_numpy(batch["labels"]).long()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)


def torch_gradients(model, batch: Batch, names: list[TensorName]) -> lora.Tree:
    """Returns the gradients of `torch_loss` as lcjax's stacked tree."""
    parameters = {name.replace(".default.", "."): p for name, p in model.named_parameters()}
    wanted = {name: parameters[name].requires_grad_() for name in dict.fromkeys(map(parameter_of, names))}
    gradients = torch.autograd.grad(torch_loss(model, batch), list(wanted.values()))
    return stacked({name: to_numpy(g) for name, g in zip(wanted, gradients, strict=True)}, names)


def stacked(arrays: dict[str, np.ndarray], names: list[TensorName]) -> lora.Tree:
    """Returns arrays by name, of a checkpoint or of PEFT, as the tree of `lcjax.model.params`."""
    experts = max((name.expert or 0 for name in names), default=0) + 1
    tree: lora.Tree = {}
    for path, tensors in itertools.groupby(names, lambda name: name.path):
        node, last = tree, None
        for part in path[:-1]:
            node = node.setdefault(part, {})
        found = []
        for last in tensors:
            found.append(tensor_of(arrays[parameter_of(last)], last, experts))
        assert last is not None
        node[path[-1]] = np.stack(found).reshape(*(i + 1 for i in last.index), *found[0].shape)
    return tree


def names_of(model: lcjax.Llama) -> list[TensorName]:
    """Returns the trainable tensors by their names in Hugging Face's or PEFT's files."""
    adapter = model.settings.lora
    if adapter is None:
        return list(tensor_names(model.config))
    return adapter_names(adapter, model.config)


def split(model: lcjax.Llama) -> tuple[lora.Tree, lora.Tree, lora.Tree]:
    """Returns (trainable, frozen, mask). Without an adapter, everything is trainable."""
    mask = lora.trainable_mask(model.params, lora.everything if model.settings.lora is None else lora.adapters_only)
    return *lora.partition(model.params, mask), mask


def micro_batches(batch: Batch, count: int = 1) -> step.Batch:
    """Reshapes [B, T] to [A, B / A, T]."""
    return {name: jnp.asarray(value).reshape(count, -1, value.shape[-1]) for name, value in batch.items()}


def jax_gradients(
    model: lcjax.Llama, batch: Batch, count: int = 1, *, same_bits: bool = False
) -> tuple[float, lora.Tree]:
    """Returns (mean loss, gradients) of lcjax's public step with `count` micro-batches.

    With `same_bits`, it is compiled so that equal computations in other programs have equal bits.
    """
    trainable, frozen, _ = split(model)
    objective = step.Objective(model.config, model.settings)
    compiled = _GRADIENTS["same bits" if same_bits else "quickest"]
    loss, *_, gradients = compiled(objective, trainable, frozen, micro_batches(batch, count), None)
    return float(loss), without_masked(gradients)


_GRADIENTS = {
    name: jax.jit(step.gradients, static_argnums=0, compiler_options=options)
    for name, options in (("same bits", QUICK_TO_COMPILE), ("quickest", QUICKEST_TO_COMPILE))
}


def without_masked(tree: lora.Tree) -> lora.Tree:
    """Returns the tree without the leaves that `lora.partition` masked."""
    unmasked = {name: without_masked(value) if isinstance(value, dict) else value for name, value in tree.items()}
    return {name: value for name, value in unmasked.items() if jax.tree.leaves(value)}


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Returns a copy with the tensor's dtype, which may be bfloat16."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


def _exact_router(module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    logits = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), module.weight)
    values, indices = torch.topk(logits.softmax(-1), module.top_k, dim=-1)
    return logits, values / values.sum(-1, keepdim=True) if module.norm_topk_prob else values, indices


def _exact_norm(module, x: torch.Tensor) -> torch.Tensor:
    is_gemma = "Gemma" in type(module).__name__
    weight, eps = (1 + module.weight, module.eps) if is_gemma else (module.weight, module.variance_epsilon)
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
