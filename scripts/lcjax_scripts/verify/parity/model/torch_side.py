"""The same model in transformers + PEFT, in its dtype and in float64, with exact angles."""

from __future__ import annotations

import functools

import numpy as np
import peft
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from lcjax_scripts.verify.inputs import Arrays, digest
from lcjax_scripts.verify.parity.jobs import Job
from lcjax_scripts.verify.parity.model.inputs import (
    LORA_ALPHA,
    TARGET_MODULES,
    adapter_tensor,
    model_shape,
    stacked,
    text,
    tokens_and_labels,
)
from lcjax_scripts.verify.parity.results import SideResult

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(job: Job) -> SideResult:
    shape = model_shape(job)
    assert job.model_file is not None
    folder, file = str(job.model_file.parent), job.model_file.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    tokens, labels = tokens_and_labels(tokenizer(text())["input_ids"], shape)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=getattr(torch, shape.dtype))
    options = {"r": shape.rank, "lora_alpha": LORA_ALPHA, "target_modules": list(TARGET_MODULES), "lora_dropout": 0.0}
    model = peft.get_peft_model(base, peft.LoraConfig(**options, task_type="CAUSAL_LM")).eval().to(DEVICE)
    _use_float64_angles(model)
    values = {}
    for name, parameter in _adapter(model).items():
        values[name] = adapter_tensor(name, tuple(parameter.shape))
        parameter.data.copy_(torch.from_numpy(values[name]))
    plain = _logits_and_gradients(model, tokens, labels)
    model.double()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):  # transformers always computes it in float32
            object.__setattr__(module, "forward", functools.partial(_exact_norm, module))
    exact = _logits_and_gradients(model, tokens, labels)
    return SideResult(digest({"tokens": tokens, "labels": labels, **values}), {"plain": plain, "exact": exact}, {})


def _adapter(model) -> dict[str, torch.nn.Parameter]:
    """Returns the trainable parameters by their names in PEFT's files."""
    return {name.replace(".default.", "."): p for name, p in model.named_parameters() if p.requires_grad}


def _logits_and_gradients(model, tokens: np.ndarray, labels: np.ndarray) -> Arrays:
    inputs, wanted = (torch.from_numpy(x).long().to(DEVICE) for x in (tokens, labels))
    logits = model(input_ids=inputs, use_cache=False).logits
    adapter = _adapter(model)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    gradients = torch.autograd.grad(loss, list(adapter.values()))
    named = {name: gradient.cpu().numpy() for name, gradient in zip(adapter, gradients, strict=True)}
    return {"logits": logits.detach().cpu().numpy()} | stacked(named)


def _use_float64_angles(model) -> None:
    """Changes the RoPE of transformers, whose angles are float32 products."""
    [rotary] = (module for module in model.modules() if isinstance(module, LlamaRotaryEmbedding))
    frequencies = rotary.inv_freq.double()  # before the model becomes float64

    def forward(x, position_ids):
        angles = position_ids[..., None].double() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return tuple((rotary.attention_scaling * f(angles)).to(x.dtype) for f in (torch.cos, torch.sin))

    object.__setattr__(rotary, "forward", forward)


def _exact_norm(module, x: torch.Tensor) -> torch.Tensor:
    return module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
