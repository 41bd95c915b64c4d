"""Bad inputs of `lcjax doctor`."""

from tests.support.bad_inputs.common import Case, data, lengths, models, outputs, words

_ALL = "--model {w}/model --data {w}/data --max-seq-length 64"

CASES: list[Case] = [
    *models("--model {} --data {{w}}/data --max-seq-length 64", weights=False),
    *data("--model {{w}}/model --data {} --max-seq-length 64"),
    *lengths("--model {{w}}/model --data {{w}}/data --max-seq-length {}", 2),
    *outputs("--model {{w}}/model --data {{w}}/data --max-seq-length 64 --json {}", "--json"),
    *words(_ALL, "--lora-r", "--host-gb"),
    (f"{_ALL} --gpu h100", "--gpu"),
    (f"{_ALL} --host-gb 0", "--host-gb 0"),
    (f"{_ALL} --lora-r -1", "--lora-r -1"),
    (f"{_ALL} --documents chapter", "--documents"),
    (f"{_ALL} --no-such-flag", "--no-such-flag"),
]
