"""What both sides share of a model shape: the text, and the random values of the adapter."""

from __future__ import annotations

import argparse
import inspect
import re

import numpy as np

from lcjax_scripts.verify.cases import ModelShape
from lcjax_scripts.verify.inputs import Arrays, generator
from lcjax_scripts.verify.parity.jobs import Job

LORA_ALPHA = 32
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GRADIENTS = "LoRA gradients"


def model_shape(job: Job) -> ModelShape:
    assert isinstance(job.shape, ModelShape)
    return job.shape


def text() -> str:
    return inspect.getsource(argparse)


def tokens_and_labels(ids: list[int], shape: ModelShape) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first tokens of a text and their labels (the next tokens), both int32 [1, T]."""
    array = np.asarray(ids[: shape.tokens + 1], np.int32)[None]
    return array[:, :-1], array[:, 1:]


def adapter_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 values of an adapter tensor, seeded by its name in PEFT's files.

    A has the scale of PEFT's initialization, and B the scale after some training.
    """
    size = shape[1] ** -0.5 if "lora_A" in name else 0.01
    return (size * generator(name).normal(size=shape)).astype(np.float32)


def stacked(tensors: Arrays) -> Arrays:
    """Stacks the tensors of all layers, given by PEFT's names.

    For example, "LoRA gradients/self_attn.q_proj.lora_A" is [L, r, D].
    """
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        found = re.search(r"layers\.(\d+)\.(.+)\.weight$", name)
        assert found, name
        layers.setdefault(f"{GRADIENTS}/{found[2]}", {})[int(found[1])] = tensor
    return {name: np.stack([of_layer[n] for n in sorted(of_layer)]) for name, of_layer in layers.items()}
