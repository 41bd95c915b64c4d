"""Makes the Markdown tables of docs/performance.md from the raw files in docs/measured."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

GIB = 2**30
POLICIES = ("none", "full", "offload", "offload_attn")
LARGEST_PLAIN_LENGTH = 32_768
_WEIGHTS = {"nf4": "NF4", "none": "bfloat16"}
_ATTENTION = {"pallas": "lcjax (Pallas)", "cudnn": "cuDNN", "fa3": "FlashAttention-3"}

Row = dict[str, str]


def rows_of(path: Path) -> list[Row]:
    """Returns the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def load_json(path: Path) -> Any:
    """Returns the content of a JSON file, which may be compressed with gzip."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _attention(row: Row) -> str:
    """Returns a step's attention implementation; `auto` means lcjax's kernels on a GPU."""
    return "pallas" if row["attention"] == "auto" else row["attention"]


def _gib(value: str) -> str:
    return f"{int(value) / GIB:.1f}"


def _cell(row: Row, mark: str = "") -> str:
    """Returns tokens per second and GiB, or why there is no figure."""
    if row["tokens_per_second"]:
        return f"{float(row['tokens_per_second']):,.0f} ({_gib(row['peak_bytes'])}){mark}"
    return "refused" if "InputError" in row["error"] else "out of memory"


def best_cell(files: Sequence[list[Row]], **wanted: str) -> str:
    """Returns the figure for a setting from the first file that has one, or why there is none.

    A figure that is not from the first file is marked with *.
    """
    found = [
        (row, " *" if number else "")
        for number, rows in enumerate(files)
        for row in rows
        if all({**row, "attention": _attention(row)}[key] == value for key, value in wanted.items())
    ]
    measured = [_cell(row, mark) for row, mark in found if row["tokens_per_second"]]
    return (measured or [_cell(row) for row, _ in found] or [""])[0]


def steps_table(paths: Sequence[Path]) -> str:
    """Tokens per second and GiB of a step, by length, weights, attention and policy."""
    files = [rows_of(path) for path in paths]
    lengths = sorted({int(row["tokens"]) for rows in files for row in rows})
    lines = []
    for tokens in lengths:
        for quantize in ("nf4", "none"):
            peft = best_cell(files, tokens=str(tokens), quantize=quantize, implementation="peft")
            for attention in ("pallas", "cudnn"):
                cells = [_policy_cell(files, tokens, quantize, attention, policy) for policy in POLICIES]
                shown = peft if attention == "pallas" else ""
                lines.append([f"{tokens:,}", _WEIGHTS[quantize], _ATTENTION[attention], *cells, shown])
    header = ["tokens", "weights", "attention", *(f"`{name}`" for name in POLICIES), "transformers + PEFT"]
    return markdown(header, lines)


def _policy_cell(files: Sequence[list[Row]], tokens: int, quantize: str, attention: str, policy: str) -> str:
    """Returns the cell of a policy. Refused combinations come first, because older raw files have
    figures for what ran instead."""
    refused = policy == "offload_attn" and attention == "cudnn"
    if refused or (tokens > LARGEST_PLAIN_LENGTH and policy in ("none", "full")):
        return "refused"
    return best_cell(
        files, tokens=str(tokens), quantize=quantize, attention=attention, policy=policy, implementation="lcjax",
        memory="none",
    )  # fmt: skip


def fa3_table(paths: Sequence[Path]) -> str:
    """Steps with FlashAttention-3, and the same steps with lcjax's kernels."""
    files = [rows_of(path) for path in paths]
    keys = ("tokens", "quantize", "policy")
    settings = {tuple(row[key] for key in keys) for rows in files for row in rows if row["attention"] == "fa3"}
    lines = []
    for setting in sorted(settings, key=lambda s: (int(s[0]), s[1] == "none", POLICIES.index(s[2]))):
        wanted = dict(zip(keys, setting, strict=True))
        cells = [best_cell(files, attention=name, memory="none", **wanted) for name in ("fa3", "pallas")]
        ratio = float(cells[0].split()[0].replace(",", "")) / float(cells[1].split()[0].replace(",", ""))
        names = [f"{int(setting[0]):,}", _WEIGHTS[setting[1]], f"`{setting[2]}`"]
        lines.append([*names, *(cell.replace(" *", "") for cell in cells), f"{ratio:.2f}"])
    return markdown(["tokens", "weights", "policy", "FlashAttention-3", "lcjax (Pallas)", "ratio"], lines)


def mosaic_table(paths: Sequence[Path]) -> str:
    """Steps with the Mosaic kernels and with others: time, speed and memory."""
    lines = [
        [
            row["model"], f"{int(row['tokens']):,}", _WEIGHTS[row["quantize"]], f"`{row['policy']} {row['memory']}`",
            row["attention"], f"{float(row['seconds']):.2f}", f"{float(row['tokens_per_second']):,.0f}",
            f"{float(row['mfu']):.0%}", _gib(row["peak_bytes"]),
        ]
        for path in paths
        for row in sorted(rows_of(path), key=lambda row: (row["model"] != "llama-3.1-8b", int(row["tokens"])))
        if row["seconds"]
    ]  # fmt: skip
    header = ["model", "tokens", "weights", "settings", "attention", "seconds", "tokens/s", "of the peak", "GiB"]
    return markdown(header, lines)


def longest_table(paths: Sequence[Path]) -> str:
    """The longest steps: seconds, planned and used GPU memory, and host memory."""
    lines = [
        [
            {"h100": "8B, one H100", "h200": "70B, one H200"}[path.name[:4]],
            f"{int(row['tokens']):,}", f"`{row['policy']} {row['memory']}`", f"{float(row['seconds']):.0f}",
            _gib(row["peak_bytes"]), _gib(row["planned_bytes"]), _gib(row["host_bytes"]),
        ]
        for path in paths
        for row in rows_of(path)
    ]  # fmt: skip
    return markdown(["model", "tokens", "settings", "seconds", "GiB", "planned GiB", "host GiB"], lines)


def settings_table(paths: Sequence[Path]) -> str:
    """Settings for a step of 32,768 tokens, from the fastest to the slowest."""
    rows = [
        row
        for row in rows_of(paths[0])
        if (row["tokens"], row["quantize"], row["optimizer_memory"]) == ("32768", "nf4", "auto")
    ]
    unique = {(row["policy"], row["memory"]): row for row in reversed(rows)}
    lines = [
        [f"`{policy}`", f"`{memory}`", f"{float(row['seconds']):.2f}", _gib(row["peak_bytes"]), _gib(row["host_bytes"])]
        for (policy, memory), row in sorted(unique.items(), key=lambda item: float(item[1]["seconds"]))
    ]
    return markdown(["policy", "`--memory`", "seconds a step", "GPU GiB", "host GiB"], lines)


def full_table(paths: Sequence[Path]) -> str:
    """Full fine-tuning, by where the optimizer's state is."""
    where = {"auto": "in host memory (the default)", "device": "on the GPU"}
    lines = [
        [where[row["optimizer_memory"]], f"{float(row['seconds']):.2f}", f"{float(row['tokens_per_second']):,.0f}",
         _gib(row["peak_bytes"])]
        for row in rows_of(paths[0])
        if row["lora_r"] == "0"
    ]  # fmt: skip
    return markdown(["AdamW's state", "seconds a step", "tokens/s", "GPU GiB"], lines)


def embeddings_table(paths: Sequence[Path]) -> str:
    """Steps with the embedding and the head in host memory, and on the GPU."""
    lines = [
        [f"`offload {row['memory']}`", f"{float(row['tokens_per_second']):,.0f}", f"{int(row['peak_bytes']) / GIB:.2f}"]
        for row in rows_of(paths[0])
        if "tile=1024" in row["memory"]
    ]
    return markdown(["settings", "tokens/s", "GPU GiB"], lines)


def plan_table(paths: Sequence[Path]) -> str:
    """The peak memory minus the planned memory, by GPU and attention implementation."""
    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row in (row for path in paths for row in rows_of(path)):
        if row["planned_bytes"] and row["peak_bytes"]:
            kind = _ATTENTION["fa3"] if row["attention"] == "fa3" else "lcjax, cuDNN"
            pair = int(row["peak_bytes"]), int(row["planned_bytes"])
            groups.setdefault((row["device"].split(" 80GB")[0], kind), []).append(pair)
    lines = []
    for (device, kind), pairs in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0]), reverse=True):
        gaps = [(peak - planned) / GIB for peak, planned in pairs]
        share = max((peak - planned) / peak for peak, planned in pairs)
        lines.append([device, kind, len(pairs), f"{min(gaps):.2f}", f"{max(gaps):.2f}", f"{100 * share:.1f}%"])
    return markdown(["GPU", "attention", "steps", "least GiB above", "most GiB above", "most, of the peak"], lines)


def kernels_table(paths: Sequence[Path]) -> str:
    """Speed of attention by length and head_dim, relative to Triton, with two versions of JAX."""
    rows = [row for path in paths for row in rows_of(path) if row["operation"] == "attention"]
    lines = []
    for head_dim, tokens in sorted({(int(row["head_dim"]), int(row["tokens"])) for row in rows}):
        of_shape = [row for row in rows if (int(row["head_dim"]), int(row["tokens"])) == (head_dim, tokens)]
        for version in ("0.10.2", "0.11.2"):
            cells = [_compared(of_shape, part, version) for part in ("forward", "backward", "both")]
            if any(cells):
                lines.append([head_dim, f"{tokens:,}", version, *cells])
    return markdown(["head_dim", "tokens", "jax", "forward", "backward", "forward and backward"], lines)


def _compared(rows: Sequence[Row], part: str, version: str) -> str:
    """Returns the median TFLOP/s with a version of JAX, and the median ratio to Triton.

    Each measurement is compared with the Triton measurement that follows it.
    """
    of_part = [row for row in rows if row["part"] == part]
    pairs = [
        (float(ours["tflops"]), float(theirs["tflops"]))
        for ours, theirs in itertools.pairwise(of_part)
        if (ours["implementation"], ours["jax"], theirs["implementation"]) == ("pallas", version, "triton")
    ]
    if not pairs:
        return ""
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    return f"{statistics.median(ours for ours, _ in pairs):.0f} ({ratio:.2f})"


def libraries_table(paths: Sequence[Path]) -> str:
    """TFLOP/s of attention in lcjax and in other libraries."""
    names = {"pallas": "lcjax", "triton": "Triton 3.6", "sdpa_fa2": "FlashAttention-2", "cudnn": "cuDNN",
             "fa3": "FlashAttention-3"}  # fmt: skip
    rows = [row for row in rows_of(paths[0]) if row["operation"] == "attention"]
    speed = {(row["tokens"], row["part"], row["implementation"]): f"{float(row['tflops']):.0f}" for row in rows}
    lines = [
        [
            f"{tokens:,}",
            part.replace("both", "forward and backward"),
            *(speed[str(tokens), part, name] for name in names),
        ]
        for tokens in sorted({int(row["tokens"]) for row in rows})
        for part in ("forward", "backward", "both")
        if (str(tokens), part, "pallas") in speed
    ]
    return markdown(["tokens", "pass", *names.values()], lines)


def rope_table(paths: Sequence[Path]) -> str:
    """TB/s and additional memory of RoPE in place."""
    names = {"pallas": "lcjax (Pallas)", "triton": "Triton 3.6", "xla": "XLA"}
    rows = [row for row in rows_of(paths[0]) if row["operation"] == "rope"]
    lines = [
        [f"{tokens:,}", shown, f"{float(row['terabytes_a_second']):.2f}", f"{int(row['extra_bytes']) / 2**20:,.0f}"]
        for tokens in sorted({int(row["tokens"]) for row in rows})
        for name, shown in names.items()
        for row in rows
        if (row["tokens"], row["implementation"]) == (str(tokens), name)
    ]
    return markdown(["tokens", "implementation", "TB/s", "extra MiB"], lines)


def profile_table(paths: Sequence[Path]) -> str:
    """Seconds by kind of kernel."""
    profile = load_json(paths[0])
    total = sum(profile["seconds"].values())
    lines = [
        [kind, f"{seconds:.2f}", f"{100 * seconds / total:.1f}%", _seconds(profile, kind)]
        for kind, seconds in sorted(profile["seconds"].items(), key=lambda item: -item[1])
    ]
    return markdown(["kind", "seconds", "share", "at the ceiling"], [*lines, ["all", f"{total:.2f}", "", ""]])


def _seconds(profile: dict[str, Any], kind: str) -> str:
    ideal = profile["ideal_seconds"].get(kind)
    return "" if ideal is None else f"{ideal:.2f}"


def parity_table(paths: Sequence[Path]) -> str:
    """Cases, verdicts, failures and largest error by implementation of each parity run."""
    names = ("pallas", "triton", "xla", "cudnn")
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        runs.setdefault(_parity_run(path), []).append(load_json(path))
    lines = []
    for name, parts in runs.items():
        counts = [f"{sum(part[key] for part in parts):,}" for key in ("cases", "verdicts", "failed")]
        verdicts = [result["verdicts"] for part in parts for result in part["results"]]
        largest = [max((v[of]["ratio"] for v in verdicts if of in v), default=None) for of in names]
        lines.append([name, *counts, *("" if value is None else f"{value:.2f}" for value in largest)])
    return markdown(["run", "cases", "verdicts", "above the rule", *names], lines)


def _parity_run(path: Path) -> str:
    kind = "CPU, interpreted" if path.name.startswith("cpu") else "H100"
    if "jax-0.10.2" in path.name:
        kind += ", jax 0.10.2"
    return f"{kind}, long" if "long" in path.name else kind


def cpu_table(paths: Sequence[Path]) -> str:
    """Training on a CPU: medians over the rounds, and ratios."""
    rows = rows_of(paths[0])
    lines = []
    for device in dict.fromkeys(row["device"] for row in rows):
        of_device = [row for row in rows if row["device"] == device]
        ours, theirs = (
            statistics.median(float(row["tokens_per_second"]) for row in of_device if row["implementation"] == name)
            for name in ("lcjax", "peft")
        )
        memory = next(row["peak_memory_ratio"] for row in of_device if row["peak_memory_ratio"])
        lines.append([device, f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}", memory])
    return markdown(["processor", "lcjax, tokens/s", "transformers + PEFT", "speed ratio", "memory ratio"], lines)
