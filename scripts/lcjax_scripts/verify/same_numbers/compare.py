"""Measures two trees one after the other, and lists the figures that differ."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcjax_scripts.paths import TREE
from lcjax_scripts.verify.same_numbers import measure
from lcjax_scripts.verify.same_numbers.programs import without_names

LONGEST_SHOWN = 80


def differences(commit: str, parts: Sequence[str]) -> Iterator[str]:
    """Yields a line for each figure that differs between the commit and the working tree."""
    with checked_out(commit) as other:
        for part in parts:
            before, now = figures(other, part), figures(TREE, part)
            print(f"{part}: {len(now)} figures", file=sys.stderr, flush=True)
            yield from (f"{part}, {line}" for line in differing(before, now))


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Yields a temporary worktree of a commit."""
    git = ["git", "-C", str(TREE), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree"
        subprocess.run([*git, "add", "--quiet", "--detach", str(path), commit], check=True)
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", str(path)], check=True)


def figures(tree: Path, part: str) -> dict[str, Any]:
    """Returns the figures of one part, measured with the code of a tree.

    Programs are included as text without names.
    """
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "scripts")]),
            "XDG_CACHE_HOME": cache,
            "JAX_PLATFORMS": "cpu",
        }
        command = [sys.executable, "-P", measure.__file__, part, folder]
        subprocess.run(command, cwd=tree, env=environment, stdout=sys.stderr, check=True)
        found = json.loads((Path(folder) / "figures.json").read_text(encoding="utf-8"))
        for path in sorted(Path(folder).glob("*.hlo")):
            found[path.stem] = without_names(path.read_text(encoding="utf-8")).splitlines()
    return found


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each figure that differs; for a program, its first different line."""
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list):
            n = next((n for n, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
            if n is None:
                yield f"{name}: {len(old)} lines before, {len(new)} now"
            else:
                yield f"{name}, line {n + 1}: {shortened(old[n])} before, {shortened(new[n])} now"
        else:
            yield f"{name}: {shortened(json.dumps(old))} before, {shortened(json.dumps(new))} now"


def shortened(text: str) -> str:
    """Returns the text, truncated if it is long."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."
