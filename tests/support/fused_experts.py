"""Tensors of single experts in the fused parameters of transformers 5 and PEFT.

transformers has the matrices of all experts in one parameter, and gate and up in one matrix. PEFT
fuses their adapters likewise: A is stacked, and B of gate and up is block-diagonal.

Shapes: E experts, r rank of an adapter.
"""

from __future__ import annotations

import re

import numpy as np
import torch

from lcjax.model.params import TensorName

_OF_JOINT = re.compile(r"(.+\.experts)\.(\w+)\[\d+\](\.lora_[AB]\.weight)?")
"""Of gpt-oss, whose files too have the transposed matrices of all experts in one tensor."""
_OF_EXPERT = re.compile(r"(.+\.experts)\.\d+\.(gate|up|down)_proj\.(weight|lora_A\.weight|lora_B\.weight)")
# PEFT wraps gate and up first, and down around them.
_FUSED_B = re.compile(r".+\.experts\.base_layer\.lora_B\.(?:default\.)?weight")


def parameter_of(name: TensorName) -> str:
    """The name of the parameter, without the adapter's `.default`, that has the tensor."""
    if (joint := _OF_JOINT.fullmatch(name.name)) is not None:
        experts, module, factor = joint.groups()
        return f"{experts}{'' if module == 'down_proj' else '.base_layer'}{factor}" if factor else f"{experts}.{module}"
    match = _OF_EXPERT.fullmatch(name.name)
    if match is None:
        return name.name
    experts, module, tensor = match.groups()
    if tensor == "weight":
        return f"{experts}.{'down_proj' if module == 'down' else 'gate_up_proj'}"
    return f"{experts}.{tensor}" if module == "down" else f"{experts}.base_layer.{tensor}"


def tensor_of(array: np.ndarray, name: TensorName, experts: int) -> np.ndarray:
    """The tensor in its parameter, or in an array like it, such as the gradient."""
    if (joint := _OF_JOINT.fullmatch(name.name)) is not None:
        if joint[3] is None:
            return array[name.expert].T
        return _factor_of(array, name, experts)
    match = _OF_EXPERT.fullmatch(name.name)
    if match is None:
        return array
    _, module, tensor = match.groups()
    own = array[name.expert] if tensor == "weight" else _factor_of(array, name, experts)
    if module == "down":
        return own
    for axis in range(1 + (tensor == "lora_B.weight")):
        own = np.split(own, 2, axis)[module == "up"]
    return own


def _factor_of(array: np.ndarray, name: TensorName, experts: int) -> np.ndarray:
    """The factor A or B of one expert, in that of all of them."""
    if name.path[-1] == "lora_A":
        return array.reshape(experts, -1, array.shape[-1])[name.expert]
    return array.reshape(len(array), -1, experts)[:, :, name.expert]


def keep_blocks_apart(model: torch.nn.Module) -> None:
    """Trains adapters of gate and up as separate ones: B stays block-diagonal.

    PEFT would also train what the A of gate adds to up, and the reverse. In gpt-oss they are one
    linear map in lcjax too, and stay together.
    """
    if model.config.model_type == "gpt_oss":
        return
    for name, parameter in model.named_parameters():
        if _FUSED_B.fullmatch(name):
            mask = torch.zeros_like(parameter)
            (rows, columns) = (size // 2 for size in parameter.shape)
            mask[:rows, :columns] = mask[rows:, columns:] = 1
            assert not (parameter.detach() * (1 - mask)).any()
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient.dtype))
