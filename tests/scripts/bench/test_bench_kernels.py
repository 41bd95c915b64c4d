"""The benchmark of kernels: its arithmetic, and a small run."""

from __future__ import annotations

import csv
import dataclasses

import jax
import numpy as np
import pytest

import bench_kernels
from lcjax.pallas.triton.block_sizes import traced_with
from lcjax.plan.compiling.aot import abstract, compile_lowered, gpu_sharding
from lcjax_scripts.bench.kernels import jax_side, runs
from lcjax_scripts.bench.kernels.jobs import BACKWARD, BOTH, FORWARD, Job, Result

SMALL = "--lengths 64 --heads 2 --kv-heads 1 --head-dim 16 --dtype float32 --parts forward --seconds 0.01".split()

# What does not run here, and why.
ABSENT = {
    "mosaic": "InputError: attention='mosaic' runs on Hopper GPUs",
    "sdpa_cudnn": "RuntimeError: No viable backend",
    "tokamax": "ModuleNotFoundError: No module named 'tokamax'",
}


def test_a_run_on_a_cpu(tmp_path, capsys):
    paths = {flag: tmp_path / name for flag, name in (("--csv", "kernels.csv"), ("--plot", "roofline.png"))}
    flags = [str(part) for pair in paths.items() for part in pair]
    assert bench_kernels.main([*SMALL, "--implementations", "xla", *ABSENT, *flags]) == 0
    with paths["--csv"].open(newline="") as file:
        rows = {(row["operation"], row["implementation"]): row for row in csv.DictReader(file)}
    assert set(rows) == {("attention", "xla"), ("rope", "xla"), *(("attention", name) for name in ABSENT)}
    for operation in ("attention", "rope"):
        row = rows[operation, "xla"]
        assert float(row["milliseconds"]) > 0
        assert row["jax"]
        assert not row["error"]
    for name in ABSENT:
        assert rows["attention", name]["error"]
        assert not rows["attention", name]["milliseconds"]
    assert paths["--plot"].stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "│ attention │ forward │ 64     │ xla " in printed
    for name, reason in ABSENT.items():
        assert f"{name} did not run attention forward 64: {reason}" in printed


def test_an_unknown_implementation_is_refused(capsys):
    assert bench_kernels.main([*SMALL, "--implementations", "fa4"]) == 2
    assert "fa4 is unknown; use some of pallas" in capsys.readouterr().err


def test_repetitions_in_one_program(monkeypatch):
    monkeypatch.setattr(jax_side, "REPETITIONS", 3)
    job = Job("attention", BOTH, "xla", 64, 2, 1, 16, "float32")
    function, arguments = jax_side.operation_of(job)
    repetitions = jax_side.repetitions_of(function, False)(*arguments)
    assert len(repetitions) == jax_side.REPETITIONS
    for expected, found in zip(function(*arguments), repetitions[-1], strict=True):
        np.testing.assert_array_equal(expected, found)
    function, arguments = jax_side.operation_of(dataclasses.replace(job, operation="rope", part=FORWARD))
    compiled = jax_side.compile_job(jax_side.repetitions_of(function, True), arguments, True)
    expected = arguments
    for _ in range(jax_side.REPETITIONS):
        expected = function(*expected)
    for one, other in zip(expected, compiled(*jax_side.operation_of(job)[1][:2]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("operation", "part", "kernels"), [("attention", FORWARD, 1), ("attention", BOTH, 3), ("rope", FORWARD, 1)]
)
def test_every_repetition_stays_in_the_compiled_program(operation, part, kernels, monkeypatch):
    monkeypatch.setattr(jax_side, "REPETITIONS", 3)
    with traced_with():
        function, arguments = jax_side.operation_of(Job(operation, part, "pallas", 256, 2, 1, 64, "bfloat16"))
        repeated = jax_side.repetitions_of(function, in_place=operation == "rope")
        lowered = jax.jit(repeated).lower(*abstract(arguments, gpu_sharding("h100-80gb")))
    text = compile_lowered(lowered).as_text() or ""
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == kernels * jax_side.REPETITIONS


def test_a_side_that_dies_fails_only_one_job(monkeypatch):
    jobs = [Job("attention", FORWARD, "xla", tokens, 2, 1, 16, "float32") for tokens in (32, 64)]
    measure = runs.Worker.measure

    def killing(worker, job):
        if job.tokens == 32:
            worker._process.kill()
        return measure(worker, job)

    monkeypatch.setattr(runs.Worker, "measure", killing)
    (dead, _), (alive, provenance) = runs.run(jobs, 0.01)
    assert (dead.job, dead.milliseconds, dead.error) == (jobs[0], None, "its process ended")
    assert alive.job == jobs[1]
    assert alive.milliseconds
    assert provenance["jax"]


def test_a_side_that_cannot_start_is_tried_once(monkeypatch):
    started = []

    class Counted(runs.Worker):
        def __init__(self, side, seconds):
            started.append(side)
            super().__init__(side, seconds)

    monkeypatch.setattr(runs, "Worker", Counted)
    monkeypatch.setattr(runs.sys, "executable", "false")
    jobs = [Job("attention", FORWARD, "xla", tokens, 2, 1, 16, "float32") for tokens in (32, 64)]
    assert [result.error for result, _ in runs.run(jobs, 0.01)] == ["its process ended"] * 2
    assert started == ["jax"]


def test_the_usual_count():
    forward, backward, both = (
        Job("attention", part, "pallas", 16_384, 32, 8, 128, "bfloat16") for part in (FORWARD, BACKWARD, BOTH)
    )
    assert forward.flops == 4 * 16_384**2 * 32 * 128 / 2
    assert backward.flops == 2.5 * forward.flops
    assert both.flops == forward.flops + backward.flops
    assert Result(forward, 4.4, None).tflops == pytest.approx(500, rel=0.01)
    rope = Job("rope", FORWARD, "pallas", 131_072, 32, 8, 128, "bfloat16")
    assert rope.bytes_moved == 2 * 131_072 * 40 * 128 * 2
    assert Result(rope, 1.0, None).terabytes_a_second == pytest.approx(2.68, rel=0.01)
