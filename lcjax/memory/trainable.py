"""A layer's parameters in two parts: trainable ones, which have gradients, and frozen ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parameters:
    """The leaves of a tree, of one layer or stacked for all, split into trainable and frozen."""

    trainable: list[jax.Array]
    frozen: list[jax.Array]
    structure: Any = dataclasses.field(metadata={"static": True})
    learns: tuple[bool, ...] = dataclasses.field(metadata={"static": True})
    """Whether each leaf of the structure is trainable, in order."""

    @classmethod
    def of(cls, tree: Tree, learns: Sequence[bool]) -> Parameters:
        leaves, structure = jax.tree.flatten(tree)
        pairs = list(zip(leaves, learns, strict=True))
        return cls([x for x, mine in pairs if mine], [x for x, mine in pairs if not mine], structure, tuple(learns))

    def joined(self, trainable: Sequence[Any]) -> Tree:
        """The tree with other trainable leaves."""
        return self.with_leaves(trainable, self.frozen)

    def with_leaves(self, trainable: Sequence[Any], frozen: Sequence[Any]) -> Tree:
        """A tree of this structure with other leaves."""
        sources = {True: iter(trainable), False: iter(frozen)}
        return self.structure.unflatten([next(sources[mine]) for mine in self.learns])

    def mapped(self, function: Callable[[Tree], tuple[Tree, Any]]) -> tuple[Parameters, Any]:
        """`function` applied to the tree, with its first result as Parameters.

        A leaf of the result is trainable if the leaf with the same path is trainable here.
        """
        learning = set(self.trainable_paths)
        result, other = function(self.joined(self.trainable))
        return Parameters.of(result, [path in learning for path, _ in jax.tree.leaves_with_path(result)]), other

    @property
    def trainable_paths(self) -> list[Any]:
        """The paths of the trainable leaves in the tree."""
        paths = [path for path, _ in jax.tree.leaves_with_path(self.joined(self.trainable))]
        return [path for path, mine in zip(paths, self.learns, strict=True) if mine]

    def replaced(self, function: Callable[[Tree], Tree]) -> Parameters:
        """`function` applied to the tree, which keeps its structure."""
        return Parameters.of(function(self.joined(self.trainable)), self.learns)

    def zeros(self) -> list[jax.Array]:
        """float32 zeros, the initial sums of the gradients."""
        return [jnp.zeros(x.shape, jnp.float32) for x in self.trainable]
