"""Bad inputs of `lcjax tokens`."""

from tests.support.bad_inputs.common import Case, data, lengths, models, outputs

CASES: list[Case] = [
    *models("{{w}}/data --model {}", config=False, weights=False),
    *data("{} --model {{w}}/model"),
    *lengths("{{w}}/data --model {{w}}/model --max-seq-length {}", 2),
    *outputs("{{w}}/data --model {{w}}/model --json {}", "--json"),
    *outputs("{{w}}/data --model {{w}}/model --plot {}", "--plot"),
    ("{w}/data --model {w}/model --plot x.doc", "--plot x.doc"),
    ("{w}/data --model {w}/model --documents chapter", "--documents"),
    ("{w}/data --no-such-flag", "--no-such-flag"),
    ("--model {w}/model", "no data is given"),
]
