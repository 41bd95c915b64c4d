"""Bad inputs of `lcjax push`."""

from tests.support.bad_inputs.common import Case

CASES: list[Case] = [
    ("{w}/model", "HUB_ID must be given"),
    ("{w}/missing me/x --dry-run", "{w}/missing is not a directory"),
    ("{w}/file me/x --dry-run", "{w}/file is not a directory"),
    ("{w}/nothing me/x --dry-run", "has neither adapter_config.json nor config.json"),
    ("{w} me/x --dry-run", "{w} is the folder of a run; give {w}/adapter"),
    ("{w}/adapter me/x --dry-run", "adapter_model.safetensors"),
    ("{w}/model a/b/c --dry-run", "a/b/c is not a hub id"),
    ("{w}/model 'me/a b' --dry-run", "me/a b is not a hub id"),
    ("{w}/model me/.. --dry-run", "me/.. is not a hub id"),
    ("{w}/model ''", "is empty"),
    ("{w}/model me/x --privat", "did you mean --private"),
]
