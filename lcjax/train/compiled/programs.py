"""The compiled programs of a run, so that a resumed run uses exactly the same ones.

A compiler for GPUs times several algorithms for every product and selects the fastest, and two
processes can choose differently. The sums are then computed in another order, and the last bits
differ. So a run has a folder of compiled programs, filled through JAX's persistent compilation
cache. A resumed run loads them from there, and a new run of the same shape starts with copies of
them.

A compiled program is machine code. So the folders are in the user's own cache and never in the
run's output directory: resuming a run that came from somebody else must not execute code from its
files.

Source: https://docs.jax.dev/en/latest/persistent_compilation_cache.html
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from lcjax.cli.outputs import written_atomically

_INVENTORY = "programs.json"
_RUN_ID = re.compile(r"[0-9a-f]{16}")
# The programs whose sums determine the run's numbers, by the names that JAX gives their files.
_NUMERICAL = ("jit_train_step-", "jit_token_scores-")
# If the folders exceed this many bytes at the start of a run, the least recently used are removed.
LARGEST_CACHE = 10 * 2**30


@dataclasses.dataclass
class Programs:
    """The folder of one run's compiled programs, and a context in which JAX compiles into it.

    A file in the folder counts once `publish` has listed it with its checksum. A killed process
    leaves torn or unlisted files, which the next one removes: no saved state was computed with
    them.

    Attributes:
      run: the run's id, 16 hexadecimal digits.
      folder: where the programs are.
      builder: what they were compiled with and for; see `lcjax.train.compiled.builder.builder`.
      shape: a digest of the run's shape; runs of one shape start from each other's programs.
      listed: the published files and their checksums.
      lost: the reason, for the user, why a resumed run lacks some of its programs; None if it has
        all.
      is_stored: False if the folder cannot be written, so each process compiles separately.
    """

    run: str
    folder: Path
    builder: dict[str, str]
    shape: str
    listed: dict[str, str]
    lost: str | None = None
    is_stored: bool = True

    @classmethod
    def new(cls, base: Path, builder: dict[str, str], shape: str) -> Programs:
        """The folder of a new run, with copies of what a run of the same shape compiled last."""
        _remove_the_oldest(base)
        run = secrets.token_hex(8)
        folder = base / run
        programs = cls(run, folder, builder, shape, {})
        folder.mkdir(mode=0o700, parents=True)
        for other in _newest_first(base):
            inventory = _read(other)
            if inventory.get("builder") == builder and inventory.get("shape") == shape:
                for name in _sound(other, inventory["files"]):
                    _copy(other / name, folder / name)
                    programs.listed[name] = inventory["files"][name]
                break
        return programs

    @classmethod
    def of_run(cls, base: Path, run: str, builder: dict[str, str], shape: str) -> Programs:
        """The folder of a resumed run; `lost` says what is missing from it or unusable here."""
        if not _RUN_ID.fullmatch(run):  # it comes from a file and becomes part of a path
            return dataclasses.replace(cls.new(base, builder, shape), lost="the run does not name its programs")
        folder = base / run
        inventory = _read(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = inventory.get("builder")
        if before is not None and before != builder:
            other = cls.new(base, builder, shape)
            return dataclasses.replace(other, lost=_difference(before, builder))
        files = inventory.get("files", {})
        listed = {name: files[name] for name in _sound(folder, files)}
        for path in folder.iterdir():
            # Keep the inventory: a process that is killed before it publishes must leave everything
            # for the next one.
            if path.name not in listed and path.name != _INVENTORY:
                path.unlink(missing_ok=True)
        lost = None
        if not files:
            lost = f"the run's compiled programs are not in {folder}"
        elif missing := len(files) - len(listed):
            lost = f"{missing} of the run's {len(files)} compiled programs are missing or damaged in {folder}"
        return cls(run, folder, builder, shape, listed, lost)

    @classmethod
    def not_stored(cls, base: Path, builder: dict[str, str], shape: str, reason: str) -> Programs:
        """Programs of a run that cannot store them in `base`, for the given reason."""
        run = secrets.token_hex(8)
        return cls(run, base / run, builder, shape, {}, lost=reason, is_stored=False)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """A context in which JAX reads programs from the folder and adds those that it compiles."""
        if not self.is_stored:
            yield
            return
        values = {
            "jax_compilation_cache_dir": str(self.folder),
            "jax_enable_compilation_cache": True,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
            # XLA's own caches would put the folder's name into the program, which would then differ
            # in every run.
            "jax_persistent_cache_enable_xla_caches": "none",
        }
        before = {name: getattr(jax.config, name) for name in values}
        _set(values)
        try:
            yield
        finally:
            _set(before)

    def publish(self) -> list[str]:
        """Lists the new programs; returns those whose sums determine the run's numbers.

        It is called before a checkpoint is written, so every program that a checkpoint was computed
        with is listed. A full disk does not stop the run; a later resume reports what is missing.
        """
        if not self.is_stored:
            return []
        new = [path for path in self.folder.glob("*-cache") if path.name not in self.listed]
        added = {path.name: checksum for path in new if (checksum := _checksum(path))}
        self.listed |= added
        inventory = {"builder": self.builder, "shape": self.shape, "files": self.listed}
        with contextlib.suppress(OSError), written_atomically(self.folder / _INVENTORY) as temporary:
            temporary.write_text(json.dumps(inventory, indent=1) + "\n", encoding="utf-8")
        return [name for name in added if name.startswith(_NUMERICAL)]


def programs_folder() -> Path:
    """The folder of all runs' programs: lcjax/programs under $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lcjax" / "programs"


def digest_of(shape: Any) -> str:
    """32 hexadecimal digits for a value that JSON can represent."""
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:32]


def _set(values: dict[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it remembers the first folder that it used


def _read(folder: Path) -> dict[str, Any]:
    """The inventory of a folder; {} if it is missing or unreadable."""
    try:
        inventory = json.loads((folder / _INVENTORY).read_text(encoding="utf-8"))
        files = inventory["files"]
        fine = all(Path(name).name == name and isinstance(value, str) for name, value in files.items())
        return inventory if fine else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _sound(folder: Path, files: dict[str, str]) -> list[str]:
    """The listed files whose checksums match."""
    return [name for name, checksum in files.items() if _checksum(folder / name) == checksum]


def _checksum(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _copy(source: Path, target: Path) -> None:
    """Hard-links a file, or copies it if that fails; JAX never changes existing files."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _newest_first(base: Path) -> list[Path]:
    """The folders of runs, the most recently used first."""
    used = {}
    for inventory in base.glob(f"*/{_INVENTORY}"):
        with contextlib.suppress(OSError):  # another process is removing it
            used[inventory.parent] = inventory.stat().st_mtime
    return sorted(used, key=used.__getitem__, reverse=True)


def _remove_the_oldest(base: Path) -> None:
    total = 0
    for folder in _newest_first(base):
        with contextlib.suppress(OSError):
            total += sum(path.stat().st_size for path in folder.iterdir())
        if total > LARGEST_CACHE:
            shutil.rmtree(folder, ignore_errors=True)


def _difference(before: dict[str, str], now: dict[str, str]) -> str:
    changed = [name for name in now if before.get(name) != now[name]]
    return "; ".join(f"{name} was {before.get(name)} and is {now[name]}" for name in changed)
