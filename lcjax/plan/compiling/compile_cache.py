"""Answers of the compiler that stay on disk: the same question is not compiled twice.

An answer is filed under its question, the versions of JAX and its compiler, and the source of this package.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

_COMPILERS = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc")

Result = TypeVar("Result")


def cached_result(inputs: Any, parse: Callable[[dict[str, Any]], Result], compute: Callable[[], Result]) -> Result:
    """The answer to a question: found in `cache_folder()`, or asked now and written there.

    Args:
      question: JSON of everything that the answer depends on, but for compiler and source.
      read: makes an answer, a dataclass, of the JSON of its `dataclasses.asdict`; raises ValueError, KeyError or TypeError for
        what is none.
      ask: the expensive way; what it raises is not cached.
    """
    path = cache_folder() / f"{_key(inputs)}.json"
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        result = compute()
    _write(path, json.dumps(dataclasses.asdict(result)))  # pyright: ignore[reportArgumentType]
    return result


def cache_folder() -> Path:
    """Where answers are cached: lcjax/plan under $XDG_CACHE_HOME, or under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lcjax" / "plan"


def _key(inputs: Any) -> str:
    facts = {
        "inputs": inputs,
        "compilers": {name: _version(name) for name in _COMPILERS},
        "source": source_digest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@functools.cache
def source_digest() -> str:
    """Of every file of this package: whatever is edited, no answer of before is believed."""
    package = Path(__file__).parents[2]
    files = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".txtpb"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    """Whole or not at all; where the folder cannot be written, the question is asked again another time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError:
        pass
