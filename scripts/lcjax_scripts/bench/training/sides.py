"""One optimizer step of the same model, in lcjax and in transformers + PEFT."""

from __future__ import annotations

from collections.abc import Callable

from lcjax_scripts.bench.training.setup import Setup, training_text


def lcjax_step(setup: Setup) -> Callable[[], float]:
    """Returns a function that takes one optimizer step and returns the loss before it."""
    import jax
    import numpy as np

    import lcjax
    from lcjax import step
    from lcjax.model import lora
    from lcjax.optim.adamw import make_optimizer
    from lcjax.optim.schedules import make_schedule

    model, tokenizer = lcjax.from_pretrained(setup.model_path, setup.tokens, setup.dtype)
    model = lcjax.get_peft_model(model)
    ids = np.asarray(tokenizer(training_text())["input_ids"][: setup.tokens + 1], np.int32)
    batch = {
        "tokens": ids[:-1],
        "labels": ids[1:],
        "positions": np.arange(setup.tokens, dtype=np.int32),
        "segment_ids": np.ones(setup.tokens, np.int32),
    }
    batch = {name: jax.numpy.asarray(value)[None, None] for name, value in batch.items()}
    mask = lora.trainable_mask(model.params, lora.adapters_only)
    trainable, frozen = lora.partition(model.params, mask)
    optimizer = make_optimizer(make_schedule("constant", 2e-4, 1), mask)
    state = step.init_state(optimizer, trainable, 0)
    train_step = step.jit_train_step(step.Objective(model.config, model.settings), optimizer)

    def one_step() -> float:
        nonlocal state
        state, metrics = train_step(state, frozen, batch)
        return float(metrics.loss)

    return one_step


def peft_step(setup: Setup) -> Callable[[], float]:
    """Returns the same function for transformers + PEFT."""
    import peft
    import torch
    import transformers

    torch.set_num_threads(setup.threads)
    path = setup.model_path
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = str(path.parent if where else path)
    dtype = getattr(torch, setup.dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **where)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **where)
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0)
    )
    model.train()
    ids = torch.tensor(tokenizer(training_text())["input_ids"][: setup.tokens + 1])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.0)

    def one_step() -> float:
        loss = model(input_ids=ids[None, :-1], shift_labels=ids[None, 1:], labels=ids[None, 1:]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return one_step


STEPS: dict[str, Callable[[Setup], Callable[[], float]]] = {"lcjax": lcjax_step, "peft": peft_step}
