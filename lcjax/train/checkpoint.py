"""Everything a run needs to go on exactly: adapters, optimizer, RNG, data iterator and the resolved config, by orbax."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lcjax.errors import InputError
from lcjax.step import TrainState

# orbax reports every phase of every save at INFO and its clean-up of torn saves at WARNING; neither is news to the user.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The numbered checkpoints of a run. A save is complete or absent: orbax writes beside and renames."""

    def __init__(self, directory: Path, keep: int | None = None):
        """Opens `directory`, created on the first save; `keep` newest checkpoints survive a save."""
        self.directory = directory.absolute()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=keep is not None
            ),
        )

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

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
        try:
            self._manager.save(step, args=items, force=True)
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise InputError(
                f"checkpoint {step} could not be written to {self.directory} ({_first_line(error)}); make room and go on with "
                "--resume-from-checkpoint latest"
            ) from error

    def run(self, step: int) -> dict[str, Any]:
        """The resolved config that was saved with a checkpoint."""
        return self._restore(step, run=ocp.args.JsonRestore())["run"]

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """(state, iterator state) after `step` steps; `like` gives structure, shapes and dtypes."""
        targets = jax.tree.map(ocp.utils.to_shape_dtype_struct, _flatten(like))
        restored = self._restore(step, state=ocp.args.StandardRestore(targets), iterator=ocp.args.JsonRestore())
        return jax.tree.unflatten(jax.tree.structure(like), list(restored["state"].values())), restored["iterator"]

    def close(self) -> None:
        self._manager.close()

    def _restore(self, step: int, **items):
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"checkpoint {step} in {self.directory} cannot be read ({_first_line(error)}); delete it to use an older one"
            ) from error


def _flatten(state: TrainState) -> dict[str, jax.Array]:
    """The state's leaves by path; a plain dictionary outlives changes of optax's and our own containers."""
    leaves, _ = jax.tree.flatten_with_path(state)
    # The leading number keeps the order of the leaves, which the dictionary is otherwise free to sort.
    return {f"{i:04d}{jax.tree_util.keystr(path)}": leaf for i, (path, leaf) in enumerate(leaves)}


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
