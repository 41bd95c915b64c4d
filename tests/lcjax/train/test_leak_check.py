"""The leak check of packed rows: as a command, and before the first step."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import pytest

from lcjax.leak.__main__ import main as leak
from lcjax.model import decoder
from lcjax.train.__main__ import main as train


@pytest.fixture
def leaking(monkeypatch, model_dir, tmp_path) -> list[str]:
    """The flag of a model without segment ids. It has a new name, because programs are cached."""
    attend = decoder.attend
    monkeypatch.setattr(
        decoder,
        "attend",
        lambda q, k, v, context, **options: attend(
            q, k, v, dataclasses.replace(context, segment_ids_BT=jnp.zeros_like(context.segment_ids_BT)), **options
        ),
    )
    (tmp_path / "leaking").symlink_to(model_dir)
    return ["--model", str(tmp_path / "leaking")]


def test_the_command_finds_nothing(model_dir, data_dir, capsys):
    flags = ["--model", str(model_dir), "--data", str(data_dir), "--max-seq-length", "96", "--rows", "2"]
    assert leak(flags) == 0
    out = capsys.readouterr().out
    assert out.startswith("nothing leaks: ")
    assert "documents in 2 rows, each changed separately, left all others unchanged, bit for bit" in out


def test_the_command_finds_a_leak(data_dir, capsys, leaking):
    assert leak([*leaking, "--data", str(data_dir), "--max-seq-length", "96", "--rows", "1"]) == 1
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"packed documents leak: other tokens in {data_dir}/")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--rows", "0"], "--rows 0 is out of range; it must be at least 1"),
        (["--documents", "line"], "--documents='line' is unknown"),
        (["--max-seq-length", "1"], "--max-seq-length 1 is out of range"),
    ],
)
def test_the_command_refuses(model_dir, data_dir, capsys, flags, expected):
    assert leak(["--model", str(model_dir), "--data", str(data_dir), *flags]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {expected}")


def test_the_command_refuses_data_of_one_document(model_dir, data_dir, capsys):
    assert leak(["--model", str(model_dir), "--data", str(data_dir / "00.txt")]) == 2
    assert "error: no row has two documents, so nothing can leak" in capsys.readouterr().err


def test_a_leak_stops_a_run_before_its_first_step(short, data_dir, tmp_path, capsys, leaking):
    assert train([*short, *leaking, "--output-dir", str(tmp_path / "run")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: packed documents leak: other tokens in {data_dir}/")
    assert not (tmp_path / "run/metrics.jsonl").exists()
    once = "--max-steps 1 --save-steps 1 --skip-leak-check".split()
    assert train([*short, *leaking, *once, "--output-dir", str(tmp_path / "skipped")]) == 0
