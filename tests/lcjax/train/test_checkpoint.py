"""A checkpoint is used only if no byte changed; otherwise the newest undamaged one is offered."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lcjax.errors import InputError
from lcjax.train.__main__ import main
from lcjax.train.checkpoints.checkpoint import FORMAT, Checkpoints
from lcjax.train.checkpoints.checksums import CHECKSUMS, find_damage, write_checksums
from lcjax.train.checkpoints.resume import ResumePoint, refuse_damage
from tests.support.processes import complete_saves, contents, records, torn_saves
from tests.support.tiny_state import tiny_state

LATEST = ["--resume-from-checkpoint", "latest"]


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of a finished run with checkpoints 2 and 4."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip_a_bit(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[min(int(at * len(content)), len(content) - 1)] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (flip_a_bit, "contents differ from its checksum"),
    "the first bit": (lambda path: flip_a_bit(path, 0), "contents differ from its checksum"),
    "the last byte": (lambda path: flip_a_bit(path, 1), "contents differ from its checksum"),
    "cut": (cut, r"[\d,]+ bytes instead of [\d,]+"),
    "longer": (lengthen, r"[\d,]+ bytes instead of [\d,]+"),
    "empty": (lambda path: path.write_bytes(b""), r"0 bytes instead of [\d,]+"),
    "gone": (Path.unlink, "missing"),
    "a folder": (become_a_folder, "missing"),
}


OF_THE_LIST = r"missing|it does not have its own checksum|cannot be read \(Is a directory\)"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_named_and_the_newest_undamaged_checkpoint_offered(damage, run):
    point = ResumePoint(run / "checkpoints", 4)
    refuse_damage(point)
    folder = run / "checkpoints" / "4"
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert {"run/metadata", "iterator/metadata", "metrics.jsonl", "evaluation.jsonl", CHECKSUMS} < set(names)
    assert sum(name.startswith("state/") for name in names) > 4
    inflict, said = DAMAGES[damage]
    for name in names:
        backup = (folder / name).read_bytes()
        if not backup:
            continue
        inflict(folder / name)
        said_of_it = OF_THE_LIST if name == CHECKSUMS else said
        line = rf"checkpoint 4 in {run} is damaged \({re.escape(name)}: ({said_of_it})\); "
        line += rf"the newest undamaged one is 2: --resume-from-checkpoint {run}/checkpoints/2"
        with pytest.raises(InputError) as caught:
            refuse_damage(point)
        assert re.fullmatch(line, str(caught.value))
        if (folder / name).is_dir():
            (folder / name).rmdir()
        (folder / name).write_bytes(backup)
    refuse_damage(point)


def test_every_bit_of_the_list_of_checksums_counts(tmp_path):
    (tmp_path / "a").write_text("one")
    write_checksums(tmp_path)
    path = tmp_path / CHECKSUMS
    content = path.read_bytes()
    for byte in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:byte] + bytes([content[byte] ^ 1 << bit]) + content[byte + 1 :])
            assert find_damage(tmp_path) == f"{CHECKSUMS}: it does not have its own checksum"


def test_an_additional_file_is_damage(run):
    (run / "checkpoints" / "4" / "state" / "d" / "more").write_text("")
    with pytest.raises(InputError, match=r"is damaged \(state/d/more: unexpected file\)"):
        refuse_damage(ResumePoint(run / "checkpoints", 4))


@pytest.mark.parametrize("spoil", [None, "adapter"])
def test_the_offered_command_resumes_and_nothing_is_lost(spoil, run, finished, capsys):
    [largest] = sorted((run / "checkpoints" / "4" / "state").rglob("*"), key=lambda path: path.stat().st_size)[-1:]
    flip_a_bit(largest)
    damaged = contents(run / "checkpoints" / "4")
    before = contents(run)
    assert main([*LATEST, "--output-dir", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: checkpoint 4 in ")
    assert contents(run) == before
    offered = said.strip().rpartition(": ")[2].split()
    if spoil is None:
        shutil.rmtree(run / "adapter")
    assert main(offered) == 0
    output = capsys.readouterr().err
    assert f"checkpoint 4 is damaged; it is now {run}/checkpoints/4.damaged\n" in output
    assert contents(run / "checkpoints" / "4.damaged") == damaged
    assert complete_saves(run / "checkpoints") == [2, 4]
    assert records(run) == records(finished)
    assert (run / "adapter.step-4").exists() == (spoil == "adapter")


def test_an_undamaged_newer_checkpoint_is_not_skipped(run, capsys):
    assert main(["--resume-from-checkpoint", str(run / "checkpoints" / "2")]) == 2
    assert "has checkpoint 4, which resuming from" in capsys.readouterr().err


def test_no_undamaged_checkpoint(run, capsys):
    for step in "24":
        flip_a_bit(run / "checkpoints" / step / "iterator" / "metadata")
    before = contents(run)
    assert main([*LATEST, "--output-dir", str(run)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("no undamaged one is left; start again with another --output-dir")
    assert contents(run) == before


def test_an_older_format_is_refused(run, capsys):
    for step in "24":
        folder = run / "checkpoints" / step
        description = json.loads((folder / "run" / "metadata").read_bytes())
        assert description.pop("format") == FORMAT
        (folder / "run" / "metadata").write_text(json.dumps(description))
        (folder / CHECKSUMS).unlink()
    assert main([*LATEST, "--output-dir", str(run)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: checkpoint {run}/checkpoints/4 has format 1, but this lcjax reads format {FORMAT}; resume with the "
        "lcjax that wrote it, or start again with another --output-dir"
    )


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from lcjax.train.checkpoints import checkpoint
from tests.support.tiny_state import tiny_state

def kill_before(module, name):
    setattr(module, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))

def save_twice(moment):
    checkpoints = checkpoint.Checkpoints(Path(sys.argv[1], moment), keep=1)
    checkpoints.save(1, tiny_state(), {}, {"format": 2})
    if moment == "checksums":
        kill_before(checkpoint, "write_checksums")
    if moment == "rename":
        kill_before(Path, "rename")
    if moment == "removal":
        kill_before(checkpoint.shutil, "rmtree")
    checkpoints.save(2, tiny_state(), {}, {"format": 2})

for moment in sys.argv[2:]:
    child = os.fork()  # before JAX starts its threads
    if child == 0:
        save_twice(moment)
        os._exit(0)
    print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def killed_saves(tmp_path_factory) -> Path:
    """The folder of checkpoints of three processes, killed at the moments that name the folders."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    moments = ["checksums", "rename", "removal"]
    command = [sys.executable, "-c", KILLED_AT, str(folder), *moments]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [f"{moment} {-signal.SIGKILL}" for moment in moments], ended.stderr
    return folder


@pytest.mark.parametrize(("moment", "complete"), [("checksums", [1]), ("rename", [1]), ("removal", [2])])
def test_a_kill_at_any_moment_of_a_save_leaves_complete_checkpoints(moment, complete, killed_saves):
    folder = killed_saves / moment
    assert len(torn_saves(folder)) == 1
    reopened = Checkpoints(folder)
    assert reopened.steps() == complete
    assert [reopened.damage(step) for step in complete] == [None]
    assert len(torn_saves(folder)) == 1  # readers remove nothing
    assert Checkpoints(folder, keep=1).steps() == complete
    assert torn_saves(folder) == []


def test_the_newest_checkpoints_survive(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 5, 10):
        checkpoints.save(step, tiny_state(), {"at": step}, {"format": FORMAT})
    assert checkpoints.steps() == [5, 10]
    assert checkpoints.latest(before=10) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "5"]
    state, iterator = checkpoints.restore(10, tiny_state())
    assert iterator == {"at": 10}
    assert state.trainable["a"].tolist() == [0, 1, 2]
