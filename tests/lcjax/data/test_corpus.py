"""The commands `lcjax tokens` and `lcjax audit`."""

import json
import re
import shutil

import pytest
from rich.console import Console

from lcjax.audit.__main__ import main as audit
from lcjax.audit.figures import audit as audit_figures
from lcjax.audit.report import reuse_table
from lcjax.data import stdlib_sources
from lcjax.data.arguments import CorpusArguments
from lcjax.data.corpus import load
from lcjax.tokens.__main__ import main as tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for path in stdlib_sources():
        if path.name in ("argparse.py", "typing.py", "ast.py", "abc.py"):
            shutil.copy(path, folder / f"{path.parent.name}-{path.name}")
    (folder / "chat.jsonl").write_text('{"prompt": "2+2?", "completion": " 4"}\nbad\n')
    return folder


def test_tokens(folder, tmp_path, capsys):
    json_path, picture = tmp_path / "t.json", tmp_path / "t.png"
    assert tokens([str(folder), "--max-seq-length", "4096", "--json", str(json_path), "--plot", str(picture)]) == 0
    captured = capsys.readouterr()
    found = json.loads(json_path.read_text())
    assert (
        f"{found['documents']:,} documents, {found['tokens']:,} tokens, {found['learned']:,} of them with a loss"
        in captured.out
    )
    assert "-argparse.py" in captured.out
    assert re.search(r"windows *│ *\d+ │", captured.out)
    documents = found["documents"]
    skipped = f"warning: skipped 1 bad records of {documents + 1} of {folder}: {folder / 'chat.jsonl'}:2 is not JSON"
    assert skipped in captured.err
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_audit(folder, tmp_path, capsys):
    assert audit([str(folder), "--max-seq-length", "16384", "--json", "-", "--plot", str(tmp_path / "a.png")]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [bucket["start"] for bucket in found["reuse"]] == [1024, 2048, 4096, 8192]
    assert all(bucket["share"] > 0.005 for bucket in found["reuse"])
    assert found["advice"]
    assert all(f"- {line}" in captured.err for line in found["advice"])
    assert re.search(r"repeat +. +by chance", captured.err)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_audit_fits_80_columns(folder, capsys):
    figures = audit_figures(
        load(CorpusArguments((str(folder),), max_seq_length=16384), Console(stderr=True)), 16384, 10**6
    )
    Console(width=80).print(reuse_table(figures))
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert "beyond" in shown


@pytest.mark.parametrize(
    ("command", "flags", "expected"),
    [
        (tokens, ["missing.txt"], "missing.txt does not exist; check the path of the data"),
        (tokens, ["x", "--max-seq-length", "1"], "--max-seq-length 1 is out of range"),
        (tokens, ["x", "--json", "no/where.json"], "--json no/where.json: the directory"),
        (audit, ["x", "--documents", "repo"], "--documents='repo' is unknown; did you mean repository"),
        (audit, ["x", "--plot", "no/where.png"], "--plot no/where.png: the directory"),
        (audit, ["x", "--gradient-accumulation-steps", "0"], "--gradient-accumulation-steps 0 is out of range"),
        (audit, [__file__, "--model", "./nowhere"], "./nowhere does not exist; check the path"),
    ],
)
def test_refusals(command, flags, expected, capsys):
    assert command(flags) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    *phases, line = captured.err.splitlines()
    assert line.startswith(f"error: {expected}")
    assert set(phases) <= {"reading the data"}
