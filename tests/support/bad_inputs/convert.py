"""Bad inputs of `python -m lcjax.convert`."""

from tests.support.bad_inputs.common import Case, models

CASES: list[Case] = [
    *models("{} out"),
    ("{w}/model {w}/full", "full"),
    ("{w}/model {w}/file", "file"),
    ("{w}/model {w}/file/out", "file"),
    ("{w}/model /proc/out", "/proc/out"),
    ("{w}/model ''", "is empty"),
    (f"{{w}}/model {'x' * 300}", "xxx"),
    ("{w}/model out.gguf", "out.gguf"),
    ("{w}/model out --dtype float16", "--dtype"),
    ("{w}/model out --max-shard-size apples", "--max-shard-size apples"),
    ("{w}/model out --max-shard-size 0GB", "--max-shard-size 0GB"),
    ("{w}/model out --max-shard-size -5GB", "--max-shard-size"),
    ("{w}/model out --adapter {w}/missing", "missing"),
    ("{w}/model out --adapter {w}/adapter", "/adapter"),
    ("{w}/model out --adapter {w}/adapter-torn", "adapter-torn"),
    ("{w}/model out --adapter ''", "--adapter is empty"),
    ("{w}/model out --max-seq-length 0", "--max-seq-length"),
    ("{w}/model out --max-seq-length 2147483648", "--max-seq-length"),
    ("{w}/model out --rope-scaling spiral", "--rope-scaling"),
    ("{w}/model out --rope-theta 0", "--rope-theta"),
    ("{w}/model out --no-such-flag", "--no-such-flag"),
    ("{w}/model", "DESTINATION"),
    ("", "SOURCE and DESTINATION"),
]
