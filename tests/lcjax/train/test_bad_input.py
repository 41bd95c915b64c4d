"""Invalid inputs give one line with the cause and the remedy, exit code 2, and lose no files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lcjax import weights
from lcjax.train.__main__ import main
from tests.support.processes import SHORT, contents
from tests.support.tiny_llama import random_params

# Progress lines that may come before the error.
PHASE = re.compile(r"loading |reading |checking |start: |[\d,]+ documents|warning: ")


@pytest.fixture
def refused(capsys):
    """Runs the command, which must refuse its input; returns the error line."""

    def run(*flags: str | Path) -> str:
        assert main([str(flag) for flag in flags]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        *before, last = captured.err.splitlines()
        assert all(PHASE.match(line) for line in before), before
        assert last.startswith("error: ")
        return last.removeprefix("error: ")

    return run


def no_file(folder: Path) -> None:
    shutil.rmtree(folder)


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def empty_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def truncated(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 20_000)


def corrupt_header(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[8:40] = os.urandom(32)
    (folder / "model.safetensors").write_bytes(content)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def disguised_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": list(range(1000))}))


def wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = np.ones(31, np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_file, "does not exist; check the path"),
        (empty_folder, "config.json does not exist; a model directory needs a config.json"),
        (no_tokenizer, "has no tokenizer: it needs one of"),
        (truncated, "is truncated or corrupt"),
        (corrupt_header, "is truncated or corrupt"),
        (pickled, "pickles are never opened"),
        (disguised_pickle, "is truncated or corrupt"),
        (wrong_shape, "model.norm.weight"),
        (other_architecture, "hidden_act='gelu'; only silu is supported"),
    ],
)
def test_a_bad_model(damage, said, refused, model_dir, data_dir, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(model_dir, model)
    damage(model)
    line = refused("--model", model, "--data", data_dir, *SHORT, "--output-dir", tmp_path / "run")
    assert said in line
    assert str(model) in line
    assert not (tmp_path / "run").exists()


def test_a_truncated_gguf_file(refused, smollm2, data_dir, tmp_path):
    model = tmp_path / "model.gguf"
    with smollm2.open("rb") as file:
        model.write_bytes(file.read(100_000))
    assert f"{model}" in refused("--model", model, "--data", data_dir, *SHORT, "--output-dir", tmp_path / "run")


def test_a_hub_id_without_a_network(refused, data_dir, tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no server listens there
    line = refused("--model", "nobody/nothing", "--data", data_dir, *SHORT, "--output-dir", tmp_path / "run")
    assert line.startswith("nobody/nothing is not on this disk and cannot be downloaded: ")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.txt", None, "does not exist; check the path of the data"),
        ("binary.txt", b"\x7fELF\0\0\1", "is a binary file; give UTF-8 text files"),
        ("latin1.txt", "Müller".encode("latin-1"), "is not UTF-8"),
        ("empty.txt", b" \n", "are empty; give files that have text"),
        ("alone.txt", b"a", "needs two documents or more, or one long enough text"),
        ("torn.jsonl", b'{"text": ', "torn.jsonl:1 is not JSON"),
        ("other.jsonl", b'{"prompt": "a"}\n', "has no completion (it has prompt)"),
        ("folder", {}, "has no files"),
        ("folder", {"a.bin": b"\0\1\2"}, "has no text among its 1 files"),
    ],
)
def test_bad_data(name, content, said, refused, model_dir, tmp_path):
    path = tmp_path / name
    if isinstance(content, dict):
        path.mkdir()
        for file_name, file_content in content.items():
            (path / file_name).write_bytes(file_content)
    elif content is not None:
        path.write_bytes(content)
    line = refused("--model", model_dir, "--data", path, *SHORT, "--output-dir", tmp_path / "run")
    assert said in line
    assert str(path) in line or "--eval-fraction" in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--max-steps 0", "--max-steps 0 is out of range; give a number from 1 to 2,147,483,647, or -1"),
        ("--max-steps -7", "--max-steps -7 is out of range"),
        ("--num-train-epochs 0", "--num-train-epochs 0.0 is out of range; it must be positive"),
        ("--num-train-epochs inf", "--num-train-epochs inf is out of range"),
        ("--per-device-train-batch-size 0", "--per-device-train-batch-size 0 is out of range; it must be at least 1"),
        ("--gradient-accumulation-steps -1", "--gradient-accumulation-steps -1 is out of range"),
        ("--learning-rate -1e-4", "--learning-rate -0.0001 is out of range; it must be at least 0"),
        ("--learning-rate nan", "--learning-rate nan is out of range"),
        ("--learning-rate inf", "--learning-rate inf is out of range"),
        ("--weight-decay -0.1", "--weight-decay -0.1 is out of range"),
        ("--max-grad-norm -1", "--max-grad-norm -1.0 is out of range"),
        ("--warmup-steps -1", "--warmup-steps -1 is out of range"),
        ("--warmup-ratio 1.5", "--warmup-ratio 1.5 is out of range; it must be between 0 and 1"),
        ("--warmup-steps 5 --warmup-ratio 0.1", "contradict each other; give one"),
        ("--warmup-steps 50 --max-steps 10", "--warmup-steps 50 exceeds --max-steps 10"),
        ("--seed -1", "--seed -1 is out of range"),
        ("--seed 4294967296", "--seed 4294967296 is out of range"),
        ("--eval-fraction 0.95", "--eval-fraction 0.95 is out of range; it must be between 0 and 0.9"),
        ("--eval-batches 0", "--eval-batches 0 is out of range"),
        ("--eval-steps 0", "--eval-steps 0 is out of range"),
        ("--save-steps 0", "--save-steps 0 is out of range"),
        ("--save-total-limit 0", "--save-total-limit 0 is out of range"),
        ("--logging-steps 0", "--logging-steps 0 is out of range"),
        ("--lr-scheduler-type polynomial", "polynomial is unknown; use one of linear, cosine, constant"),
        ("--max-seq-length 1", "--max-seq-length 1 is out of range; it must be from 2 to 2,147,483,647"),
        (
            "--max-seq-length 3000000000",
            "--max-seq-length 3000000000 is out of range; it must be from 2 to 2,147,483,647",
        ),
        ("--max-seq-length 40000 --use-gradient-checkpointing full", "above 32,768 tokens use 'offload'"),
        ("--use-gradient-checkpointing some", "--use-gradient-checkpointing some is unknown; use one of auto, none"),
        ("--attention flash", "--attention flash is unknown; use one of auto, pallas, mosaic, cudnn, fa3, xla"),
        ("--dtype float16", "--dtype float16 is not supported; use float32 or bfloat16"),
        ("--lora-r 0", "--lora-r 0 is no adapter; use --full-finetuning"),
        ("--lora-alpha -2", "--lora-alpha -2.0 must be positive"),
        ("--lora-dropout 1", "--lora-dropout 1.0 must be at least 0 and below 1"),
        ("--target-modules q_proj lm_head", "--target-modules lm_head cannot be adapted, only the linear maps"),
        ("--full-finetuning --lora-r 8", "--full-finetuning and --lora-r contradict each other; omit one"),
        ("--model somewhere", "--model is given without --data; give both, or neither for the demo"),
        ("--data somewhere", "--data is given without --model; give both, or neither for the demo"),
        ("--resume-from-checkpoint latest", "needs the --output-dir of the run to resume"),
        ("--resume-from-checkpoint nowhere", "nowhere does not exist; give a folder such as runs/x/checkpoints/100"),
        ("--output-dir nowhere --resume-from-checkpoint latest", "nowhere has no checkpoint to resume from; start"),
    ],
)
def test_bad_flags(flags, said, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(*flags.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags", ["--max-steps many", "--no-such-flag", "--lora-r", "--learning-rate 1e-3 2e-3", "run"]
)
def test_flags_that_do_not_parse(flags, capsys):
    assert main(flags.split()) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_bad_places_for_the_output(refused, model_dir, data_dir, tmp_path):
    given = ["--model", model_dir, "--data", data_dir, *SHORT, "--output-dir"]
    file = tmp_path / "file"
    file.write_text("here before")
    assert refused(*given, file) == f"--output-dir {file} is a file; give a folder"
    assert refused(*given, file / "run").startswith(
        f"--output-dir {file}/run cannot be created (Not a directory); choose"
    )
    assert refused(*given, "/proc/run").startswith("--output-dir /proc/run cannot be created (")
    # orbax would write checkpoints there, but could not read them.
    assert "has the character [, with which checkpoints cannot be read back" in refused(*given, tmp_path / "run[1]")
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "checkpoints").write_text("here before")
    assert f"{blocked}/checkpoints is a file, where a run makes a folder; move it, or choose another" in refused(
        *given, blocked
    )
    assert contents(tmp_path) == {
        name: hashlib.sha256(b"here before").hexdigest() for name in ("file", "blocked/checkpoints")
    }


@pytest.fixture(scope="module")
def others(model_dir, data_dir, tmp_path_factory):
    """A model with two changed entries, one with more layers, and data with a changed word."""
    folder = tmp_path_factory.mktemp("others")
    tokenizer = weights.load_tokenizer(model_dir)
    config, params, _ = weights.load_model_files(model_dir, jnp.float32)
    up_LOI = params["layers"]["mlp"]["up_proj"]["weight"]
    params["layers"]["mlp"]["up_proj"]["weight"] = up_LOI.at[1, 5, 7].add(1e-3).at[1, 5, 8].add(-1e-3)
    weights.save_checkpoint(folder / "weights", params, config, tokenizer)
    deeper = dataclasses.replace(config, num_hidden_layers=3)
    weights.save_checkpoint(folder / "layers", random_params(deeper), deeper, tokenizer)
    mistral = dataclasses.replace(deeper, model_type="mistral")
    weights.save_checkpoint(folder / "family", random_params(mistral), mistral, tokenizer)
    shutil.copytree(data_dir, folder / "data")
    text = (folder / "data" / "07.txt").read_text()
    (folder / "data" / "07.txt").write_text(text.replace("boats", "ships", 1))
    return folder


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--seed 8", "--seed was 7 and is 8; give the same"),
        ("--lora-r 4", "--lora-r was 2 and is 4; give the same"),
        ("--learning-rate 1", "--learning-rate was 0.0002 and is 1.0; give the same"),
        ("--gradient-accumulation-steps 2", "--gradient-accumulation-steps was 1 and is 2"),
        ("--max-seq-length 32", "--max-seq-length was 48 and is 32"),
        ("--dtype bfloat16", "--dtype was 'float32' and is 'bfloat16'"),
        ("--full-finetuning --lora-r 16", "--full-finetuning was False and is True"),
        # Not that it contradicts --lora-r, which was not given.
        ("--full-finetuning", "--full-finetuning was False and is True"),
        # Not that this model's rows are too short for it.
        ("--quantize nf4", "--quantize was None and is 'nf4'"),
        ("--model OTHERS/weights", "the base weights were different; give the same --model"),
        ("--model OTHERS/layers", "the model's num_hidden_layers was 2 and is 3; give the same --model"),
        ("--model OTHERS/family", "the model's model_type was 'llama' and is 'mistral'; give the same --model"),
        ("--data OTHERS/data", "the data was different; give the same --data files, unchanged"),
    ],
)
def test_resuming_with_other_arguments(flags, said, refused, finished, others):
    before = contents(finished)
    line = refused(
        *flags.replace("OTHERS", str(others)).split(), "--output-dir", finished, "--resume-from-checkpoint", "latest"
    )
    assert line.startswith(f"checkpoint {finished}/checkpoints/4 is of another run: ")
    assert said in line
    assert line.endswith("or start again with another --output-dir")
    assert contents(finished) == before


def test_no_run_is_overwritten(refused, finished, model_dir, data_dir, tmp_path):
    before = contents(finished)
    fresh = ["--model", model_dir, "--data", data_dir, *SHORT, "--output-dir"]
    assert "has a run with checkpoints; resume it with --resume-from-checkpoint latest" in refused(*fresh, finished)
    older = ["--resume-from-checkpoint", finished / "checkpoints" / "2"]
    assert "has checkpoint 4, which resuming from" in refused(*older, "--output-dir", finished)
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    assert "has checkpoint 4, which resuming from" in refused(*older, "--output-dir", other)
    shutil.rmtree(other / "checkpoints")
    assert refused(*fresh, other) == f"{other} has the adapter of a finished run; choose another --output-dir"
    assert contents(finished) == before


def test_resuming_from_an_older_checkpoint_in_another_folder(finished, tmp_path):
    run = tmp_path / "elsewhere"
    assert main(["--resume-from-checkpoint", str(finished / "checkpoints" / "2"), "--output-dir", str(run)]) == 0
    for name in ("evaluation.jsonl", "adapter/adapter_model.safetensors"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_context_beyond_the_trained_one_gives_a_warning(model_dir, tmp_path, capsys):
    (tmp_path / "alone.txt").write_text("one document")
    flags = ["--model", str(model_dir), "--data", str(tmp_path / "alone.txt"), "--max-seq-length", "160"]
    assert main([*flags, "--output-dir", str(tmp_path / "run"), "--max-steps", "1"]) == 0
    assert (
        "warning: --max-seq-length 160 with a model trained for 128 tokens; RoPE is now yarn, factor 1.25, base 10,000, "
        "attention factor 1.022: low frequencies are scaled, high ones unchanged, and attention is sharpened "
        "(rope_scaling and rope_theta override this)"
    ) in capsys.readouterr().err.splitlines()
