"""Bad inputs of `lcjax leak`."""

from tests.support.bad_inputs.common import Case, data, models, words

_ALL = "--model {w}/model --data {w}/data --max-seq-length 64"

CASES: list[Case] = [
    *models("--model {} --data {{w}}/data --max-seq-length 64"),
    *data("--model {{w}}/model --data {} --max-seq-length 64"),
    *words(_ALL, "--rows"),
    (f"{_ALL} --rows 0", "--rows 0"),
    (f"{_ALL} --max-seq-length 1", "--max-seq-length 1"),
    (f"{_ALL} --documents chapter", "--documents"),
    (f"{_ALL} --dtype float16", "--dtype float16"),
    (f"{_ALL} --quantize int3", "--quantize int3"),
    (f"{_ALL} --attention flash", "--attention flash"),
    (f"{_ALL} --memory everything", "--memory everything"),
    (f"{_ALL} --no-such-flag", "--no-such-flag"),
    ("--model {w}/model --data {w}/prompt.txt --max-seq-length 64", "no row has two documents"),
    ("--data {w}/data", "--model"),
]
