"""One run of `scripts/bench_tokenizing.py`: PATH [MODEL]; prints its numbers as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from lcjax.data import ChatTemplate
from lcjax.data.tokens import tokenize_sources
from lcjax.weights import load_tokenizer, resolve_model
from lcjax.weights.demo import demo_model


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the peak; mapped files count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main(argv: list[str]) -> None:
    path, *model = argv
    tokenizer = load_tokenizer(resolve_model(model[0] if model else demo_model(), with_weights=False))
    tokenizer("the first call")
    before, start = resident("VmRSS"), time.monotonic()
    corpus = tokenize_sources([path], tokenizer, ChatTemplate(tokenizer)).corpus
    seconds = time.monotonic() - start
    megabytes = (resident("VmHWM") - before) / 1e6
    print(json.dumps({"seconds": seconds, "megabytes": megabytes, "tokens": len(corpus.tokens)}))


if __name__ == "__main__":
    main(sys.argv[1:])
