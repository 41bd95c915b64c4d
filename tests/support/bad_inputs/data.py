"""Bad inputs of `lcjax data show`."""

from tests.support.bad_inputs.common import Case, data, lengths, words

CASES: list[Case] = [
    *data("show --model {{w}}/model --data {}"),
    *lengths("show --model {{w}}/model --data {{w}}/data --max-seq-length {}", 2),
    *words("show --model {w}/model --data {w}/data", "--rows", "--seed", "--most-tokens"),
    ("show --model {w}/missing --data {w}/data", "missing"),
    ("show --model {w}/model --data {w}/data --rows 0", "--rows 0"),
    ("show --model {w}/model --data {w}/data --most-tokens -1", "--most-tokens -1"),
    ("show --model {w}/model --data {w}/data --seed -1", "--seed -1"),
    ("show --model {w}/model --data {w}/data --seed 4294967296", "--seed 4294967296"),
    ("show --model {w}/model --data {w}/data --eval-fraction 1", "--eval-fraction 1"),
    ("show --model {w}/model --data {w}/data --data-weights 1 2", "--data-weights has 2 weights"),
    ("show --model {w}/model --data {w}/data --documents chapter", "--documents"),
    ("show --model {w}/model --data {w}/data --columns text", "is not field=column"),
    ("show --model {w}/model --data {w}/data --columns text=body", "no record has a column body"),
    ("show --model {w}/model", "no data is given"),
    ("hide --data {w}/data", "hide"),
    ("--data {w}/data", "lcjax data needs the word show"),
]
