"""A step to measure: the model's shape, the trained parameters, and how the step runs."""

from __future__ import annotations

import dataclasses

from lcjax.config.parallel.mesh import MeshRequest, MeshShape
from lcjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Shape:
    """LoRA or full fine-tuning with AdamW, one sequence per step, random weights."""

    model: str = "llama-3.1-8b"
    """A preset or a config.json file."""
    quantize: str = "nf4"
    """nf4, or none for bfloat16."""
    attention: str = "auto"
    """Implementation of attention."""
    lora_r: int = 32
    """Rank of the adapter. 0 trains every weight."""
    optimizer_memory: str = "auto"
    """Where AdamW's state is stored, as in lcjax.train."""
    mesh: str = "1x1x1"
    """Sizes of the mesh of GPUs, data x ring x heads."""
    shard_weights: str = "none"
    """Whether the GPUs share the weights, as in lcjax.train."""

    @property
    def mesh_shape(self) -> MeshShape:
        """The sizes of the mesh."""
        return mesh_of(self.mesh)

    @property
    def mesh_request(self) -> MeshRequest:
        """The mesh and the division of the weights, as lcjax.train is asked for them."""
        data, ring, heads, _ = dataclasses.astuple(self.mesh_shape)
        return MeshRequest(
            data_parallel_size=data, ring_degree=ring, ulysses_degree=heads, shard_weights=self.shard_weights
        )


def mesh_of(text: str) -> MeshShape:
    """The mesh that a text such as 1x2x4 describes: data x ring x heads.

    Raises:
      InputError: the text is not three numbers.
    """
    try:
        data, ring, heads = map(int, text.split("x"))
    except ValueError:
        raise InputError(f"mesh {text!r} is not data x ring x heads; write it as 1x2x4") from None
    return MeshShape(data, ring, heads)
