"""Generation on several devices gives the tokens, and the logits, of one.

One of the two layers has a window, and every head has a sink.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.support import dense_gpt_oss
from tests.support.oracles import make_oracle
from tests.support.thin import thinned

# With 8 devices, each key/value head is on two of them. 3 devices do not divide the heads, so two
# of them are used.
COUNTS = (1, 2, 3, 4, 8)
IN_EVERY_RUN = (1, 3, 8)
USED = {1: 1, 2: 2, 3: 2, 4: 4, 8: 8}
FIELDS = {**dense_gpt_oss.FIELDS, "sliding_window": 10, "head_dim": 8, "vocab_size": 136}

# A prompt of two chunks of 16, one of 4, and a padded one of 4.
PROGRAM = """
import json, sys
from unittest import mock
import jax, numpy as np
from lcjax import load_adapter
from lcjax.config.families import FAMILIES
from lcjax.generate import Generator, Sampling, generator, spans
from lcjax.model import Llama, ModelSettings
from lcjax.weights import load_model_files
from tests.support.dense_gpt_oss import DENSE

FAMILIES[DENSE.model_type] = DENSE
folder, adapter, *counts = sys.argv[1:]
config, params, _ = load_model_files(folder, "float32")
model = load_adapter(Llama(config, params, ModelSettings(max_seq_length=64)), adapter)
prompt = np.random.default_rng(3).integers(0, config.vocab_size, 38).tolist()
generator.CHUNKS = (16, 4)
spans.SPARE, spans.MULTIPLE = 4, 16
for count in map(int, counts):
    with mock.patch("jax.local_device_count", lambda: count):
        found = Generator(model, 64)
    tokens = list(found.generate(prompt, Sampling(), max_new_tokens=6))
    window, whole = (span.keys_LBSKd for span in found._cache.spans)
    assert window.shape[2] == 16 and whole.shape[2] == 68
    print(json.dumps({"tokens": tokens, "logits": found._logits_BV.tolist(), "devices": len(whole.devices()),
                      "bytes": whole.addressable_data(0).nbytes, "whole": whole.nbytes}))
"""


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """The results of the selected numbers of devices, and of one device."""
    wanted = {item.callspec.params["count"] for item in request.session.items if item.path == request.path}
    counts = [count for count in COUNTS if count in {1, *wanted}]
    with dense_gpt_oss.registered():
        oracle = make_oracle(tmp_path_factory.mktemp("model"), **FIELDS)
    flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={max(COUNTS)}"
    command = [sys.executable, "-c", PROGRAM, oracle.directory, oracle.adapter, *counts]
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(counts, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("count", thinned(COUNTS[1:], lambda count: count in IN_EVERY_RUN))
def test_tokens_and_logits_are_those_of_one_device(count, results):
    one, several = results[1], results[count]
    assert len(set(one["tokens"])) > 2
    assert several["tokens"] == one["tokens"]
    np.testing.assert_allclose(several["logits"], one["logits"], rtol=0, atol=1e-5 * np.abs(one["logits"]).max())


@pytest.mark.parametrize("count", thinned(COUNTS, lambda count: count in IN_EVERY_RUN))
def test_every_device_has_a_part_of_the_cache(count, results):
    found = results[count]
    assert found["devices"] == USED[count]
    assert found["bytes"] * USED[count] == found["whole"]
