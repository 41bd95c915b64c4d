"""Finds the longest context of each GPU by compiling the training step for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from lcjax.config import MemorySettings, parse_memory
from lcjax.config.presets import resolve_config
from lcjax.plan.compiling.memory import GIB, MARGIN_BYTES
from lcjax.plan.planner import Plan, Planner
from lcjax.plan.progress import CompilationProgress
from lcjax.plan.workload import Workload
from lcjax_scripts.paths import TREE

DOCS = TREE / "docs"
SLOPES = TREE / "tests" / "lcjax" / "memory" / "bytes_a_token.json"
LARGE_HOST_GIB = 256


@dataclasses.dataclass(frozen=True)
class Row:
    """A model on a GPU with a nominal memory of `vram_gb`.

    `others` is the context length in tokens that others published for the same memory.
    """

    model: str
    gpu: str
    vram_gb: int
    target: int
    others: str = ""
    quantize: str | None = "nf4"
    lora_r: int = 32
    optimizer_memory: str = "host"

    @property
    def workload(self) -> Workload:
        """The workload for `lcjax.plan`."""
        return Workload(
            self.model,
            resolve_config(self.model),
            self.gpu,
            self.lora_r,
            self.quantize,
            optimizer_memory=self.optimizer_memory,
        )

    @property
    def trains(self) -> str:
        """The format of the weights, and what is trained."""
        weights = self.quantize or "bf16"
        return f"{weights}, LoRA r={self.lora_r}" if self.lora_r else f"{weights}, every weight"


# The sources of Unsloth's and ALST's figures are in docs/log.md. Each search starts at the target.
ROWS = (
    Row("llama-3.1-8b", "rtx4090", 8, 8_192, "Unsloth 2,972"),
    Row("llama-3.1-8b", "rtx4090", 12, 98_304, "Unsloth 21,848"),
    Row("llama-3.1-8b", "rtx4090", 16, 196_608, "Unsloth 40,724"),
    Row("llama-3.1-8b", "rtx4090", 24, 393_216, "Unsloth 78,475"),
    Row("llama-3.1-8b", "a100-40gb", 40, 786_432, "Unsloth 153,977"),
    Row("llama-3.1-8b", "l40s", 48, 1_048_576, "Unsloth 191,728"),
    Row("llama-3.1-8b", "h100-80gb", 80, 2_097_152, "Unsloth 342,733"),
    Row("llama-3.1-70b", "l40s", 48, 65_536, "Unsloth 12,106"),
    Row("llama-3.1-70b", "h100-80gb", 80, 393_216, "Unsloth 89,389"),
    Row("llama-3.1-8b", "h100-80gb", 80, 1_048_576, "", quantize=None),
    Row("llama-3.1-8b", "h100-80gb", 80, 512_000, "ALST 500K", quantize=None, lora_r=0),
)


def update(only: str) -> None:
    """Computes the rows that contain `only`; writes docs/context.json and context.md."""
    path = DOCS / "context.json"
    before = {key(entry): entry for entry in json.loads(path.read_text())["rows"]} if path.exists() else {}
    entries = []
    with CompilationProgress() as progress:
        for row in ROWS:
            wanted = only in f"{row.model} {row.gpu} {row.trains}"
            for host_gb in (None, LARGE_HOST_GIB):
                entry = entry_of(row, host_gb, longest(row, host_gb, progress)) if wanted else None
                entry = entry or before.get((row.model, row.trains, row.vram_gb, host_gb))
                if entry is not None:
                    entries.append(entry)
                    print(row.model, row.trains, row.vram_gb, host_gb, entry["max_seq_length"], flush=True)
    compiler = {name: version(name) for name in ("jax", "jax-cuda13-pjrt")}
    path.write_text(json.dumps({"margin_bytes": MARGIN_BYTES, "versions": compiler, "rows": entries}, indent=1) + "\n")
    (DOCS / "context.md").write_text(page(entries), encoding="utf-8")


def longest(row: Row, host_gb: int | None, progress: CompilationProgress) -> Plan | None:
    """Returns the plan of the longest context, a multiple of 1,024; None if 1,024 does not fit."""
    planner = Planner(row.workload, row.vram_gb, host_gb, progress.compiling)
    return planner.longest(guess=row.target)


def entry_of(row: Row, host_gb: int | None, plan: Plan | None) -> dict[str, Any]:
    """Returns a row of the JSON file."""
    facts = dataclasses.asdict(row) | {"trains": row.trains, "host_gb": host_gb, "max_seq_length": 0}
    return facts | (plan.as_json() if plan else {})


def key(entry: dict[str, Any]) -> tuple:
    """Returns what identifies a row."""
    return entry["model"], entry["trains"], entry["vram_gb"], entry["host_gb"]


def page(entries: Iterable[dict[str, Any]]) -> str:
    """Returns the page as Markdown."""
    slopes = json.loads(SLOPES.read_text())
    lines = [
        "# How long a context fits",
        "",
        "Written by `make context-table` (`scripts/context_table.py`); the figures are in",
        "[context.json](context.json), the picture is of `scripts/context_picture.py`. Each row is the",
        "longest context, in multiples of 1,024 tokens, whose training step fits a GPU of that size. The step",
        "is the one that `lcjax.train` runs: forward, backward, and AdamW with its state in host memory, one",
        "sequence a step. It is compiled for that GPU, without the GPU, and was not run.",
        "",
        f"- Kept free for the CUDA context and the allocator: {MARGIN_BYTES / GIB:.1f} GiB. A GPU of N GB is taken to have",
        "  0.98 N GiB, or what its driver reports.",
        "- Host memory is pinned. With 256 GiB of it fewer layers' inputs are saved, which costs further",
        "  forward passes.",
        "- Such steps are long: the JSON has their time at a quarter of the GPU's peak.",
        "- Where `memory` there says `embeddings_on_host=true`, embedding and head are in host memory too.",
        "- Unsloth's and ALST's figures are those that they publish ([log.md](log.md) has the sources).",
        "",
        f"A further token of 8B takes {slopes['head groups']:,} bytes of the GPU in groups of heads, as here, and",
        f"{slopes['tiles']:,} in tiles alone. A test holds this",
        "([bytes_a_token.json](../tests/lcjax/memory/bytes_a_token.json)).",
        "",
        "![longest context on 24, 48 and 80 GB](context.png)",
        "",
        "| model, weights | memory, GPU | aim | longest, any host | GPU GiB | host GiB | 256 GiB host | saved inputs | others |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows: dict[tuple, dict[int | None, dict[str, Any]]] = {}
    for entry in entries:
        rows.setdefault(key(entry)[:3], {})[entry["host_gb"]] = entry
    for by_host in rows.values():
        free, bound = by_host[None], by_host[LARGE_HOST_GIB]
        lines.append(
            f"| {free['model']}, {free['trains']} | {free['vram_gb']} GB, {free['gpu']} | {free['target']:,} "
            f"| **{free['max_seq_length']:,}** | {_gib(free, 'device_bytes')} | {_gib(free, 'host_bytes')} "
            f"| {bound['max_seq_length']:,} | {_every(bound)} | {free['others']} |"
        )
    return "\n".join([*lines, ""])


def _gib(entry: dict[str, Any], name: str) -> str:
    return f"{entry[name] / GIB:.1f}" if name in entry else ""


def _every(entry: dict[str, Any]) -> str:
    memory = parse_memory(entry.get("memory", "none"))
    return f"1 in {memory.save_every}" if isinstance(memory, MemorySettings) else ""
