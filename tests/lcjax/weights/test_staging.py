import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from lcjax.errors import InputError
from lcjax.weights.staging import staged
from tests.support.thin import thinned


def contents(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def save(target: Path, files: dict[str, str], **options) -> None:
    with staged(target, 100, **options) as staging:
        for name, text in files.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text(text)


def test_new_directory_appears_at_once(tmp_path):
    target = tmp_path / "a" / "b"
    with staged(target, 100) as staging:
        (staging / "x.json").write_text("x")
        assert not target.exists()
    assert contents(tmp_path) == {"a/b/x.json": "x"}
    assert target.stat().st_mode & 0o777 == (tmp_path / "a").stat().st_mode & 0o777


def test_other_files_of_an_existing_directory_are_preserved(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("mine", "x.json", "former-1", "former-2", "sub/y"):
        (tmp_path / name).write_text("before")
    save(tmp_path, {"x.json": "after", "former-2": "after", "sub/z": "after"}, replaces=("former-*",))
    assert contents(tmp_path) == {
        "mine": "before",
        "x.json": "after",
        "former-2": "after",
        "sub/y": "before",
        "sub/z": "after",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["former-2", "mine", "sub", "x.json"]


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_save_leaves_no_trace(tmp_path, exists, error):
    target = tmp_path / "target"
    if exists:
        target.mkdir()
        (target / "x.json").write_text("before")
    before = contents(tmp_path)

    def interrupted():
        with staged(target, 100) as staging:
            (staging / "x.json").write_text("after")
            raise error

    with pytest.raises(error):
        interrupted()
    assert contents(tmp_path) == before
    assert target.exists() == exists


def test_saving_follows_a_link_to_a_directory(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    save(tmp_path / "link", {"x": "x"})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "x").read_text() == "x"


@pytest.mark.parametrize("below", [False, True])
def test_file_in_the_way(tmp_path, below):
    (tmp_path / "file").write_text("before")
    target = tmp_path / "file" / "deeper" if below else tmp_path / "file"
    with pytest.raises(InputError, match="file") as caught:
        save(target, {"x": "x"})
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == {"file": "before"}


NOBODY = 65_534


def test_forbidden_directory():
    # Root may write everywhere, so drop its permissions. pytest's folders are then not readable.
    me = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        os.seteuid(me or NOBODY)
        try:
            with pytest.raises(InputError, match=r"Permission denied.*permissions"):
                save(Path(folder) / "target", {"x": "x"})
        finally:
            os.seteuid(me)


def test_more_than_the_disk_holds_is_refused_before_the_first_byte(tmp_path):
    from lcjax.config import LlamaConfig
    from lcjax.model.params import tensor_names
    from lcjax.weights import save_checkpoint
    from lcjax.weights.assembly import insert

    config = LlamaConfig(2**30, 2**20, 2**10, 2, 2, 2, 2**9, tie_word_embeddings=True)
    params = {}
    for name in tensor_names(config):
        # A petabyte in shape, but only four bytes of memory.
        shape = name.shape if name.layer is None else (2, *name.shape)
        insert(params, name.path, np.broadcast_to(np.float32(0), shape))
    with pytest.raises(
        InputError, match=r"4,503,\d{3},\d{3},\d{3},\d{3} bytes are needed and [\d,]+ are free"
    ) as caught:
        save_checkpoint(tmp_path / "out", params, config)
    assert str(tmp_path / "out") in str(caught.value)
    assert not any(tmp_path.iterdir())


FULL_DISK = """
import resource, sys
import numpy as np
from lcjax.errors import InputError
from lcjax.config import LlamaConfig
from lcjax.weights import load_config, load_params, save_checkpoint
directory = sys.argv[1]
config = load_config(directory)
params = load_params(directory, config, "float32")
params["norm"]["weight"] = params["norm"]["weight"] + 1
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save_checkpoint(directory, params, config)
except InputError as error:
    print(error)
"""


def test_disk_that_fills_up_midway(tiny_llama, tmp_path):
    """A limit on the size of files makes the kernel refuse the write, as a full disk does."""
    tiny_llama().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, check=True)
    assert f"{tmp_path} cannot be written" in run.stdout
    assert "bytes are needed" in run.stdout
    assert run.stdout.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


_SAVES_AND_WAITS = """
import sys, time
from pathlib import Path
from lcjax.weights.staging import staged
from tests.support.thin import thinned
with staged(Path(sys.argv[1]), 100) as staging:
    (staging / "x.json").write_text("half")
    print(staging.name, flush=True)
    time.sleep(600)
"""

# Each takes two processes. Both names, and both an existing folder and a new one.
KILLED_IN_EVERY_RUN = (("target", True), ("[t]*?", False))


@pytest.mark.parametrize(
    ("name", "exists"),
    thinned(itertools.product(["target", "[t]*?"], [True, False]), lambda case: case in KILLED_IN_EVERY_RUN),
)
def test_the_next_save_removes_only_files_of_killed_processes(tmp_path, name, exists):
    target = tmp_path / name
    if exists:
        target.mkdir()
    place = target if exists else tmp_path
    killed, living = (
        subprocess.Popen([sys.executable, "-c", _SAVES_AND_WAITS, target], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    try:
        assert killed.stdout is not None
        assert living.stdout is not None
        left, in_use = killed.stdout.readline().strip(), living.stdout.readline().strip()
        killed.kill()
        killed.wait()
        assert {left, in_use} <= {path.name for path in place.iterdir()}
        save(target, {"x.json": "whole"})
        assert contents(target)["x.json"] == "whole"
        assert not (place / left).exists()
        assert (place / in_use / "x.json").read_text() == "half"
    finally:
        for process in (killed, living):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    save(target, {"x.json": "again"})
    assert not (place / in_use).exists()
