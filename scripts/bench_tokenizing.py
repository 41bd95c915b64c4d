"""Measures the speed and memory of reading and tokenizing text, first and with stored tokens.

    python scripts/bench_tokenizing.py --megabytes 20

Writes text into a temporary folder: records of about 2 KB, or with --one-document a single text.
Each run is a separate process with an empty cache at first. Prints seconds, megabytes of text per
second, processor seconds, and peak resident memory above that of the process with its tokenizer.
The last run is the peer: the tokenizers library's `encode_batch` on the same texts, without storing
anything. Processor seconds are less disturbed by other work on the machine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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
    file: Path | None = None
    """A .jsonl file of records with text, or a text, to read instead of writing one."""
    peer: bool = True
    """Whether to run the peer, which has a large document in memory as one encoding."""
    model: str | None = None
    """Whose tokenizer: a directory or a .gguf file; SmolLM2's if not given."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    bench = tyro.cli(Bench, args=argv, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = bench.file or write_text(Path(folder), int(bench.megabytes * 1e6), one_document=bench.one_document)
        megabytes = path.stat().st_size / 1e6
        for run in ("first", "stored", *(["peer"] if bench.peer else [])):
            found = measured(path, bench.model, Path(folder, "cache"), is_peer=run == "peer")
            print(
                f"{run:6} {found['seconds']:7.2f} s {megabytes / found['seconds']:8.1f} MB/s "
                f"{found['processor_seconds']:8.2f} processor s {found['megabytes']:8.0f} MB of memory "
                f"{found['tokens']:>14,} tokens",
                flush=True,
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


def measured(path: Path, model: str | None, cache: Path, *, is_peer: bool) -> dict[str, Any]:
    """What one run in a new process printed; see `lcjax_scripts.bench.tokenizing`."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    for variable in ("LCJAX_TOKEN_CACHE_GB", "LCJAX_TOKEN_CACHE"):
        environment.pop(variable, None)
    run = ["peer" if is_peer else "lcjax", str(path), *([model] if model else [])]
    search_path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "lcjax_scripts.bench.tokenizing", *run],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"PYTHONPATH": search_path},
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
