"""Measures the speed and memory of reading and tokenizing text, first and with stored tokens.

    python scripts/bench_tokenizing.py --megabytes 20

Writes text into a temporary folder: records of about 2 KB, or with --one-document a single text.
Each run is a separate process with an empty cache at first. Prints seconds, megabytes of text per
second, and peak resident memory above that of the process with its tokenizer.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro

from lcjax.cli.entry import entry_point
from lcjax.data import stdlib_sources


@dataclasses.dataclass(frozen=True)
class Bench:
    """How much text, in how many documents, and whose tokenizer."""

    megabytes: float = 20
    """Size of the text, in units of 10^6 characters."""
    one_document: bool = False
    """A single text file instead of records."""
    model: str | None = None
    """Whose tokenizer: a directory or a .gguf file; SmolLM2's if not given."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    bench = tyro.cli(Bench, args=argv, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = write_text(Path(folder), int(bench.megabytes * 1e6), one_document=bench.one_document)
        for label in ("first", "stored"):
            seconds, megabytes, tokens = measured(path, bench.model, Path(folder, "cache"))
            print(
                f"{label:6} {seconds:7.2f} s {bench.megabytes / seconds:8.1f} MB/s "
                f"{megabytes:8.0f} MB of memory {tokens:>14,} tokens"
            )
    return 0


def write_text(folder: Path, characters: int, *, one_document: bool) -> Path:
    """Writes the library's sources, repeated; each repetition begins with its number."""
    sources = "".join(path.read_text(encoding="utf-8", errors="replace") for path in stdlib_sources())
    path = folder / ("text.txt" if one_document else "text.jsonl")
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, characters, 2000):
            at = start % (len(sources) - 2000)
            text = f"# {start}\n{sources[at : at + 2000]}"[: min(2000, characters - start)]
            file.write(text if one_document else json.dumps({"text": text}) + "\n")
    return path


def measured(path: Path, model: str | None, cache: Path) -> tuple[float, float, int]:
    """(seconds, peak megabytes, tokens) of one run in a new process."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    environment.pop("LCJAX_TOKEN_CACHE_GB", None)
    worker = [sys.executable, "-m", "lcjax_scripts.bench.tokenizing", str(path), *([model] if model else [])]
    search_path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        worker, capture_output=True, text=True, check=True, env=environment | {"PYTHONPATH": search_path}
    )
    found = json.loads(done.stdout)
    return found["seconds"], found["megabytes"], found["tokens"]


if __name__ == "__main__":
    sys.exit(main())
