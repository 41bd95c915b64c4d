"""The parity harness: its verdicts, a slice of the matrix, and bugs that it must find."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import parity
from lcjax_scripts.paths import python_path
from lcjax_scripts.verify import cases
from lcjax_scripts.verify.inputs import digest, make_inputs
from lcjax_scripts.verify.mutants import MUTANTS
from lcjax_scripts.verify.parity import harness
from lcjax_scripts.verify.parity import sides as sides_of_the_harness
from lcjax_scripts.verify.parity.accuracy import less_accurate, pallas_over_triton
from lcjax_scripts.verify.parity.hunt import caught, mutant_jobs, survivors
from lcjax_scripts.verify.parity.jobs import Job, longest_first
from lcjax_scripts.verify.parity.results import SideResult, load, save
from lcjax_scripts.verify.parity.selection import matrix_jobs, repeated
from lcjax_scripts.verify.parity.verdicts import Case, Verdict, judge

ROPE = cases.RopeShape(5, 2, 1, 8)
JOB = Job("job", "a rope", ROPE)


@pytest.fixture
def one_process_a_side(monkeypatch):
    """As on a machine with one core. Starting a process takes longer than a small shape."""
    monkeypatch.setattr(sides_of_the_harness.os, "sched_getaffinity", lambda pid: {0})


def test_a_slice_of_the_matrix(tmp_path, capsys):
    files = {name: tmp_path / f"report.{name}" for name in ("json", "html")}
    shapes = ["gqa 1", "bfloat16 d96 gqa8 x1", "rope float32 d20"]
    flags = itertools.chain.from_iterable((f"--{name}", str(path)) for name, path in files.items())
    assert parity.main(["--shapes", *shapes, *flags]) == 0
    report = json.loads(files["json"].read_text())
    names = {result["name"] for result in report["results"]}
    assert names == {name for name in cases.default_matrix() if any(part in name for part in shapes)}
    assert report["cases"] == len(report["results"]) == sum(len(cases.default_matrix()[name].tensors) for name in names)
    assert report["failed"] == 0
    assert set(report["implementations"]) >= {"pallas", "xla", "triton", "sdpa"}
    for result in report["results"]:
        assert {"pallas", "xla", "triton"} <= result["verdicts"].keys()
        assert all(0 <= verdict["ratio"] <= 1 for verdict in result["verdicts"].values())
    assert any(verdict["ratio"] > 0.01 for result in report["results"] for verdict in result["verdicts"].values())
    assert report["pallas_over_triton"].keys() == {"attention float16", "attention bfloat16", "rope float32"}
    page = files["html"].read_text()
    assert "http" not in page
    assert all(json.dumps(name) in page for name in names)
    out = capsys.readouterr().out
    assert f"{report['cases']} cases" in out
    assert ("mosaic" in report["implementations"]) != ("mosaic has no case: needs a Hopper GPU, or the" in out)


def test_the_repeated_shape_is_what_is_run():
    few = cases.AttentionShape(5, 2, 1, 64, keys=9)
    [job] = repeated([Job("job", "few rows", few)], 512)
    assert isinstance(job.shape, cases.AttentionShape)
    assert job.shape.batch == 52
    fewest = dataclasses.replace(few, tokens=1)
    on_a_cpu = repeated([dataclasses.replace(job, shape=x) for x in (few, fewest)], full=True)
    assert [job.shape for job in on_a_cpu] == [
        dataclasses.replace(few, batch=100),
        dataclasses.replace(fewest, batch=128),
    ]


@pytest.mark.slow
def test_a_repeated_shape_runs():
    [job] = repeated([Job("job", "few rows", cases.AttentionShape(5, 2, 1, 64, keys=9))], 512)
    [(_, judged)] = harness.run([job])
    assert all(not case.failed and {"pallas", "xla", "triton"} <= case.verdicts.keys() for case in judged)


def test_the_longest_shapes_start_first():
    jobs = [Job(f"shape{n}", name, shape) for n, (name, shape) in enumerate(cases.full_matrix().items())]
    ordered = longest_first(jobs)
    assert sorted(ordered, key=jobs.index) == jobs
    first, second, *_, last = ordered
    assert (first.name, second.name) == ("SmolLM2", "attention float16 d256 gqa3 x4097 packed")
    assert (last.shape.operation, last.shape.tokens) == ("rope", 1)


@pytest.mark.usefixtures("one_process_a_side")
def test_a_failing_case_is_the_exit_code(tmp_path, capsys):
    path = tmp_path / "report.json"
    assert parity.main(["--shapes", "gqa 1", "--plant", "missing scale", "--json", str(path)]) == 1
    report = json.loads(path.read_text())
    assert report["failed"] == report["cases"] == 5
    assert "pallas failed: gqa 1" in capsys.readouterr().out


@pytest.mark.usefixtures("one_process_a_side")
def test_an_interrupted_run_reports_what_it_has_judged(tmp_path, capsys, monkeypatch):
    def interrupted_after_two(*args, **options):
        yield from itertools.islice(run_jobs(*args, **options), 2)
        raise KeyboardInterrupt

    run_jobs = harness.run_jobs
    monkeypatch.setattr(harness, "run_jobs", interrupted_after_two)
    path = tmp_path / "report.json"
    assert parity.main(["--shapes", "rope float32 d20", "rope yarn", "--json", str(path)]) == 130
    report = json.loads(path.read_text())
    assert 2 == report["shapes_judged"] < report["shapes"]
    assert report["cases"] == 2 * len(ROPE.tensors)
    said = capsys.readouterr()
    assert "8 cases" in said.out
    assert f"interrupted: 2 of {report['shapes']} shapes are judged" in said.err


def test_the_sides_end_with_their_parent():
    """A parent that is killed cannot stop them."""
    # On one core, it starts one process of each side.
    program = "import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); import parity; sys.exit(parity.main(None))"
    command = [sys.executable, "-c", program, "--shapes", "attention float32"]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        assert becomes(lambda: len(children.read_text().split()) > 1)
        sides = [Path(f"/proc/{pid}") for pid in children.read_text().split()]
        process.kill()
    assert becomes(lambda: not any(side.exists() for side in sides))


def becomes(true: Callable[[], bool], seconds: float = 60) -> bool:
    """Returns whether the condition becomes true within the given time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.usefixtures("one_process_a_side")
def test_planted_bugs_are_caught():
    _, planted = mutant_jobs()
    wanted = [job for job in planted if job.mutant in ("phase off by 0.01", "int32 wrap of offset")]
    found = caught([(job, cases) for job, cases in harness.run(wanted)])
    assert survivors(found) == []
    assert {name for name, ratio in found["phase off by 0.01"].items() if ratio} == {"pallas", "xla", "triton"}
    assert {name for name, ratio in found["int32 wrap of offset"].items() if ratio} >= {"pallas", "xla", "triton"}


@pytest.mark.slow
def test_every_planted_bug_is_caught(capsys):
    assert parity.main(["--mutants"]) == 0
    assert f"{len(MUTANTS)} mutants, 0 survived" in capsys.readouterr().out


@pytest.mark.slow
def test_the_model(capsys):
    assert parity.main(["--shapes", "SmolLM2"]) == 0
    assert "2 cases, 4 verdicts, 0 failed" in capsys.readouterr().out


def test_parts_are_the_whole():
    for matrix in (cases.default_matrix(), cases.full_matrix()):
        whole = matrix_jobs(matrix)
        parts = [matrix_jobs(matrix, part=f"{k}/7") for k in range(1, 8)]
        assert sorted(job.name for part in parts for job in part) == sorted(job.name for job in whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.usefixtures("one_process_a_side")
def test_long_shapes_are_judged_on_samples_of_rows(capsys, monkeypatch):
    small = {
        "full attention": cases.LongShape(300, 2, 1, 64),
        "a window": cases.LongShape(300, 1, 1, 64, window=100),
        "rope": cases.LongShape(300, 2, 1, 64, of="rope"),
    }
    monkeypatch.setattr(cases, "long_matrix", lambda: small)
    assert parity.main(["--long"]) == 0
    assert "14 cases, 42 verdicts, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--shapes", "no such shape"], "no shape's name contains that"),
        (["--plant", "a bug"], "'a bug' is unknown; use one of phase off by 0.01"),
        (["--mutants", "--full"], "omit --full"),
        (["--long", "--full"], "omit --full"),
        (["--part", "0/3"], "--part '0/3' is not understood; use K/N with K from 1 to N"),
        (["--part", "4/3"], "--part '4/3' is not understood"),
        (["--part", "half"], "--part 'half' is not understood"),
        (["--jax-python", "no/such/python"], "--jax-python no/such/python is not a file; use e.g. .venv-newest"),
        (["--rows", "0"], "--rows 0 must be at least 1"),
        (["--json", "no/such/folder/report.json"], "the directory no/such/folder does not exist"),
    ],
)
def test_bad_arguments_are_refused(flags, words, capsys):
    assert parity.main(flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_mutants_change_their_inputs():
    for mutant in MUTANTS.values():
        for name, shape in mutant.shapes.items():
            arrays, options = make_inputs(name, shape)
            planted, other_options = mutant.plant(dict(arrays), dict(options))
            assert digest(planted) != digest(arrays) or other_options != options
            assert planted.keys() == arrays.keys()
            for key, array in arrays.items():
                assert (planted[key].shape, planted[key].dtype) == (array.shape, array.dtype)


def exact_outcome(job: Job) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {tensor: rng.normal(size=(1, 5, 2, 8)) for tensor in job.shape.tensors}


def sides(job: Job, error: float = 1e-6, **others) -> list[SideResult]:
    """Returns both sides of a job. Every element of its plain reference is off by `error`."""
    exact = exact_outcome(job)
    plain = {name: x + error for name, x in exact.items()}
    torch_side = {"exact": exact, "plain": plain, "triton": plain}
    return [SideResult("same", {"pallas": plain} | others, {}), SideResult("same", torch_side, {"sdpa": "why"})]


def test_verdicts():
    judged = judge(JOB, sides(JOB))
    assert [case.tensor for case in judged] == ["q", "k", "dq", "dk"]
    for case in judged:
        assert (case.operation, case.dtype, case.head_dim, case.gqa_ratio, case.length) == ("rope", "float32", 8, 2, 5)
        assert case.verdicts.keys() == {"pallas", "triton"}
        assert case.refused == {"sdpa": "why"}
        assert not case.failed
        assert case.verdicts["pallas"].ratio == pytest.approx(0.5, abs=0.1)


def test_verdicts_that_fail():
    exact = exact_outcome(JOB)
    off = {name: x + 1e-5 for name, x in exact.items()}
    assert all(case.failed for case in judge(JOB, sides(JOB, xla=off)))
    assert all(case.verdicts["sdpa"].failed and not case.failed for case in judge(JOB, sides(JOB, sdpa=off)))
    for wrong in (np.full_like(exact["dk"], np.nan), exact["dk"][:, 1:]):
        judged = judge(JOB, sides(JOB, xla=exact | {"dk": wrong}))
        assert [case.failed for case in judged] == [False, False, False, True]
    died = judge(JOB, sides(JOB, xla="RuntimeError: no"))
    assert all(case.failed and case.verdicts["xla"].fault == "RuntimeError: no" for case in died)


def test_sides_with_different_inputs_are_no_case():
    jax_side, torch_side = sides(JOB)
    with pytest.raises(AssertionError, match="drew different inputs"):
        judge(JOB, [jax_side, dataclasses.replace(torch_side, digest="other")])


def test_the_lse_of_a_query_without_keys():
    """It must be -inf in every implementation, and no other lse may be -inf."""
    job = Job("job", "an attention", cases.AttentionShape(5, 2, 1, 8))
    exact = exact_outcome(job) | {"lse": np.array([[[-np.inf, 1.0], [2.0, 3.0]]])}
    references = SideResult("same", {"exact": exact, "plain": exact}, {})

    def lse(values: list[float]) -> Verdict:
        mine = {"lse": np.array(values, np.float32).reshape(1, 2, 2)}
        return judge(job, [SideResult("same", {"xla": mine}, {}), references])[1].verdicts["xla"]

    assert lse([-math.inf, 1, 2, 3]).ratio == 0
    assert lse([-1e30, 1, 2, 3]).ratio == math.inf
    assert lse([-math.inf, 1, 2, -math.inf]).ratio == math.inf
    assert lse([-math.inf, 1, 2, 3.1]).failed


def case_of(pallas: float, triton: float, operation: str = "rope") -> Case:
    verdicts = {"pallas": Verdict(0.0, pallas), "triton": Verdict(0.0, triton)}
    return Case("a case", operation, "float32", 64, 1, 5, (), "q", verdicts, {})


def test_pallas_against_triton():
    alike = [case_of(0.3, 0.4), case_of(0.4, 0.3)]
    assert pallas_over_triton(alike) == pytest.approx({"rope float32": 1.0})
    worse = [case_of(0.56, 0.5, "attention"), case_of(0.5, 0.5)]
    assert pallas_over_triton(worse) == pytest.approx({"attention float32": 1.12, "rope float32": 1.0})
    assert list(less_accurate(worse)) == ["attention float32"]
    assert less_accurate([case_of(math.inf, 0.5)])
    assert pallas_over_triton([case_of(0, 0)]) == {"rope float32": 1.0}
    assert pallas_over_triton([]) == {}


def test_survivors():
    job = dataclasses.replace(JOB, mutant="swapped halves")
    found = caught([(job, [case_of(0.9, 3.0)]), (job, [case_of(7.0, 2.0)])])
    assert found == {"swapped halves": {"pallas": 0.9, "triton": 2.0}}
    assert survivors(found) == ["swapped halves survived in pallas at 0.9"]
    died = dataclasses.replace(case_of(0, 0), verdicts={"xla": Verdict(math.inf, math.inf, "died")})
    assert survivors(caught([(job, [died])])) == ["swapped halves survived in xla at 0"]
    refusing = dataclasses.replace(case_of(0, 0), verdicts={}, refused={"cudnn": "no"})
    assert caught([(job, [refusing])]) == {"swapped halves": {"cudnn": None}}
    assert survivors({"swapped halves": {"cudnn": None}}) == []


def test_results_survive_their_file(tmp_path):
    result = SideResult("abc", {"xla": {"out": np.arange(3.0)}, "pallas": "died"}, {"cudnn": "no GPU"})
    save(result, tmp_path / "x.npz")
    loaded = load(tmp_path / "x.npz")
    assert (loaded.digest, loaded.refused, loaded.outcomes["pallas"]) == ("abc", {"cudnn": "no GPU"}, "died")
    np.testing.assert_array_equal(loaded.outcomes["xla"]["out"], np.arange(3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_a_matrix_in_which_pallas_is_less_accurate_fails(monkeypatch, capsys):
    monkeypatch.setattr(harness, "run", lambda jobs, **options: [(job, [case_of(0.6, 0.5)]) for job in jobs])
    assert parity.main([]) == 1
    assert "Pallas is less accurate than Triton, 1.20: rope float32" in capsys.readouterr().out
    assert parity.main(["--shapes", "rope"]) == 0  # not checked for a part of the matrix
    monkeypatch.setattr(harness, "run", lambda jobs, **options: [(job, [case_of(0.5, 0.5)]) for job in jobs])
    assert parity.main([]) == 0
