"""Shapes with names: difficult ones, and those of real models."""

from __future__ import annotations

from lcjax_scripts.verify.cases.shapes import AttentionShape

ATTENTION = {
    "one query": AttentionShape(1, 3, 1, 16, batch=2, keys=17),
    "gqa 1": AttentionShape(17, 2, 2, 20, batch=2),
    "gqa 3": AttentionShape(127, 6, 2, 64),
    "gqa 4": AttentionShape(512, 4, 1, 16),
    "gqa 8": AttentionShape(513, 8, 1, 80),
    "full": AttentionShape(513, 3, 1, 64, causal=False),
    "many blocks": AttentionShape(1025, 2, 1, 128),
    "packed": AttentionShape(1000, 3, 1, 64, batch=2, segments="packed"),
    "packed full": AttentionShape(1025, 2, 2, 20, causal=False, segments="packed"),
    "arbitrary segments": AttentionShape(600, 4, 1, 16, batch=2, segments="arbitrary"),
    "arbitrary segments full": AttentionShape(127, 3, 3, 20, keys=513, causal=False, segments="arbitrary"),
    "decoding": AttentionShape(17, 8, 1, 64, keys=1000),
    "queries from the start": AttentionShape(127, 4, 1, 20, keys=600, query_offset=0),
    "queries in the middle": AttentionShape(513, 2, 1, 16, keys=1025, query_offset=300),
    "fewer keys": AttentionShape(600, 3, 1, 16, keys=127, batch=2),
    "fewer keys, later queries": AttentionShape(520, 2, 1, 16, keys=40, query_offset=-3),
    "after all keys": AttentionShape(17, 2, 1, 16, keys=520, query_offset=100_000),
}

# Shapes with features that ATTENTION lacks, or with several features at once, as in real models.
ATTENTION_FEATURES = {
    "gpt-oss": AttentionShape(257, 8, 1, 64, window=128, sinks=True, segments="packed", dtype="bfloat16"),
    "gemma 2": AttentionShape(257, 4, 2, 256, window=100, soft_cap=50.0, sharpness=50.0, dtype="bfloat16"),
    "sinks of blind queries": AttentionShape(150, 8, 2, 20, keys=40, sinks=True, lse_cotangent=True),
    "everything": AttentionShape(
        45, 12, 4, 80, batch=2, keys=60, query_offset=15, segments="arbitrary", window=25, soft_cap=2.0, sinks=True,
        lse_cotangent=True,
    ),
    "blind queries": AttentionShape(150, 2, 1, 128, keys=40, dtype="bfloat16"),
    "window of two": AttentionShape(127, 2, 1, 64, window=2, dtype="bfloat16"),
    "long window": AttentionShape(4097, 1, 1, 64, window=129, dtype="bfloat16"),
    "long packed": AttentionShape(4097, 1, 1, 128, segments="packed", window=400, dtype="float16"),
    "offset beyond int32": AttentionShape(150, 2, 1, 32, keys=100, query_offset=2**31 + 50),
    "extreme logits": AttentionShape(300, 3, 1, 64, sharpness=50.0),
    "extreme logits, bfloat16": AttentionShape(300, 3, 1, 64, sharpness=50.0, dtype="bfloat16"),
    "extreme logits, float16": AttentionShape(300, 3, 1, 64, sharpness=50.0, dtype="float16"),
}  # fmt: skip
