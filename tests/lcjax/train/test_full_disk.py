"""A full disk gives one line and exit code 2, and the run can be resumed when there is space.

Limits of file sizes and /dev/full make real writes fail without any privilege.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lcjax.errors import InputError
from lcjax.train.__main__ import main
from lcjax.train.disk import writing
from lcjax.train.reporting.metrics import RunLog
from tests.support.processes import complete_saves, records, torn_saves


def resume_flags(run: Path) -> list[str]:
    return ["--output-dir", str(run), "--resume-from-checkpoint", "latest"]


# Limits of the file size in bytes, such that the named file is the first to exceed the limit when a
# run continues after step 2, or after its last step. The limits have a margin on both sides,
# because the digits of a loss depend on the machine.
LIMITS = {
    "run.yaml": (2000, 2),
    "checkpoints/4": (9000, 2),
    "adapter": (8000, 4),
    "loss.png": (14_000, 4),
}


PROGRESS = r"[\d,]+ |importing|compiling|reading|loading|checking|start: |resumed|measuring|step \d|held-out"


@contextlib.contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Makes writes beyond `limit` bytes fail. Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", LIMITS)
def test_every_file_that_a_run_writes(name, finished, tmp_path, capsys):
    """The run finds its compiled programs, which would not fit either."""
    limit, step = LIMITS[name]
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "adapter")
    if step == 2:
        shutil.rmtree(run / "checkpoints" / "4")
    with file_size_limit(limit):
        code = main(resume_flags(run))
    output = capsys.readouterr().err
    errors = [line for line in output.splitlines() if not re.match(PROGRESS, line)]
    assert code == 2, output
    assert len(errors) == 1, output
    assert re.match(rf"error: {re.escape(str(run / name))} cannot be written \(File too large\)", errors[0])
    assert complete_saves(run / "checkpoints") == ([2] if step == 2 else [2, 4])
    assert main(resume_flags(run)) == 0
    assert records(run) == records(finished)
    assert torn_saves(run / "checkpoints") == []


@pytest.mark.parametrize(("name", "limit", "logging_steps"), [("metrics.jsonl", 390, 100), ("tensorboard", 700, 1)])
def test_records_that_grow_with_every_step(name, limit, logging_steps, tmp_path):
    """In a short run, run.yaml is larger than the records, so they are written here without it."""
    log = RunLog(tmp_path, 0, logging_steps)

    def train():
        for number in range(1, 30):
            log.step({"step": number, "loss": 1.5})
            log.sync()

    said = rf"{tmp_path / name} cannot be written \(File too large\); free disk space"
    with file_size_limit(limit), pytest.raises(InputError, match=said):
        train()
    log.close()


def test_a_device_without_space(finished, tmp_path, capsys):
    """The kernel's own ENOSPC, from /dev/full."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "adapter")
    (run / "loss.png").unlink()
    (run / "loss.png").symlink_to("/dev/full")
    assert main(resume_flags(run)) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith(f"error: {run / 'loss.png'} cannot be written (No space left on device); free disk space, ")
    (run / "loss.png").unlink()
    assert main(resume_flags(run)) == 0
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert records(run) == records(finished)


@dataclasses.dataclass(frozen=True)
class SmallDisk:
    """Shell commands for a folder `disk` that first has 400 KiB and then 8 MiB."""

    make: str
    train: str
    free: str
    enlarge: str
    prefix: tuple[str, ...] = ()


DISKS = {
    "reported": SmallDisk(
        make="export DISK=disk DISK_BYTES=409600",
        train='"$PYTHON" -P "$SMALL_DISK"',
        free='"$PYTHON" -P "$SMALL_DISK" --free',
        enlarge="DISK_BYTES=8388608",
    )
}
# A real file system of that size, where an ordinary user may mount one.
if shutil.which("unshare") and not subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
    DISKS["mounted"] = SmallDisk(
        make="mount -t tmpfs -o size=400k tmpfs disk",
        train='"$PYTHON" -m lcjax.train',
        free="df --output=avail -B1 disk | tail -1",
        enlarge="mount -o remount,size=8m disk",
        prefix=("unshare", "-rm"),
    )
SCRIPT = """
set -e
{make}
{train} "$@" --output-dir disk/run > full.txt 2>&1 || echo $? > full.code
{free} > free.txt
ls disk/run/checkpoints > full.checkpoints
{enlarge}
{train} --output-dir disk/run --resume-from-checkpoint latest > rest.txt 2>&1
cp -r disk/run run
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", DISKS)
def test_a_full_file_system(kind, finished, short, cache, tmp_path):
    disk = DISKS[kind]
    (tmp_path / "disk").mkdir()
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "SMALL_DISK": str(Path(__file__).parents[2] / "support" / "small_disk.py"),
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(cache),
    }
    script = SCRIPT.format(make=disk.make, train=disk.train, free=disk.free, enlarge=disk.enlarge)
    command = [*disk.prefix, "bash", "-c", script, "run", *short]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=600)
    assert (tmp_path / "full.code").read_text() == "2\n"
    *_, last = (tmp_path / "full.txt").read_text().splitlines()
    assert re.match(
        r"error: \S+/disk/run/checkpoints/4 cannot be written \(No space left on device\); free disk space, ", last
    )
    assert "Traceback" not in (tmp_path / "full.txt").read_text()
    assert (tmp_path / "full.checkpoints").read_text() == "2\n"
    # Refused before the disk was full; no partial files.
    assert int((tmp_path / "free.txt").read_text()) > 100_000
    assert records(tmp_path / "run") == records(finished)


def test_only_the_disk_is_blamed(tmp_path):
    with pytest.raises(ValueError, match="a bug") as caught, writing(tmp_path):
        raise ValueError("a bug of ours")
    assert not isinstance(caught.value, InputError)
    with pytest.raises(InputError, match=r"free disk space") as caught, writing(tmp_path):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 7 bytes [os_error_code='28' x='1']")
    with pytest.raises(InputError, match=r"Permission denied\); check the path"), writing(tmp_path):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("a bug of ours")
