"""Compares killed and resumed runs of `lcjax.train` with uninterrupted ones, bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lcjax import weights
from lcjax.config import presets
from lcjax.model.params import TensorName
from lcjax.train.reporting.measuring import MEASURED

CASES = {
    "nf4": "--quantize nf4",
    "bfloat16": "",
    "full": "--quantize nf4 --use-gradient-checkpointing full",
    "offload": "--quantize nf4 --use-gradient-checkpointing offload",
    "offload_attn": "--use-gradient-checkpointing offload_attn",
    "cudnn": "--attention cudnn",
    "every weight": "--full-finetuning",
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The settings that all cases share."""

    data: tuple[str, ...]
    """Text to train on."""
    model: Path
    """A checkpoint."""
    output_dir: Path
    max_seq_length: int
    """Tokens per row."""
    steps: int
    """Steps per run. A checkpoint is saved every second step."""
    kill_after: int
    """Number of steps after which the first process is killed."""
    at_once: int
    """Number of cases that share the GPU."""


def random_model(preset: str, layers: int, tokenizer: str, output_dir: Path) -> Path:
    """Returns a bfloat16 checkpoint with random weights, which is written if it does not exist."""
    config = dataclasses.replace(presets.PRESETS[preset], num_hidden_layers=layers)
    directory = output_dir / f"{preset}-{layers}"
    draw = np.random.default_rng(0)

    def fetch(name: TensorName) -> np.ndarray:
        noise = 0.02 * draw.standard_normal(name.shape, np.float32)
        return (1 + noise if len(name.shape) == 1 else noise).astype(ml_dtypes.bfloat16)

    if not directory.exists():
        loaded = weights.load_tokenizer(weights.resolve_model(tokenizer, with_weights=False))
        weights.write_checkpoint(directory, fetch, config, loaded, dtype=np.dtype(ml_dtypes.bfloat16))
    return directory


def run_case(experiment: Experiment, name: str) -> dict[str, Any]:
    """Runs the three processes of a case, and compares their results."""
    folder = experiment.output_dir / name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    flags = [
        "--model", experiment.model, "--data", *experiment.data, "--max-seq-length", experiment.max_seq_length,
        "--max-steps", experiment.steps, "--save-steps", 2, "--save-total-limit", 2, "--eval-batches", 1,
        "--learning-rate", 1e-3, *CASES[name].split(),
    ]  # fmt: skip
    killed, whole = folder / "killed", folder / "whole"
    share = 0.9 / experiment.at_once
    runs = {
        "killed": run(folder, "killed", [*flags, "--output-dir", killed], share, kill_after=experiment.kill_after),
        "resumed": run(folder, "resumed", ["--output-dir", killed, "--resume-from-checkpoint", "latest"], share),
        "whole": run(folder, "whole", [*flags, "--output-dir", whole], share),
    }
    result = {"case": name, "runs": runs, "equal": None}
    if runs["resumed"]["exit"] == 0 and runs["whole"]["exit"] == 0:
        result["equal"] = outcome(killed) == outcome(whole)
        result["different"] = [key for key in outcome(whole) if outcome(whole)[key] != outcome(killed).get(key)]
        rates = [row["tokens_per_second"] for row in rows(whole / "metrics.jsonl")[1:]]
        result["tokens_per_second"] = statistics.median(rates)
    return result


def run(folder: Path, name: str, flags: list[Any], share: float, kill_after: int | None = None) -> dict[str, Any]:
    """Runs lcjax.train; returns its exit code, and the seconds to its first step and to its end."""
    environment = os.environ | {"XLA_CLIENT_MEM_FRACTION": f"{share:.2f}", "XDG_CACHE_HOME": str(folder / "cache")}
    log, metrics = folder / f"{name}.log", Path(flags[flags.index("--output-dir") + 1]) / "metrics.jsonl"
    began, first = time.perf_counter(), None
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "lcjax.train", *map(str, flags)]
        process = subprocess.Popen(command, env=environment, stderr=file, stdout=file)
        while process.poll() is None:
            if first is None and "\nstep " in log.read_text(encoding="utf-8"):
                first = time.perf_counter() - began
            if kill_after is not None and len(rows(metrics)) >= kill_after:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.02)
    return {"exit": process.returncode, "first_step": first, "seconds": time.perf_counter() - began}


def rows(path: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of a record; [] if the file does not exist."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def outcome(run: Path) -> dict[str, Any]:
    """Returns all that must be equal: the metrics of each step, evaluations and weight files."""
    steps = [{k: v for k, v in row.items() if k not in MEASURED} for row in rows(run / "metrics.jsonl")]
    files = sorted([*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")])
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {"metrics": steps, "evaluations": rows(run / "evaluation.jsonl"), **digests}
