"""The command line of `lcjax plan`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from lcjax.plan import plot
from lcjax.plan.__main__ import main
from lcjax.plan.compiling import aot
from lcjax.plan.compiling.memory import GIB
from tests.support.compiling import known_kernels
from tests.support.tiny_model import TOKENS

KEYS = {
    "model", "gpu", "max_seq_length", "fits", "device_bytes", "device_argument_bytes", "device_temp_bytes",
    "device_limit_bytes", "host_bytes", "policy",
}  # fmt: skip
OFFLOAD = ("--use-gradient-checkpointing", "offload", "--memory", "none")


@pytest.fixture
def plan(capsys):
    """Runs the command line; returns the exit code, standard output and standard error."""

    def run(*flags: object) -> tuple[int, str, str]:
        code = main([str(flag) for flag in flags])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_real_step_end_to_end(plan, tiny_json):
    # With the length and the rank of other tests of the compiler, their kernels are the same.
    code, out, err = plan("--model", tiny_json, "--max-seq-length", TOKENS, "--lora-r", 8, "--json", "-")
    found = json.loads(out)
    assert code == 0
    assert found.keys() >= KEYS
    assert (found["gpu"], found["max_seq_length"], found["fits"]) == ("h100-80gb", TOKENS, True)
    assert (found["policy"], found["attention"], found["host_bytes"]) == ("none", "pallas", 0)
    assert found["device_limit_bytes"] == 84_978_434_048 - GIB
    assert 0 < found["device_argument_bytes"] + found["device_temp_bytes"] <= found["device_bytes"]
    assert found["kernels"]["attention_forward"] == 1
    assert "2,048 tokens, h100-80gb: fits" in err
    assert "lcjax/model/" in err


def test_several_gpus_and_hosts(plan, tiny_json):
    """All of them share a sequence; each GPU has the whole model."""
    tokens = 16_384  # with these flags, the kernels are those of test_several_gpus.py
    layers = ("--use-gradient-checkpointing", "offload", "--memory", "tile=1024")
    flags = ("--model", tiny_json, "--max-seq-length", tokens, "--lora-r", 8, *layers, "--json", "-")
    code, out, _ = plan(*flags, "--gpus", 4, "--hosts", 2)
    found = json.loads(out)
    assert (code, found["gpus"], found["hosts"], found["local_tokens"]) == (0, 4, 2, tokens // 8)
    assert found["mesh"] == {"data": 1, "ring": 2, "heads": 4, "shard_axes": []}
    batch = 4 * 4 * tokens // 8
    assert found["device_argument_bytes"] == found["weights_bytes"] + found["state_bytes"] + batch


def test_json_into_a_file(plan, tiny_json, tmp_path, compilations):
    path = tmp_path / "plan.json"
    code, out, err = plan("--model", tiny_json, "--max-seq-length", 65_536, "--json", path)
    assert (code, err) == (0, "compilation 1: 65,536 tokens on h100-80gb\n")
    assert json.loads(path.read_text())["host_bytes"] == 262_144 * 65_536
    assert "65,536 tokens, h100-80gb: fits (27.1 GiB of 78.1 GiB on the GPU, 16.0 GiB of pinned host memory)" in out


def test_the_trained_context_is_the_default(plan, tiny_json, compilations):
    assert plan("--model", tiny_json)[0] == 0
    assert compilations == [("h100-80gb", 2048)]


def test_a_terminal_shows_what_is_being_compiled(plan, tiny_json, compilations, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, a terminal
    _, _, err = plan("--model", tiny_json, *OFFLOAD, "--max-seq-length", 65_536, "--json", "-")
    assert re.search(r"compilation 1: 65,536 tokens on h100-80gb", err)


def test_find_max(plan, tiny_json, compilations):
    code, out, err = plan("--model", tiny_json, *OFFLOAD, "--find-max", "--json", "-")
    found = json.loads(out)
    shown = [line for line in err.splitlines() if line.startswith("compilation ")]
    assert re.fullmatch(
        r"compilation \d+: [\d,]+ tokens on h100-80gb \([\d,]+ tokens fit(, [\d,]+ did not)?\)", shown[-1]
    )
    assert (code, found["fits"]) == (0, True)
    assert found["max_seq_length"] == (found["device_limit_bytes"] - 16_000_000_000) // 200_000 // 1024 * 1024


def test_a_plan_that_does_not_fit_lists_remedies(plan, tiny_json, compilations):
    code, out, _ = plan("--model", tiny_json, *OFFLOAD, "--max-seq-length", 500_000)
    assert code == 1
    assert out.splitlines()[-1] == "it would fit with --max-seq-length 338944, or --gpu h200"


def test_another_policy_and_quantized_weights_are_offered(plan, tiny_json, compilations):
    flags = ("--model", tiny_json, "--max-seq-length", 32_768, "--use-gradient-checkpointing", "full")
    code, out, _ = plan(*flags, "--vram-gb", 24)
    assert code == 1
    wanted = "--use-gradient-checkpointing offload, or --quantize nf4, or --max-seq-length 19456, or --gpu a100-40gb"
    assert out.splitlines()[-1] == f"it would fit with {wanted}"


def test_a_plan_without_remedies(plan, tiny_json, compilations):
    code, out, _ = plan("--model", tiny_json, *OFFLOAD, "--max-seq-length", 9000, "--vram-gb", 8, "--host-gb", 0.1)
    assert code == 1
    assert out.splitlines()[-1] == "none of the changes that were tried makes it fit"


def test_too_little_host_memory(plan, tiny_json, compilations):
    code, out, _ = plan("--model", tiny_json, *OFFLOAD, "--max-seq-length", 262_144, "--host-gb", 32)
    assert code == 1
    assert "64.0 GiB of pinned host memory" in out
    assert out.splitlines()[-1] == "it would fit with --max-seq-length 131072"


def test_the_table_of_gpus(plan, tiny_json, compilations):
    code, out, _ = plan("--model", tiny_json, *OFFLOAD, "--table", "--json", "-")
    rows = json.loads(out)["rows"]
    assert code == 0
    assert {row["gpu"] for row in rows} == set(aot.gpu_names())
    lengths = [row["max_seq_length"] for row in rows]
    assert lengths == sorted(lengths)
    assert all(row.keys() >= KEYS for row in rows)
    assert len(compilations) <= 4 * len(rows)


def test_the_plot_shows_the_memory_and_its_limit(plan, tiny_json, tmp_path, compilations, monkeypatch):
    """The areas add up to the step's memory."""
    drawn = []
    monkeypatch.setattr(plot.pyplot, "close", drawn.append)
    path = tmp_path / "memory.png"
    code, out, _ = plan("--model", tiny_json, *OFFLOAD, "--max-seq-length", 65_536, "--plot", path, "--json", "-")
    found = json.loads(out)
    assert code == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert len(compilations) == 5
    [axes] = drawn[0].axes
    highest = max(area.get_paths()[0].vertices[:, 1].max() for area in axes.collections)
    assert highest * GIB == pytest.approx(found["device_bytes"])
    limit, host = axes.lines
    assert limit.get_ydata()[0] * GIB == pytest.approx(found["device_limit_bytes"])
    assert host.get_ydata()[-1] * GIB == pytest.approx(found["host_bytes"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gpu", "h100"), r"--gpu h100 is unknown; did you mean h100-80gb\? use one of .*"),
        (("--model", "llama-3.1-9b"), r"--model llama-3.1-9b is unknown; did you mean llama-3.1-8b .*"),
        (("--max-seq-length", "1"), "--max-seq-length 1 is out of range; it must be from 2 to 2,147,483,647"),
        (("--host-gb", "0"), "--host-gb 0.0 is out of range; it must be positive"),
        (("--host-memory", "abc"), "--host-memory: 'abc' is not a number; see lcjax plan --help"),
        (("--vram-gb", "0.5"), "--vram-gb 0.5 leaves no memory after the margin of 1.0 GiB"),
        (
            ("--find-max", "--max-seq-length", "9"),
            "--find-max searches for the length and --max-seq-length sets it; .*",
        ),
        (("--table", "--find-max"), "--table searches every GPU; remove .*"),
        (
            ("--lora-r", "0", "--target-modules", "q_proj", "v_proj"),
            "--target-modules q_proj v_proj and --lora-r 0 contradict each other: .*; omit one of them",
        ),
        (("--json", "no/such/folder.json"), ".*the directory .* does not exist"),
        (
            ("--use-gradient-checkpointing", "full", "--max-seq-length", "40000"),
            ".*above 32,768 tokens use 'offload'.*",
        ),
    ],
)
def test_bad_input_is_one_line(plan, tiny_json, compilations, flags, message):
    code, out, err = plan("--model", tiny_json, *flags)
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    assert re.fullmatch(f"error: {message}", line)


def test_an_error_says_how_to_install_the_compiler(plan, tiny_json, monkeypatch):
    def unknown_platform(**_):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(aot.topologies, "get_topology_desc", unknown_platform)
    monkeypatch.setattr(aot, "find_spec", lambda name: None)
    code, _, err = plan("--model", tiny_json)
    assert code == 2
    assert "pip install --no-deps jax-cuda13-plugin==" in err
    assert len(err.splitlines()) == 1


def test_an_8b_at_131072_tokens_in_a_process_of_its_own(tmp_path):
    """A real plan; XLA's log, which warns of such lengths, is not shown.

    As `offload_attn` saves attention's outputs, the backward pass does not run its forward kernel.
    """
    command = "-m lcjax.plan --model llama-3.1-8b --max-seq-length 131072 --lora-r 32 --json".split()
    with known_kernels() as kernels:
        done = subprocess.run(
            [sys.executable, *command, "-"],
            env={**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_kernel_cache_file={kernels}"},
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
    found = json.loads(done.stdout)
    assert (done.returncode, found["fits"]) == (0, True)
    # Every layer's input and attention output, and float32 log-sum-exps.
    assert found["policy"] == "offload_attn"
    assert found["host_bytes"] == 32 * 131_072 * (2 * 4096 * 2 + 32 * 4)
    adapter = 3 * 4 * 83_886_080 + 20
    assert found["device_argument_bytes"] == 2 * 8_030_261_248 + adapter + 4 * 4 * 131_072
    assert found["kernels"] == {"attention_forward": 1, "attention_dq": 1, "attention_dkv": 1, "rope": 3}
    assert "131,072 tokens, h100-80gb: fits" in done.stderr
    assert not re.search(r"\.cc:\d+\]", done.stderr)


def test_one_estimate_of_the_step_is_shown(plan, tiny_json, compilations):
    code, out, _ = plan("--model", tiny_json, "--max-seq-length", 32_768)
    [step] = [line for line in out.splitlines() if re.search(r"\bstep\b.*estimated", line)]
    [chosen] = [line for line in out.splitlines() if "chosen" in line]
    seconds = re.search(r"\bstep\W+([\d.]+ \w+)", step)
    assert code == 0
    assert seconds is not None
    assert seconds[1] in chosen
