"""The command of the codegen report: its output and exit codes."""

from __future__ import annotations

import functools
import json

import pytest

import kernel_report
from lcjax_scripts.codegen import budgets
from lcjax_scripts.codegen.compiled import HEAD_DIMS, KERNELS
from lcjax_scripts.codegen.report import compile_all
from lcjax_scripts.codegen.triton_process import triton_process
from tests.support.thin import thinned


@functools.cache
def compiled_once(gpu, head_dims, dtype, kernels):
    return compile_all(gpu, head_dims, dtype, kernels)


@pytest.fixture
def compiles_once(monkeypatch):
    """The command reports kernels that another test here compiled, if there are such."""
    monkeypatch.setattr(kernel_report, "compile_all", compiled_once)


@pytest.fixture
def budget_file(tmp_path, monkeypatch):
    """A copy of the checked-in budgets that a test may change."""
    path = tmp_path / "budgets.json"
    path.write_text(budgets.PATH.read_text())
    monkeypatch.setattr(budgets, "PATH", path)
    return path


def spoil(path, key: str, **limits) -> None:
    sections = json.loads(path.read_text())
    sections["h100-80gb"][key] |= limits
    path.write_text(json.dumps(sections))


ROPE = ["--gpu", "h100-80gb", "--kernel", "rope", "--head-dim", "64"]


@pytest.mark.usefixtures("compiles_once")
def test_pallas_and_triton_are_reported(tmp_path, capsys):
    figures = tmp_path / "figures.json"
    assert kernel_report.main([*ROPE, "--json", str(figures)]) == 0
    written = json.loads(figures.read_text())
    assert written["gpu"] == "h100-80gb"
    assert "jax " in written["versions"]
    assert [(row["kernel"], row["implementation"]) for row in written["kernels"]] == [
        ("rope", "pallas"),
        ("rope", "triton"),
    ]
    assert all(row["registers"] > 0 and row["wide"] > 0 for row in written["kernels"])
    assert written["over_budget"] == {}
    printed = capsys.readouterr().out
    assert printed.count("rope") == 1  # a kernel is named once, in its first row
    assert "kernels 2, with a budget 2, over it 0" in printed


@pytest.mark.usefixtures("compiles_once")
def test_a_kernel_over_its_budget_fails(budget_file, capsys):
    spoil(budget_file, "rope 64 bfloat16 pallas", registers=8, narrow=0)
    assert kernel_report.main(ROPE) == 1
    assert "over budget: rope 64 bfloat16 pallas: registers " in capsys.readouterr().out


@pytest.mark.usefixtures("compiles_once")
def test_a_kernel_without_a_budget_fails(budget_file, capsys):
    sections = json.loads(budget_file.read_text())
    del sections["h100-80gb"]["rope 64 bfloat16 pallas"]
    budget_file.write_text(json.dumps(sections))
    assert kernel_report.main(ROPE) == 1
    assert "over budget: rope 64 bfloat16 pallas: has no budget" in capsys.readouterr().out


@pytest.mark.parametrize(
    "other", thinned([["--dtype", "float32"], ["--gpu", "a100-80gb"]], lambda flags: flags[0] == "--gpu")
)
def test_other_dtypes_and_gpus_have_no_budgets(other, capsys):
    assert kernel_report.main([*ROPE, *other]) == 0
    assert "kernels 2, with a budget 0, over it 0" in capsys.readouterr().out


def test_budgets_cover_every_kernel():
    keys = {tuple(key.split()) for key in budgets.read("h100-80gb")}
    everything = {
        (kernel, str(head_dim), "bfloat16", implementation)
        for kernel in KERNELS
        for head_dim in HEAD_DIMS
        for implementation in ("pallas", "triton")
        if kernel != "attention_backward"
    }
    everything |= {
        (kernel, head_dim, "bfloat16", "mosaic")
        for kernel in ("attention_forward", "attention_backward")
        for head_dim in ("64", "128")
    }
    assert keys == everything


def test_new_budgets_are_those_of_what_is_compiled_now(budget_file, monkeypatch, capsys):
    spoil(budget_file, "rope 64 bfloat16 pallas", registers=8)
    rows = compiled_once("h100-80gb", (64,), "bfloat16", ("rope",))
    [row] = [row for row in rows if row[0].implementation == "pallas"]
    monkeypatch.setattr(kernel_report, "compile_all", lambda *arguments: [row])
    assert kernel_report.main(["--write-budgets"]) == 0
    assert "1 budgets written" in capsys.readouterr().out
    [(key, budget)] = budgets.read("h100-80gb").items()
    assert key == "rope 64 bfloat16 pallas"
    assert row[1].registers <= budget.registers < row[1].registers + 8


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--gpu", "h100"], "gpu='h100' is unknown"),
        (["--json", "/no/such/directory/x.json"], "/no/such/directory does not exist"),
        (["--write-budgets", "--kernel", "rope"], "--write-budgets writes all"),
        (["--head-dim", "72"], "72"),
    ],
)
def test_invalid_arguments_are_refused_at_once(argv, message, capsys, monkeypatch):
    monkeypatch.setattr(kernel_report, "compile_all", None)
    assert kernel_report.main(argv) == 2
    assert message in capsys.readouterr().err


def test_without_triton_its_rows_are_missing_with_a_message(capsys, monkeypatch):
    monkeypatch.setattr("lcjax_scripts.codegen.triton_process.find_spec", lambda name: None)
    assert kernel_report.main(ROPE) == 0
    printed = capsys.readouterr().out
    assert "Triton is not installed" in printed
    assert "kernels 1, with a budget 1, over it 0" in printed
    assert kernel_report.main(["--write-budgets"]) == 2


def test_a_failure_of_tritons_process_is_shown():
    with (
        triton_process("no such gpu", (64,), "bfloat16") as kernels,
        pytest.raises(RuntimeError, match="no such gpu"),
    ):
        kernels()
