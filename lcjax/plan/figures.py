"""What a plan keeps of a compiled step, and a folder in which it stays: the same step is not compiled twice.

A figure is filed under everything that it depends on: the workload, the settings, the versions of JAX and its compiler, and the
source of this package.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lcjax.model import ModelSettings
from lcjax.plan.buffers import Buffer, largest_buffers
from lcjax.plan.compile import CompiledStep, compile_step
from lcjax.plan.memory import Memory
from lcjax.plan.workload import Workload

_BUFFERS = 12
_COMPILERS = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc")


@dataclasses.dataclass(frozen=True)
class Figures:
    """Memory, the largest buffers at the fullest moment, and the kernels by name."""

    memory: Memory
    buffers: tuple[Buffer, ...]
    kernels: dict[str, int]

    @classmethod
    def of(cls, step: CompiledStep) -> Figures:
        """Of a compiled step."""
        buffers = largest_buffers(step.live_ranges, step.program, _BUFFERS)
        return cls(step.memory, tuple(buffers), dict(step.program.kernels()))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Figures:
        """The inverse of `dataclasses.asdict`."""
        buffers = tuple(Buffer(**buffer) for buffer in content["buffers"])
        return cls(Memory(**content["memory"]), buffers, content["kernels"])


def compiled_figures(workload: Workload, settings: ModelSettings) -> Figures:
    """The figures of a step, compiled now or found in `cache_folder()`.

    Raises:
      InputError: as `compile_step`.
    """
    path = cache_folder() / f"{_key(workload, settings)}.json"
    try:
        return Figures.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        figures = Figures.of(compile_step(workload, settings))
    _write(path, json.dumps(dataclasses.asdict(figures)))
    return figures


def cache_folder() -> Path:
    """Where figures are kept: lcjax/plan under $XDG_CACHE_HOME, or under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lcjax" / "plan"


def _key(workload: Workload, settings: ModelSettings) -> str:
    tokens = settings.max_seq_length
    facts = {
        "workload": [
            workload.gpu,
            workload.gpus,
            workload.hosts,
            workload.quantize,
            workload.lora_r,
            workload.optimizer_memory,
            repr(workload.config),
        ],
        "settings": [tokens, settings.policy_for(tokens), str(settings.memory_for(tokens)), repr(settings)],
        "compilers": {name: _version(name) for name in _COMPILERS},
        "source": _source_digest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@functools.cache
def _source_digest() -> str:
    """Of every file of this package: whatever is edited, no figure of before is believed."""
    package = Path(__file__).parents[1]
    files = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".txtpb"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    """Whole or not at all; where the folder cannot be written, the figure is compiled again another time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError:
        pass
