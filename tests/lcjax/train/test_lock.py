"""One run per output directory at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

import lcjax
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.train.__main__ import main
from lcjax.train.checkpoints.folder import open_run_folder
from lcjax.train.checkpoints.lock import LOCK, locked
from tests.support.processes import contents


def test_a_second_run_is_refused_and_changes_nothing(finished, short, capsys):
    with locked(finished):
        before = contents(finished)
        for flags in (short, ["--resume-from-checkpoint", "latest"]):
            assert main([*flags, "--output-dir", str(finished)]) == 2
            line = rf"error: {finished} is in use by another run \(process {os.getpid()} on \S+ since .*\); wait until it ends, "
            assert re.fullmatch(line + "or choose another --output-dir\n", capsys.readouterr().err)
        assert contents(finished) == before
    assert not (finished / LOCK).exists()


def test_a_second_call_from_python_is_refused(model_dir, data_dir, tmp_path):
    model, tokenizer = lcjax.from_pretrained(str(model_dir), 48)
    with locked(tmp_path), pytest.raises(InputError, match="is in use by another run"):
        lcjax.train(lcjax.get_peft_model(model, r=2), tokenizer, [data_dir], output_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_one_of_two_simultaneous_runs_gets_the_folder(tmp_path):
    started, opened, refusals = threading.Barrier(2), threading.Barrier(2), []

    def open_folder(path):
        started.wait()
        try:
            with open_run_folder(path, TrainingArguments(output_dir=path)):
                opened.wait()
        except InputError as error:
            refusals.append(str(error))
            opened.wait()

    for number in range(50):
        threads = [threading.Thread(target=open_folder, args=[tmp_path / str(number) / "run"]) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(refusals) == 50
    assert all("is in use by another run" in refusal for refusal in refusals)


HOLDER = """
import pathlib, sys, time
from lcjax.train.checkpoints.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print(1, flush=True)
    time.sleep(600)
"""


def test_a_dead_process_holds_no_lock(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "1\n"
        with pytest.raises(InputError, match=rf"\(process {holder.pid} on "), locked(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_never_two_at_once(tmp_path):
    inside, most, refused = [], [], []

    def work():
        for _ in range(200):
            try:
                with locked(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except InputError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(refused) == 1600


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path):
        pass
    [record] = caplog.records
    assert f"{tmp_path} is on a file system without locks (No locks available)" in record.getMessage()


@pytest.mark.parametrize("content", ["", "\0\0", "[1]", '{"pid": 1}'])
def test_a_lock_without_content_still_holds(content, tmp_path):
    with locked(tmp_path):
        (tmp_path / LOCK).write_text(content)
        with pytest.raises(InputError, match="it has not identified itself"), locked(tmp_path):
            pass
