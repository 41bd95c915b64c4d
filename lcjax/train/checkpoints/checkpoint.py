"""Saves and restores everything that a run needs to resume exactly.

This is the adapter, optimizer, random key, data iterator, records and resolved config.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from lcjax.errors import InputError
from lcjax.parallel.placement import abstract_like
from lcjax.parallel.processes import from_first, only_first, writes_files
from lcjax.step import TrainState
from lcjax.train.checkpoints.checksums import CHECKSUMS, find_damage, sync, write_checksums
from lcjax.train.disk import require_space, writing

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

FORMAT = 2
"""The format that `Checkpoints.save` writes.

Format 1 had no checksums, and one column of each matrix represented the base weights.
"""

# Space of a checkpoint beyond its arrays and records: metadata, the iterator and the config, in
# blocks of the file system.
_OVERHEAD_BYTES = 256 * 1024


class Checkpoints:
    """The numbered checkpoints of a run.

    A checkpoint is a folder `N` with orbax's items state, iterator and run, the run's records, and
    checksums. A save is either complete, with its checksums, or absent: it is written to a hidden
    folder `.N.partial-*` and renamed. Reading anything but arrays starts neither orbax nor JAX's
    devices.
    """

    def __init__(self, directory: Path, keep: int | None = None):
        """Opens `directory`; with `keep`, for saving: creates it and removes torn saves in it.

        Args:
          keep: the number of newest checkpoints that survive a save.

        Raises:
          InputError: the directory cannot be created.
        """
        self.directory = directory.absolute()
        self._keep = keep
        if keep is not None and writes_files():
            with writing(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
                for torn in self.directory.glob(".*.partial-*"):
                    shutil.rmtree(torn)

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending; their contents are not read."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if _is_step(path.name) and path.is_dir())

    def latest(self, before: int | None = None) -> int | None:
        """The step of the newest complete checkpoint, optionally before a step, or None."""
        return max((step for step in self.steps() if before is None or step < before), default=None)

    def save(
        self,
        step: int,
        state: TrainState,
        iterator: dict[str, Any],
        run: dict[str, Any],
        records: Sequence[Path] = (),
        best: int | None = None,
    ) -> None:
        """Saves after `step` steps, with copies of the files `records`.

        The oldest checkpoints beyond `keep` are removed, except that of step `best`. All processes
        of a run call it, and each writes the arrays that only it has.

        Raises:
          InputError: the disk cannot be written; the older checkpoints still exist.
        """
        import orbax.checkpoint as ocp

        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_flatten(state)),
            iterator=ocp.args.JsonSave(iterator),
            run=ocp.args.JsonSave(run),
        )
        final, partial = self.directory / str(step), Path(from_first(str(self._hidden(step))))
        only_first(lambda: self._require_space(final, state, records))
        try:
            with writing(final), _orbax() as checkpointer:
                checkpointer.save(partial, args=items)
            only_first(lambda: self._publish(partial, final, records, best))
        except BaseException:
            if writes_files():
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _require_space(self, final: Path, state: TrainState, records: Sequence[Path]) -> None:
        """A failure in tensorstore would leave a torn save; this check leaves nothing."""
        with writing(final):
            arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            copied = sum(path.stat().st_size for path in records)
            require_space(self.directory, arrays + copied + _OVERHEAD_BYTES)

    def _publish(self, partial: Path, final: Path, records: Sequence[Path], best: int | None) -> None:
        """Completes a save, which then appears under its name, and removes the oldest ones."""
        with writing(final):
            for path in records:
                shutil.copyfile(path, partial / path.name)
            write_checksums(partial)
            partial.rename(final)
            sync(self.directory)
            self._remove_old(best)

    def copy(self, source: Path, step: int) -> None:
        """Copies the checkpoint `source` of another folder, which becomes that of `step` here.

        Raises:
          InputError: it cannot be written.
        """
        partial, final = self._hidden(step), self.directory / str(step)
        with writing(final):
            shutil.copytree(source, partial)
            partial.rename(final)
            sync(self.directory)

    def run(self, step: int) -> dict[str, Any]:
        """The description of the run that was saved with a checkpoint; reads no other file.

        Raises:
          InputError: the checkpoint is missing, damaged, or of another format.
        """
        try:
            run = json.loads((self.directory / str(step) / "run" / "metadata").read_bytes())
            number = run.get("format", 1)
        except (OSError, ValueError, AttributeError) as error:
            raise self._unreadable(step, error) from error
        if number != FORMAT:
            raise InputError(
                f"checkpoint {self.directory / str(step)} has format {number!r}, but this lcjax "
                f"reads format {FORMAT}; resume with the lcjax that wrote it, or start again "
                "with another --output-dir"
            )
        return run

    def damage(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint, in words, or None; reads all of them."""
        folder = self.directory / str(step)
        if not (folder / CHECKSUMS).exists():
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if "format" not in json.loads((folder / "run" / "metadata").read_bytes()):
                    return None  # an older format without checksums; `run` rejects it
        return find_damage(folder)

    def newest_undamaged(self) -> int | None:
        """The step of the newest checkpoint whose files are undamaged, or None."""
        return next((step for step in reversed(self.steps()) if self.damage(step) is None), None)

    def set_aside(self, step: int) -> Path:
        """Renames a checkpoint so that it no longer counts, and returns its new path.

        Raises:
          InputError: the checkpoint cannot be renamed.
        """
        path = self.directory / str(step)
        target = unused_name(path.with_name(f"{step}.damaged"))
        with writing(target):
            path.rename(target)
        return target

    def records(self, step: int, names: Sequence[str]) -> dict[str, bytes]:
        """The contents of the record files that were saved with a checkpoint.

        Raises:
          InputError: they are missing.
        """
        try:
            return {name: (self.directory / str(step) / name).read_bytes() for name in names}
        except OSError as error:
            raise self._unreadable(step, error) from error

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """(state, iterator state) after `step` steps; `like` gives structure, shapes and dtypes.

        Raises:
          InputError: the checkpoint is missing or damaged.
        """
        import orbax.checkpoint as ocp

        targets = jax.tree.map(ocp.utils.to_shape_dtype_struct, _flatten(like))
        items = ocp.args.Composite(state=ocp.args.StandardRestore(targets), iterator=ocp.args.JsonRestore())
        try:
            with _orbax() as checkpointer:
                restored = checkpointer.restore(self.directory / str(step), args=items)
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(step, error) from error
        return jax.tree.unflatten(jax.tree.structure(like), list(restored["state"].values())), restored["iterator"]

    def restore_parts(self, step: int, like: TrainState, *names: str) -> tuple[Any, ...]:
        """Some attributes of the state after `step` steps; `like` as in `restore`.

        Raises:
          InputError: the checkpoint is damaged, or its state has other arrays.
        """
        import orbax.checkpoint as ocp

        leaves = _flatten(like)
        keys = [[key for key in leaves if key[4:].startswith(f".{name}")] for name in names]
        targets = {key: abstract_like(leaves[key]) for part in keys for key in part}
        arguments = ocp.args.PyTreeRestore(
            targets, ocp.checkpoint_utils.construct_restore_args(targets), partial_restore=True
        )
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                restored = checkpointer.restore(self.directory / str(step) / "state", args=arguments)
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(step, error) from error
        if not all(isinstance(array, jax.Array) for array in restored.values()):
            raise InputError(
                f"checkpoint {self.directory / str(step)} has another form of the optimizer's state than this run; give "
                "the same --optimizer-memory and --dtype, or omit --optimizer-state"
            )
        structures = [jax.tree.structure(getattr(like, name)) for name in names]
        parts = [[restored[key] for key in part] for part in keys]
        return tuple(map(jax.tree.unflatten, structures, parts))

    def _remove_old(self, best: int | None) -> None:
        assert self._keep is not None
        for step in self.steps()[: -self._keep]:
            if step == best:
                continue
            hidden = self._hidden(step)
            # Rename first: a process killed halfway leaves nothing that looks like a checkpoint.
            (self.directory / str(step)).rename(hidden)
            shutil.rmtree(hidden)

    def _hidden(self, step: int) -> Path:
        return self.directory / f".{step}.partial-{secrets.token_hex(4)}"

    def _unreadable(self, step: int, error: Exception) -> InputError:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return InputError(f"checkpoint {step} in {self.directory} is missing or damaged ({reason}); use an older one")


def unused_name(path: Path) -> Path:
    """The path, with the smallest number appended that makes it unused, if it exists."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


@contextlib.contextmanager
def _orbax() -> Iterator[ocp.Checkpointer]:
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        yield checkpointer


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def _flatten(state: TrainState) -> dict[str, jax.Array]:
    """The state's leaves by path; a plain dictionary does not depend on container classes."""
    leaves, _ = jax.tree.flatten_with_path(state)
    # The leading number preserves the order of the leaves, which would otherwise be sorted.
    return {f"{i:04d}{jax.tree_util.keystr(path)}": leaf for i, (path, leaf) in enumerate(leaves)}
