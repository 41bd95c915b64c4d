"""The same step in transformers + PEFT.

It runs in bfloat16, with transformers' gradient checkpointing and torch's
scaled_dot_product_attention.
"""

from __future__ import annotations

from collections.abc import Callable

import peft
import torch
import transformers

from lcjax.config.presets import resolve_config
from lcjax_scripts.bench.steps.shape import Shape


def make_step(shape: Shape, tokens: int) -> Callable[[], float]:
    """Returns a function that takes one step and returns its loss."""
    config = resolve_config(shape.model)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.LlamaConfig(**config.to_dict()), dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    adapter = peft.LoraConfig(r=shape.lora_r, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, adapter)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    ids = (torch.arange(tokens, device="cuda") * 7919 % config.vocab_size)[None]

    def one_step() -> float:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        return float(loss)

    return one_step


def device() -> str:
    """Returns the GPU's name."""
    return torch.cuda.get_device_name()


def peak_bytes() -> int:
    """Returns the peak device memory of this process."""
    return torch.cuda.max_memory_allocated()
