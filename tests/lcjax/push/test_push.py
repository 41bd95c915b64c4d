"""`lcjax push`: a real upload to a local hub, and its errors in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import close_session, constants

import lcjax
from lcjax.push.__main__ import main
from tests.support.fake_hub import OID, fake_hub

# huggingface_hub uploads weights with a deprecated argument of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_of_the_tests"


@pytest.fixture(scope="module")
def adapter(model_dir, tmp_path_factory):
    """An adapter with its tokenizer, and the remains of an interrupted save."""
    folder = tmp_path_factory.mktemp("run") / "adapter"
    model, tokenizer = lcjax.from_pretrained(model_dir, max_seq_length=32)
    lcjax.save_pretrained(lcjax.get_peft_model(model, r=2), folder, tokenizer)
    (folder / ".adapter.partial-0").mkdir()
    (folder / ".adapter.partial-0" / "adapter_model.safetensors").write_bytes(b"half")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A local hub that this process uses, with a token."""
    close_session()  # one that another test has opened may have its proxy
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with fake_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        yield running


def visible(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_hub_receives_every_file(adapter, tmp_path):
    """The installed command, with the variables that users have."""
    variables = {
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    with fake_hub() as hub:
        command = [sys.executable, "-m", "lcjax", "push", str(adapter), "me/x", "--private", "--revision", "new"]
        environment = os.environ | variables | {"HF_ENDPOINT": hub.address}
        done = subprocess.run(
            [*command, "--commit-message", "A first adapter"], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{hub.address}/me/x/commit/{OID}\n"
        [created], [commit] = hub.created, hub.commits
        assert (created["name"], created["organization"]) == ("x", "me")
        assert created.get("visibility") == "private" or created.get("private") is True
        assert (hub.branches, commit["branch"], commit["message"]) == (["new"], "new", "A first adapter")
        assert commit["files"] == visible(adapter)
        assert {"README.md", "adapter_model.safetensors", "tokenizer.json"} <= commit["files"].keys()
        assert hub.tokens == {f"Bearer {TOKEN}"}
        assert TOKEN not in done.stdout + done.stderr


def test_a_model_is_uploaded_to_the_main_branch(hub, model_dir):
    assert main([str(model_dir), "me/y"]) == 0
    [created], [commit] = hub.created, hub.commits
    assert created.get("visibility") != "private"
    assert created.get("private") is not True
    assert (commit["branch"], commit["files"]) == ("main", visible(model_dir))


def test_a_dry_run_lists_the_files_and_sends_nothing(hub, adapter, model_dir, capsys):
    assert main([str(adapter), "me/x", "--dry-run", "--private"]) == 0
    captured = capsys.readouterr()
    *files, last = captured.out.splitlines()
    assert {line.split()[-1]: int(line.split()[0].replace(",", "")) for line in files} == {
        name: len(content) for name, content in visible(adapter).items()
    }
    total = sum(map(len, visible(adapter).values()))
    assert last == f"would upload {len(files)} files, {total:,} bytes, to me/x (private, if it is new)"
    assert f"names the base model by the path {model_dir}, which others cannot use" in captured.err
    assert (hub.created, hub.commits) == ([], [])


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the token is not valid (401): log in again with `hf auth login`"),
        (403, "the token may not write there (403): use a token with write access, or another owner"),
        (400, "the hub refuses ("),
    ],
)
def test_a_refusal_is_one_line(status, said, hub, model_dir, capsys):
    hub.refuses = status
    assert main([str(model_dir), "me/x"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {model_dir} cannot be uploaded to me/x: {said}")
    assert TOKEN not in last


def test_without_a_token_or_a_network(hub, model_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main([str(model_dir), "me/x"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {model_dir} cannot be uploaded to me/x: the hub cannot be reached (" in last
    assert "check the network" in last
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert main([str(model_dir), "me/x"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no token of the hub; log in with `hf auth login`, or set HF_TOKEN\n"
    )


def test_what_the_client_cannot_send_is_one_line(hub, model_dir, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_\xe9")
    assert main([str(model_dir), "me/x"]) == 2
    assert capsys.readouterr().err == (
        "error: the token of the hub has characters that are not ASCII; copy it again to HF_TOKEN\n"
    )


def test_a_link_to_a_file_of_another_folder_is_not_uploaded(hub, adapter, tmp_path, capsys):
    folder, other = tmp_path / "adapter", tmp_path / "secret\x1b.txt"
    shutil.copytree(adapter, folder)
    other.write_text("secret")
    (folder / "link.txt").symlink_to(other)
    assert main([str(folder), "me/x", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert f"{folder / 'link.txt'} is a link to {tmp_path}/secret\\x1b.txt, outside of the folder; remove it" in said
    (folder / "link.txt").unlink()
    (folder / "README.txt").symlink_to(folder / "adapter_config.json")
    assert main([str(folder), "me/x", "--dry-run"]) == 0


def test_damaged_weights_are_not_uploaded(hub, adapter, tmp_path, capsys):
    for name, content in visible(adapter).items():
        (tmp_path / name).write_bytes(content)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main([str(tmp_path), "me/x"]) == 2
    assert str(weights) in capsys.readouterr().err
    assert hub.created == []
