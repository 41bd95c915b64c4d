import time

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from lcjax.errors import InputError
from lcjax.weights import load_model_files, resolve_model


def test_directory_and_gguf_file_are_taken_as_they_are(tmp_path, smollm2):
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model(smollm2) == smollm2


@pytest.mark.parametrize("name", ["/no/such/place", "./here", "../there", "a/b/c", "name", "~/models/x", "x/y.gguf"])
def test_path_that_does_not_exist(name):
    with pytest.raises(InputError, match="does not exist; check the path"):
        resolve_model(name)


def test_file_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"neither a directory nor a \.gguf file"):
        resolve_model(tmp_path / "config.json")


def test_folder_that_exists_makes_the_rest_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="runs/typo does not exist"):
        resolve_model("runs/typo")


@pytest.fixture
def unreachable_hub(monkeypatch, tmp_path):
    """A hub on a port of this machine where nothing listens, and an empty cache: the real client, refused for real."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("unreachable_hub")
def test_hub_id_without_a_network_is_refused_within_seconds():
    start = time.monotonic()
    with pytest.raises(
        InputError, match=r"meta-llama/Llama-3\.2-1B is not on this disk .* check the network"
    ) as caught:
        resolve_model("meta-llama/Llama-3.2-1B")
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("with_weights", [True, False])
def test_a_tokenizer_needs_no_weights(monkeypatch, with_weights):
    files = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "original/params.json",
    ]
    wanted = []

    def download(name, *, allow_patterns, ignore_patterns, etag_timeout):
        wanted.extend(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return "/here"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    resolve_model("owner/name", with_weights=with_weights)
    assert wanted == [files[0], *files[1 : 1 + with_weights], *files[2:4]]


@pytest.mark.usefixtures("unreachable_hub")
def test_name_that_is_no_hub_id():
    with pytest.raises(InputError, match="it is no hub id"):
        resolve_model("owner/has spaces")


def test_loads_by_directory_and_by_gguf_file(tiny_llama, tmp_path, smollm2):
    tiny_llama().save_pretrained(tmp_path)
    config, params, source = load_model_files(str(tmp_path), "bfloat16")
    assert (config.vocab_size, source) == (101, tmp_path)
    assert params["embed_tokens"]["weight"].dtype.name == "bfloat16"
    config, params, source = load_model_files(smollm2, "bfloat16")
    assert (config.vocab_size, source) == (49152, smollm2)
    assert params["norm"]["weight"].shape == (576,)
