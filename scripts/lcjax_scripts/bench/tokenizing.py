"""One run of `scripts/bench_tokenizing.py`: lcjax|peer PATH [MODEL]; prints JSON."""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from lcjax.data import ChatTemplate
from lcjax.data.tokens import tokenize_sources
from lcjax.weights import load_tokenizer, resolve_model
from lcjax.weights.demo import demo_model

# Texts that the peer encodes at a time, as `datasets` does by default.
PEER_BATCH = 1000


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the peak; mapped files count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main(argv: list[str]) -> None:
    run, path, *model = argv
    tokenizer = load_tokenizer(resolve_model(model[0] if model else demo_model(), with_weights=False))
    tokenizer("the first call")
    before, start, processor_start = resident("VmRSS"), time.monotonic(), time.process_time()
    if run == "peer":
        tokens = tokens_of_peer(Path(path), tokenizer)
    else:
        tokens = len(tokenize_sources([path], tokenizer, ChatTemplate(tokenizer)).corpus.tokens)
    numbers = {
        "seconds": time.monotonic() - start,
        "processor_seconds": time.process_time() - processor_start,
        "megabytes": (resident("VmHWM") - before) / 1e6,
        "tokens": tokens,
    }
    print(json.dumps(numbers))


def tokens_of_peer(path: Path, tokenizer: PreTrainedTokenizerFast) -> int:
    """The number of tokens, with an end token each, of the texts of a .jsonl file or of a text."""
    count = 0
    with path.open(encoding="utf-8") as file:
        texts = (json.loads(line)["text"] for line in file) if path.suffix == ".jsonl" else iter([file.read()])
        while batch := list(itertools.islice(texts, PEER_BATCH)):
            encodings = tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            count += sum(len(encoding.ids) + 1 for encoding in encodings)
    return count


if __name__ == "__main__":
    main(sys.argv[1:])
