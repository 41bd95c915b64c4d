"""Finds the longest context of each GPU by compiling the training step for it."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from typing import Any

from lcjax.config import ALL_LINEAR, MemorySettings, parse_memory
from lcjax.config.presets import resolve_config
from lcjax.plan.compiling.memory import GIB, MARGIN_BYTES
from lcjax.plan.planner import Plan, Planner
from lcjax.plan.progress import CompilationProgress
from lcjax.plan.workload import Workload
from lcjax_scripts.paths import TREE

DOCS = TREE / "docs"
SLOPES = TREE / "tests" / "lcjax" / "memory" / "bytes_a_token.json"
LARGE_HOST_GIB, LARGEST_HOST_GIB = 256, 2048
"""The limits of a host's memory, for one GPU and for several."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A model on GPUs with a nominal memory of `vram_gb` each, `gpus` in each of `hosts` hosts.

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
    gpus: int = 1
    hosts: int = 1
    target_modules: tuple[str, ...] = (ALL_LINEAR,)

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
            gpus=self.gpus,
            hosts=self.hosts,
            target_modules=self.target_modules,
        )

    @property
    def host_limits(self) -> tuple[int | None, int]:
        """The limits of a host's memory to search with, in GiB."""
        return None, LARGE_HOST_GIB if self.gpus == 1 else LARGEST_HOST_GIB

    @property
    def machine(self) -> str:
        """The GPUs."""
        each = f"{self.vram_gb} GB, {self.gpu}"
        hosts = f"{self.hosts} x " if self.hosts > 1 else ""
        return each if self.gpus == 1 else f"{hosts}{self.gpus} x {each}"

    @property
    def trains(self) -> str:
        """The format of the weights, and what is trained."""
        weights = self.workload.weights.replace("bfloat16", "bf16")
        where = "" if self.target_modules == (ALL_LINEAR,) else " of attention"
        return f"{weights}, LoRA r={self.lora_r}{where}" if self.lora_r else f"{weights}, every weight"


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_ONE_GPU = (("rtx4090", 24, 524_288), ("l40s", 48, 1_048_576), ("h100-80gb", 80, 2_097_152))
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
    *(Row("qwen3-8b", gpu, gb, target) for gpu, gb, target in _ONE_GPU),
    *(Row("qwen3-32b", gpu, gb, target // 4) for gpu, gb, target in _ONE_GPU),
    *(Row("qwen3-30b-a3b", gpu, gb, target // 2) for gpu, gb, target in _ONE_GPU[1:]),
    *(Row("gemma-3-12b", gpu, gb, target // 2) for gpu, gb, target in _ONE_GPU),
    *(Row("gpt-oss-20b", gpu, gb, target) for gpu, gb, target in _ONE_GPU[:-1]),
    Row("gpt-oss-20b", "h100-80gb", 80, 2_097_152, "Unsloth 290K"),
    Row("gpt-oss-120b", "h100-80gb", 80, 262_144, target_modules=_ATTENTION),
    Row("llama-3.1-8b", "h100-80gb", 80, 1_048_576, "", quantize=None),
    Row("llama-3.1-8b", "h100-80gb", 80, 512_000, "ALST 500K", quantize=None, lora_r=0),
    Row("llama-3.1-8b", "h100-80gb", 80, 4_194_304, gpus=2),
    Row("llama-3.1-8b", "h100-80gb", 80, 8_388_608, gpus=4),
    Row("llama-3.1-8b", "h100-80gb", 80, 4_194_304, gpus=8),
    Row("llama-3.1-8b", "h100-80gb", 80, 16_777_216, gpus=8, hosts=4),
    Row("llama-3.1-70b", "h100-80gb", 80, 1_048_576, gpus=8),
    Row("llama-3.1-8b", "h100-80gb", 80, 4_194_304, "ALST 3.7M", quantize=None, lora_r=0, gpus=8),
    Row("llama-3.1-8b", "h100-80gb", 80, 16_777_216, "ALST 15M", quantize=None, lora_r=0, gpus=8, hosts=4),
)


def update(only: str, at_once: int = 1) -> None:
    """Computes the rows that contain `only`; writes docs/context.json and context.md.

    `at_once` searches run in processes of their own. Each row is written when it is found.
    """
    path = DOCS / "context.json"
    entries = {key(entry): entry for entry in json.loads(path.read_text())["rows"]} if path.exists() else {}
    order = [key(entry_of(row, host, None)) for row in ROWS for host in row.host_limits]
    wanted = [
        (row, host) for row in ROWS for host in row.host_limits if only in f"{row.model} {row.machine} {row.trains}"
    ]
    for row, host_gb, plan in _searched(wanted, at_once):
        entry = entry_of(row, host_gb, plan)
        print(row.model, row.trains, row.machine, host_gb, entry["max_seq_length"], flush=True)
        entries[key(entry)] = entry
        rows = [entries[name] for name in order if name in entries]
        path.write_text(json.dumps({"margin_bytes": MARGIN_BYTES, "rows": rows}, indent=1) + "\n")
        (DOCS / "context.md").write_text(page(rows), encoding="utf-8")


def _searched(wanted: list[tuple[Row, int | None]], at_once: int) -> Iterator[tuple[Row, int | None, Plan | None]]:
    """The rows, limits of the host and plans, as they are found."""
    if at_once == 1:
        with CompilationProgress() as progress:
            for row, host_gb in wanted:
                yield row, host_gb, longest(row, host_gb, progress.compiling)
        return
    # A process that has started JAX cannot fork.
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
        searches = {pool.submit(longest, row, host_gb): (row, host_gb) for row, host_gb in wanted}
        for search in as_completed(searches):
            row, host_gb = searches[search]
            if (error := search.exception()) is None:
                yield row, host_gb, search.result()
            else:
                print(row.model, row.trains, row.machine, host_gb, f"failed: {error}", flush=True)


def longest(
    row: Row, host_gb: int | None, compiling: Callable[[Workload, int], None] = lambda workload, tokens: None
) -> Plan | None:
    """Returns the plan of the longest context; None if the shortest does not fit."""
    return Planner(row.workload, row.vram_gb, host_gb, compiling).longest(guess=row.target)


def entry_of(row: Row, host_gb: int | None, plan: Plan | None) -> dict[str, Any]:
    """Returns a row of the JSON file."""
    names = ("jax", "jax-cuda13-pjrt")
    facts = {"trains": row.trains, "machine": row.machine, "host_gb": host_gb, "max_seq_length": 0}
    facts["versions"] = {name: version(name) for name in names}
    return dataclasses.asdict(row) | facts | (plan.as_json() if plan else {})


def key(entry: dict[str, Any]) -> tuple:
    """Returns what identifies a row."""
    return (*(entry[name] for name in ("model", "trains", "vram_gb", "gpus", "hosts", "host_gb")),)


def page(entries: Iterable[dict[str, Any]]) -> str:
    """Returns the page as Markdown."""
    slopes = json.loads(SLOPES.read_text())
    lines = [
        "# How long a context fits",
        "",
        "This page is generated by `make context-table` (`scripts/context_table.py`). The figures are in",
        "[context.json](context.json), and `scripts/context_picture.py` draws the picture. Each row is the",
        "longest context, in multiples of 1,024 tokens a GPU, whose training step fits GPUs of that size. It",
        "is the step of `lcjax.train`: forward, backward, and AdamW with its state in host memory, with one",
        "sequence per step. It was compiled for that GPU, without having the GPU, and was not run.",
        "",
        f"- {MARGIN_BYTES / GIB:.1f} GiB are reserved for the CUDA context and the allocator. A GPU with N GB is",
        "  assumed to have 0.98 N GiB, or what its driver reports.",
        f"- Host memory is pinned. With a limit of {LARGE_HOST_GIB} GiB, or {LARGEST_HOST_GIB:,} GiB for a",
        "  host with several GPUs, the inputs of fewer layers are saved, which costs additional forward",
        "  passes.",
        "- Several GPUs share each sequence ([many-gpus.md](many-gpus.md)).",
        "- Such steps take long. The JSON has their time at a quarter of the GPU's peak.",
        "- If `memory` in the JSON has `embeddings_on_host=true`, embedding and head are in host memory.",
        "- Unsloth's and ALST's figures are as published; [log.md](log.md) has the sources.",
        "",
        f"For 8B, each additional token takes {slopes['head groups']:,} bytes of GPU memory with head groups, as",
        f"here, and {slopes['tiles']:,} with tiles alone. A test checks this",
        "([bytes_a_token.json](../tests/lcjax/memory/bytes_a_token.json)).",
        "",
        "![longest context on 24, 48 and 80 GB](context.png)",
        "",
        "| model, weights | memory, GPU | aim | longest, any host | GiB a GPU | GiB a host | limited host "
        "| saved inputs | others |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows: dict[tuple, dict[int | None, dict[str, Any]]] = {}
    for entry in entries:
        rows.setdefault(key(entry)[:-1], {})[entry["host_gb"]] = entry
    for by_host in rows.values():
        if len(by_host) < 2:
            continue  # one of its two searches is still missing
        free = by_host.pop(None)
        [bound] = by_host.values()
        # Saving fewer inputs can also take less memory of the GPU.
        free = max(free, bound, key=lambda entry: entry["max_seq_length"])
        lines.append(
            f"| {free['model']}, {free['trains']} | {free['machine']} | {free['target']:,} "
            f"| **{free['max_seq_length']:,}** | {_gib(free, 'device_bytes')} | {_gib(free, 'host_bytes_of_all_gpus')} "
            f"| {bound['max_seq_length']:,} | {_every(bound)} | {free['others']} |"
        )
    return "\n".join([*lines, ""])


def _gib(entry: dict[str, Any], name: str) -> str:
    return f"{entry[name] / GIB:.1f}" if name in entry else ""


def _every(entry: dict[str, Any]) -> str:
    memory = parse_memory(entry.get("memory", "none"))
    return f"1 in {memory.save_every}" if isinstance(memory, MemorySettings) else ""
