"""Bad inputs of `lcjax audit`."""

from tests.support.bad_inputs.common import Case, data, lengths, outputs, words

_ALL = "{w}/data --model {w}/model"

CASES: list[Case] = [
    *data("{} --model {{w}}/model"),
    *lengths("{{w}}/data --model {{w}}/model --max-seq-length {}", 2),
    *outputs("{{w}}/data --model {{w}}/model --json {}", "--json"),
    *outputs("{{w}}/data --model {{w}}/model --plot {}", "--plot"),
    *words(_ALL, "--max-tokens", "--gradient-accumulation-steps", "--per-device-train-batch-size"),
    (f"{_ALL} --plot x.doc", "--plot x.doc"),
    (f"{_ALL} --documents chapter", "--documents"),
    (f"{_ALL} --gradient-accumulation-steps 0", "--gradient-accumulation-steps 0"),
    (f"{_ALL} --per-device-train-batch-size 0", "--per-device-train-batch-size 0"),
    (f"{_ALL} --max-tokens 0", "--max-tokens 0"),
    (f"{_ALL} --no-such-flag", "--no-such-flag"),
]
