"""Bad inputs of `lcjax evaluate`."""

from tests.support.bad_inputs.common import Case, data, models, words

_ALL = "--model {w}/model --data {w}/data --max-seq-length 64 --tasks position"

CASES: list[Case] = [
    *models("--model {} --data {{w}}/data --max-seq-length 64 --tasks position"),
    *data("--model {{w}}/model --data {} --max-seq-length 64 --tasks position"),
    *words(_ALL, "--seed", "--eval-batches", "--samples", "--depths"),
    (f"{_ALL} --tasks needles", "--tasks"),
    (f"{_ALL} --max-seq-length 1", "--max-seq-length 1"),
    (f"{_ALL} --max-seq-length 2147483648", "--max-seq-length 2147483648"),
    ("--model {w}/model --data {w}/data --max-seq-length 64", "--max-seq-length 64"),
    (f"{_ALL} --eval-batches 0", "--eval-batches 0"),
    (f"{_ALL} --samples 0", "--samples 0"),
    (f"{_ALL} --depths 0", "--depths 0"),
    (f"{_ALL} --output-dir {{w}}/file", "--output-dir"),
    (f"{_ALL} --output-dir {{w}}/file/x", "--output-dir"),
    (f"{_ALL} --output-dir /proc/x", "--output-dir"),
    (f"{_ALL} --output-dir {'x' * 300}", "--output-dir"),
    (f"{_ALL} --output-dir ''", "--output-dir is empty"),
    (f"{_ALL} --adapter {{w}}/missing", "missing"),
    (f"{_ALL} --adapter {{w}}/adapter", "/adapter"),
    (f"{_ALL} --dtype float16", "--dtype float16"),
    (f"{_ALL} --quantize int3", "--quantize int3"),
    (f"{_ALL} --attention flash", "--attention flash"),
    (f"{_ALL} --rope-scaling spiral", "--rope-scaling"),
    (f"{_ALL} --no-such-flag", "--no-such-flag"),
    ("--run {w}/missing", "missing"),
    ("--run {w}/full", "full"),
    ("--run ''", "--run is empty"),
    ("--model {w}/model", "--data"),
]
