"""Everything a run needs to go on exactly: adapters, optimizer, RNG, data iterator and the resolved config, by orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lcjax.errors import InputError
from lcjax.step import TrainState
from lcjax.train.disk import require_space, writing

# What a checkpoint takes beyond its arrays: metadata, the iterator and the config, in blocks of the file system.
_OVERHEAD_BYTES = 256 * 1024


class Checkpoints:
    """The numbered checkpoints of a run. A save is complete or absent: orbax writes beside and renames."""

    def __init__(self, directory: Path, keep: int | None = None):
        """Opens `directory`, to save when `keep` is given: then it is made, and torn saves in it are removed.

        Args:
          keep: the newest checkpoints that survive a save.

        Raises:
          InputError: the directory cannot be made.
        """
        self.directory = directory.absolute()
        writable = keep is not None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=writable,
        )
        with writing(self.directory):
            if writable:  # orbax would find out with the first save
                self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self, before: int | None = None) -> int | None:
        """The step of the newest complete checkpoint, or of the newest before a step, or None."""
        return max((step for step in self._manager.all_steps() if before is None or step < before), default=None)

    def save(self, step: int, state: TrainState, iterator: dict[str, Any], run: dict[str, Any]) -> None:
        """Saves after `step` steps.

        Raises:
          InputError: the disk refused; the older checkpoints are still there.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_flatten(state)),
            iterator=ocp.args.JsonSave(iterator),
            run=ocp.args.JsonSave(run),
        )
        with writing(self.directory / str(step)):
            # tensorstore's own refusal leaves a torn save; this one nothing.
            require_space(self.directory, sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _OVERHEAD_BYTES)
            self._manager.save(step, args=items, force=True)
            self._manager.wait_until_finished()

    def run(self, step: int) -> dict[str, Any]:
        """The description of the run that was saved with a checkpoint.

        Raises:
          InputError: the checkpoint is missing or damaged.
        """
        return self._restore(step, run=ocp.args.JsonRestore())["run"]

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """(state, iterator state) after `step` steps; `like` gives structure, shapes and dtypes.

        Raises:
          InputError: the checkpoint is missing or damaged.
        """
        targets = jax.tree.map(ocp.utils.to_shape_dtype_struct, _flatten(like))
        restored = self._restore(step, state=ocp.args.StandardRestore(targets), iterator=ocp.args.JsonRestore())
        return jax.tree.unflatten(jax.tree.structure(like), list(restored["state"].values())), restored["iterator"]

    def close(self) -> None:
        self._manager.close()

    def _restore(self, step: int, **items):
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise InputError(
                f"checkpoint {step} in {self.directory} is missing or damaged ({reason}); delete it to use an older one"
            ) from error


def _flatten(state: TrainState) -> dict[str, jax.Array]:
    """The state's leaves by path; a plain dictionary outlives changes of optax's and our own containers."""
    leaves, _ = jax.tree.flatten_with_path(state)
    # The leading number keeps the order of the leaves, which the dictionary is otherwise free to sort.
    return {f"{i:04d}{jax.tree_util.keystr(path)}": leaf for i, (path, leaf) in enumerate(leaves)}
