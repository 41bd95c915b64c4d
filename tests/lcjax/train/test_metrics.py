"""The records of a run: lines, a picture, and TensorBoard events."""

from __future__ import annotations

import struct
import zlib

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from lcjax.report.records import read_rows
from lcjax.train.reporting.metrics import RECORDS, JsonLines, RunLog, damage_of_record
from lcjax.train.reporting.picture import draw_losses


def test_lines_are_written_one_by_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    for step in (1, 2):
        log.write({"step": step, "loss": 0.1 * step})
        assert path.read_text().count("\n") == step
    log.sync()
    log.close()
    assert path.read_text() == '{"step": 1, "loss": 0.1}\n{"step": 2, "loss": 0.2}\n'
    assert read_rows(path) == log.rows == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}]


@pytest.mark.parametrize("former", [None, b"", b'{"step": 1}\n', b'{"step": 1}\n{"step": 2}\n{"step": 3', b"\0\0\0"])
def test_resuming_restores_the_records_of_the_checkpoint(former, tmp_path):
    path, content = tmp_path / "metrics.jsonl", b'{"step": 1}\n{"step":  2}\n'
    if former is not None:
        path.write_bytes(former)
    log = JsonLines(path, content)
    assert path.read_bytes() == content
    assert log.rows == [{"step": 1}, {"step": 2}]
    log.write({"step": 3})
    log.close()
    assert path.read_bytes() == content + b'{"step": 3}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "torn", ["", '{"step": 4', '{"step": 4, "loss": 1.', "\0\0\0", '"step"', "4", '{"loss": 1.0}', "\n"]
)
def test_incomplete_lines_are_not_rows(torn, tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n' + torn)
    assert read_rows(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (b"one\ntwo\n", None),
        (b"one\ntwo\nthree\nfo", None),
        (None, "was missing"),
        (b"", "was cut short"),
        (b"one\ntw", "was cut short"),
        (b"one\ntwO\nthree\n", "was changed"),
        (b"\xff\0", "was changed"),
    ],
)
def test_a_record_is_compared_with_the_checkpoint(found, said, tmp_path):
    path = tmp_path / "metrics.jsonl"
    if found is not None:
        path.write_bytes(found)
    assert damage_of_record(path, b"one\ntwo\n") == said


def test_a_run_records_its_loss_by_position(finished):
    for row in read_rows(finished / "evaluation.jsonl"):
        assert row["eval_loss_by_position"].keys() == {"0", "16", "32"}
        losses = row["eval_loss_by_position"].values()
        assert min(losses) < row["eval_loss"] < max(losses)


def png_size(content: bytes) -> tuple[int, int]:
    """Returns (width, height) of a PNG, and checks that all of its chunks are intact."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    at, names = 8, []
    while at < len(content):
        length, name = struct.unpack(">I4s", content[at : at + 8])
        assert zlib.crc32(content[at + 4 : at + 8 + length]) == int.from_bytes(
            content[at + 8 + length : at + 12 + length]
        )
        names.append(name)
        at += 12 + length
    assert (names[0], names[-1], at) == (b"IHDR", b"IEND", len(content))
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize("evaluations", [0, 1, 3])
@pytest.mark.parametrize("steps", [0, 1, 50])
def test_the_picture(steps, evaluations, tmp_path):
    path = tmp_path / "loss.png"
    path.write_bytes(b"the former picture")
    rows = [{"step": step, "loss": 6 / (step + 1)} for step in range(1, steps + 1)]
    draw_losses(rows, [{"step": step, "eval_loss": 5.0} for step in range(evaluations)], path)
    assert png_size(path.read_bytes()) == (800, 450)
    assert list(tmp_path.iterdir()) == [path]


def events(folder) -> list[list[Event]]:
    """Returns the events of each file, oldest first, and checks both checksums of every record."""
    files = []
    for path in sorted(folder.iterdir()):
        content, at, found = path.read_bytes(), 0, []
        while at < len(content):
            header = content[at : at + 8]
            (length,) = struct.unpack("Q", header)
            data = content[at + 12 : at + 12 + length]
            assert struct.unpack("I", content[at + 8 : at + 12]) == (masked_crc32c(header),)
            assert struct.unpack("I", content[at + 12 + length : at + 16 + length]) == (masked_crc32c(data),)
            found.append(Event.FromString(data))
            at += 16 + length
        files.append(found)
    return files


def test_the_picture_is_drawn_again_only_for_new_rows(tmp_path):
    log, path = RunLog(tmp_path, after_step=0, logging_steps=2), tmp_path / "loss.png"
    path.write_bytes(b"of the run that is continued")
    log.step({"step": 1, "loss": 1.5, "tokens": 7})
    log.draw()
    assert png_size(path.read_bytes()) == (800, 450)
    path.write_bytes(b"the same rows")
    log.draw()
    assert path.read_bytes() == b"the same rows"
    log.evaluation({"step": 1, "eval_loss": 3.0, "eval_loss_by_position": {}})
    log.draw()
    log.close()
    assert png_size(path.read_bytes()) == (800, 450)


def test_all_records_of_a_run(tmp_path):
    log = RunLog(tmp_path, after_step=0, logging_steps=2)
    log.evaluation({"step": 0, "eval_loss": 3.0, "eval_loss_by_position": {"0": 3.5, "16": 2.5}})
    for step in (1, 2, 3):
        log.step({"step": step, "loss": 1.5, "tokens": 7})
    assert log.evaluated(0)
    assert not log.evaluated(3)
    log.sync()
    assert log.draw() == tmp_path / "loss.png"
    log.close()
    (file,) = events(tmp_path / "tensorboard")
    scalars = [(e.step, v.tag, v.simple_value) for e in file for v in e.summary.value]
    by_position = [(0, "eval/eval_loss_by_position/0", 3.5), (0, "eval/eval_loss_by_position/16", 2.5)]
    of_the_second_step = [(2, "train/loss", 1.5), (2, "train/tokens", 7.0)]
    assert scalars == [(0, "eval/eval_loss", 3.0), *by_position, *of_the_second_step]
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 3

    metrics, evaluation = ((tmp_path / name).read_bytes() for name in RECORDS)
    two_steps = b"".join(metrics.splitlines(keepends=True)[:2])
    records = {"metrics.jsonl": two_steps, "evaluation.jsonl": evaluation}
    log = RunLog(tmp_path, after_step=2, logging_steps=2, records=records)
    assert [row["step"] for row in log.metrics.rows] == [1, 2]
    assert log.evaluated(0)
    log.close()
    starts = [e.step for file in events(tmp_path / "tensorboard") for e in file if e.session_log.status == 1]
    assert sorted(starts) == [0, 3]  # TensorBoard discards its data from step 3 on
