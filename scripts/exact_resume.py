"""Kills runs of `lcjax.train`, goes on with them, and compares every bit with runs that nothing disturbed.

    python scripts/exact_resume.py --tokenizer DIR_OR_GGUF --data PATH... --output-dir exact

The model has random weights in the shape of a preset. For each case the first process starts without any compiled program and is
killed after a few steps, the second goes on with it, and a third runs the whole way. The three must agree in every metric and in
every file of weights. The time from the start of a process to its first step is printed with them.
"""

from __future__ import annotations

import concurrent.futures
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
from lcjax.cli.flags import parse
from lcjax.config import presets
from lcjax.model.params import TensorName
from lcjax.train.compiled.builder import builder

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
class Arguments:
    """Kill runs, go on with them, and compare every bit with undisturbed ones."""

    data: tuple[str, ...]
    """Text to train on."""
    tokenizer: str
    """A Hugging Face directory with a tokenizer, or a .gguf file."""
    output_dir: Path
    """Where models, runs and results.json go."""
    preset: str = "llama-3.2-1b"
    """The shape of the random model."""
    layers: int = 16
    """Of the model."""
    max_seq_length: int = 32_768
    """Tokens of a row."""
    steps: int = 10
    """Of a run; a checkpoint is saved every second one."""
    kill_after: int = 5
    """Steps after which the first process is killed."""
    cases: tuple[str, ...] = tuple(CASES)
    """Which of the cases."""
    at_once: int = 1
    """Cases that share the GPU."""


def main(argv: list[str] | None = None) -> int:
    """Prints a line a case; returns 1 where bits differ."""
    arguments = parse(Arguments, argv, "python scripts/exact_resume.py")
    model = random_model(arguments)
    print(json.dumps(builder()), flush=True)
    with concurrent.futures.ThreadPoolExecutor(arguments.at_once) as pool:
        futures = {pool.submit(run_case, arguments, model, name): name for name in arguments.cases}
        results = []
        for future in concurrent.futures.as_completed(futures):
            results.append(future.result())
            print(json.dumps(results[-1]), flush=True)
    (arguments.output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0 if all(result.get("equal") for result in results) else 1


def random_model(arguments: Arguments) -> Path:
    """A checkpoint in bfloat16, made once."""
    config = dataclasses.replace(presets.PRESETS[arguments.preset], num_hidden_layers=arguments.layers)
    directory = arguments.output_dir / f"{arguments.preset}-{arguments.layers}"
    draw = np.random.default_rng(0)

    def fetch(name: TensorName) -> np.ndarray:
        noise = 0.02 * draw.standard_normal(name.shape, np.float32)
        return (1 + noise if len(name.shape) == 1 else noise).astype(ml_dtypes.bfloat16)

    if not directory.exists():
        tokenizer = weights.load_tokenizer(weights.resolve_model(arguments.tokenizer, with_weights=False))
        weights.write_checkpoint(directory, fetch, config, tokenizer, dtype=np.dtype(ml_dtypes.bfloat16))
    return directory


def run_case(arguments: Arguments, model: Path, name: str) -> dict[str, Any]:
    """What the three processes of a case did, and whether they agree."""
    folder = arguments.output_dir / name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    flags = [
        "--model", model, "--data", *arguments.data, "--max-seq-length", arguments.max_seq_length,
        "--max-steps", arguments.steps, "--save-steps", 2, "--save-total-limit", 2, "--eval-batches", 1,
        "--learning-rate", 1e-3, *CASES[name].split(),
    ]  # fmt: skip
    killed, whole = folder / "killed", folder / "whole"
    share = 0.9 / arguments.at_once
    runs = {
        "killed": run(folder, "killed", [*flags, "--output-dir", killed], share, kill_after=arguments.kill_after),
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
    """Runs lcjax.train; returns its exit code and the seconds to its first step and to its end."""
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
    """The whole lines of a record; [] where there is none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def outcome(run: Path) -> dict[str, Any]:
    """All that must agree: each step's numbers, each evaluation, each file of weights."""
    steps = [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows(run / "metrics.jsonl")]
    files = sorted([*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")])
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {"metrics": steps, "evaluations": rows(run / "evaluation.jsonl"), **digests}


if __name__ == "__main__":
    sys.exit(main())
