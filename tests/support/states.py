"""Converts our parameter trees to state dictionaries of transformers."""

from __future__ import annotations

import jax
import numpy as np
import torch

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def to_torch(array) -> torch.Tensor:
    """Converts bit for bit, through float32, which represents both dtypes exactly."""
    return torch.from_numpy(np.asarray(array).astype(np.float32)).to(TORCH_DTYPES[array.dtype.name])


def state_dict_of(params) -> dict[str, torch.Tensor]:
    """Returns the tree with Hugging Face's names, independent of lcjax's table."""
    states = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = [key.key for key in path]
        if keys[0] == "layers":
            for layer in range(leaf.shape[0]):
                states[f"model.layers.{layer}.{'.'.join(keys[1:])}"] = to_torch(leaf[layer])
        else:
            states[("" if keys[0] == "lm_head" else "model.") + ".".join(keys)] = to_torch(leaf)
    return states


def assert_equal_states(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
