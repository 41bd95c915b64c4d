"""Bad inputs of `lcjax generate`."""

from tests.support.bad_inputs.common import Case, models, words

_ALL = "--model {w}/model --prompt old --max-new-tokens 2"

CASES: list[Case] = [
    *models("--model {} --prompt old --max-new-tokens 2"),
    *words(_ALL, "--max-new-tokens", "--temperature", "--top-p", "--seed"),
    ("--model {w}/model --prompt ''", "--prompt is empty"),
    ("--model {w}/model --prompt old --prompt-file {w}/prompt.txt", "--prompt and --prompt-file"),
    ("--model {w}/model --prompt-file {w}/missing", "--prompt-file"),
    ("--model {w}/model --prompt-file {w}/full", "--prompt-file"),
    ("--model {w}/model --prompt-file {w}/latin1.txt", "is not UTF-8"),
    ("--model {w}/model --prompt-file {w}/empty.jsonl", "is empty"),
    ("--model {w}/model --prompt-file ''", "--prompt-file is empty"),
    (f"--model {{w}}/model --prompt-file {'x' * 300}", "--prompt-file"),
    ("--model {w}/model --prompt \udcff", "--prompt is not UTF-8"),
    (f"{_ALL} --system be-brief", "--system"),
    (f"{_ALL} --chat", "chat template"),
    ("--model {w}/model", "chat template"),
    (f"{_ALL} --max-new-tokens 0", "--max-new-tokens 0"),
    (f"{_ALL} --max-seq-length 0", "--max-seq-length 0"),
    (f"{_ALL} --temperature -1", "--temperature -1"),
    (f"{_ALL} --temperature nan", "--temperature nan"),
    (f"{_ALL} --top-p 0", "--top-p 0"),
    (f"{_ALL} --top-p 1.5", "--top-p 1.5"),
    (f"{_ALL} --seed -1", "--seed -1"),
    (f"{_ALL} --dtype float16", "--dtype float16"),
    (f"{_ALL} --quantize int3", "--quantize int3"),
    (f"{_ALL} --attention flash", "--attention flash"),
    (f"{_ALL} --rope-scaling spiral", "--rope-scaling"),
    (f"{_ALL} --rope-theta 0", "--rope-theta"),
    (f"{_ALL} --adapter {{w}}/missing", "missing"),
    (f"{_ALL} --adapter {{w}}/nothing", "nothing"),
    (f"{_ALL} --adapter {{w}}/adapter", "/adapter"),
    (f"{_ALL} --adapter {{w}}/adapter-torn", "adapter-torn"),
    (f"{_ALL} --adapter ''", "--adapter is empty"),
    (f"{_ALL} --no-such-flag", "--no-such-flag"),
    ("--prompt old", "--model"),
]
