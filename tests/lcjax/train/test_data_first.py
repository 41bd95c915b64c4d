"""Data are read before weights are loaded, with the date of the run; one long text is enough."""

import contextlib
import datetime
import json
import logging
import re
import shutil
import types

import jax
import pytest

import lcjax
from lcjax import api, weights
from lcjax.config.presets import PRESETS
from lcjax.config.run_record import RECORD, now, read_run_record
from lcjax.data import load_corpus
from lcjax.errors import InputError
from lcjax.evaluate.__main__ import main as evaluate
from lcjax.leak.__main__ import main as leak
from lcjax.memory import allocators
from lcjax.ops.attention import fa3
from lcjax.pallas.mosaic import backend as mosaic
from lcjax.train import command, refusals
from lcjax.train.__main__ import main
from lcjax.train.arguments import RunArguments
from lcjax.train.checkpoints.checksums import write_checksums
from lcjax.train.checkpoints.folder import RunFolder
from lcjax.train.refusals import check_attention_here, check_model
from tests.support.processes import SHORT

DATED = (
    "{{ strftime_now('%d %b %Y') }} {% for message in messages %}"
    "{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def dated_model(model_dir, tmp_path_factory):
    """The tiny model with a chat template that writes the date."""
    directory = tmp_path_factory.mktemp("dated") / "model"
    shutil.copytree(model_dir, directory)
    tokenizer = weights.load_tokenizer(directory)
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def chats(tmp_path, texts):
    path = tmp_path / "chats.jsonl"
    chats = [[{"role": "user", "content": text[:20]}, {"role": "assistant", "content": text[20:60]}] for text in texts]
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    return path


def test_a_run_whose_template_writes_the_date_resumes_on_another_day(dated_model, chats, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--model", str(dated_model), "--data", str(chats), *SHORT, "--max-steps", "2", "--save-steps", "1"]
    assert main([*flags, "--output-dir", str(run)]) == 0
    before = read_run_record(run)["data"]["fingerprint"]
    resumed = ["--resume-from-checkpoint", "latest", "--output-dir", str(run)]
    shutil.rmtree(run / "checkpoints/2")
    (run / RECORD).unlink()  # the checkpoint has the date too
    assert main(resumed) == 0
    assert read_run_record(run)["data"]["fingerprint"] == before
    shutil.rmtree(run / "checkpoints/2")
    # Pretend that the run was started on another day, so that the data differ.
    saved = run / "checkpoints/1/run/metadata"
    saved.write_text(json.dumps(json.loads(saved.read_bytes()) | {"started": "2001-02-03T04:05:06+02:00"}))
    write_checksums(run / "checkpoints/1")
    capsys.readouterr()
    assert main(resumed) == 2
    assert "the data was different" in capsys.readouterr().err


def test_a_program_gets_the_date_to_load_its_data_again(dated_model, chats, tmp_path):
    model, tokenizer = lcjax.from_pretrained(str(dated_model), 48)
    model = lcjax.get_peft_model(model, r=2)
    flags = {"output_dir": tmp_path / "run", "save_steps": 1, "skip_leak_check": True}
    split = {"held_out_fraction": 0.2, "seed": 7}
    first = load_corpus([chats], tokenizer, 48, **split, date=datetime.datetime(2001, 2, 3, 4, 5, 6))
    lcjax.train(model, tokenizer, first, max_steps=1, lr_scheduler_type="constant", **flags)
    flags |= {"resume_from_checkpoint": "latest", "max_steps": 2, "lr_scheduler_type": "constant"}
    with pytest.raises(InputError, match="the data was different") as refusal:
        lcjax.train(model, tokenizer, load_corpus([chats], tokenizer, 48, **split), **flags)
    wanted = re.search(r"date=datetime\.datetime\.fromisoformat\('(\S+)'\)", str(refusal.value))
    assert wanted is not None
    date = datetime.datetime.fromisoformat(wanted[1])
    again = load_corpus([chats], tokenizer, 48, **split, date=date)
    assert lcjax.train(model, tokenizer, again, **flags).steps == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("torn.jsonl", "torn", "torn.jsonl:1 is not JSON"),
        ("one.txt", "a", "--eval-fraction 0.25 needs two documents or more, or one long enough text"),
        ("empty.txt", " ", "are empty; give files that have text"),
    ],
)
def test_bad_data_are_refused_before_weights_are_loaded(model_dir, tmp_path, monkeypatch, capsys, name, content, said):
    monkeypatch.setattr(api, "from_pretrained", lambda *args, **kwargs: pytest.fail("the weights were loaded"))
    path = tmp_path / name
    path.write_text(content)
    flags = ["--data", str(path), *SHORT, "--eval-fraction", "0.25", "--output-dir", str(tmp_path / "run")]
    assert main(["--model", str(model_dir), *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("other", [leak, evaluate])
def test_other_commands_refuse_bad_data_before_weights_too(model_dir, tmp_path, monkeypatch, capsys, other):
    monkeypatch.setattr(api, "from_pretrained", lambda *args, **kwargs: pytest.fail("the weights were loaded"))
    path = tmp_path / "torn.jsonl"
    path.write_text("torn")
    assert other(["--model", str(model_dir), "--data", str(path), "--max-seq-length", "256"]) == 2
    assert "torn.jsonl:1 is not JSON" in capsys.readouterr().err


def test_a_broken_model_is_refused_before_data_are_read(model_dir, data_dir, tmp_path, capsys, caplog):
    broken = tmp_path / "broken"
    shutil.copytree(model_dir, broken)
    (broken / "model.safetensors").unlink()
    caplog.set_level(logging.INFO)
    assert main(["--model", str(broken), "--data", str(data_dir), *SHORT, "--output-dir", str(tmp_path / "run")]) == 2
    assert "documents" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--attention mosaic", "--attention mosaic does not support head_dim=8; use 64 or 128"),
        ("--attention fa3", "--attention fa3 is not installed; pip install flash-attn3-jax"),
        ("--attention cudnn", "--attention cudnn needs a GPU, and JAX finds none here; use --attention auto, or start"),
        ("--target-modules q_proj qkv_proj", "--target-modules qkv_proj is unknown; did you mean"),
        ("--quantize nf4", "q_proj has rows of 32 values, and --quantize nf4 needs a multiple of 64; omit it"),
        ("--ring-degree 3", "--ring-degree 3 does not divide a context of 2 devices; omit it"),
        ("--context-parallel-size 4", "a context of 4 devices does not fit 2; use at most 2"),
        ("--rope-scaling linear", "--rope-scaling linear stretches positions beyond 128 tokens"),
    ],
)
def test_what_the_model_or_the_devices_rule_out_is_refused_before_data_are_read(
    model_dir, data_dir, tmp_path, monkeypatch, capsys, flags, said
):
    monkeypatch.setattr(command, "load_run_data", lambda *args: pytest.fail("the data was read"))
    monkeypatch.setattr(mosaic, "OLDEST_JAX", (0,))
    monkeypatch.setattr(fa3, "INSTALLED", False)
    monkeypatch.setattr(refusals, "may_have_gpu", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    run = ["--model", str(model_dir), "--data", str(data_dir), *SHORT, "--output-dir", str(tmp_path / "run")]
    assert main([*run, *flags.split()]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("capability", "is_refused"), [("8.0", True), ("9.0", False)])
def test_attention_of_another_gpu_is_refused_before_weights_are_loaded(monkeypatch, capability, is_refused):
    monkeypatch.setattr(mosaic, "OLDEST_JAX", (0,))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    arguments = RunArguments(max_seq_length=48, attention="mosaic", dtype="bfloat16")
    with pytest.raises(InputError, match="runs on Hopper GPUs") if is_refused else contextlib.nullcontext():
        check_attention_here(PRESETS["llama-3.1-8b"], arguments)


@pytest.mark.parametrize(
    ("setting", "files", "found"),
    [
        ({"JAX_PLATFORMS": "cpu"}, ["nvidia0"], False),
        ({"JAX_PLATFORMS": "cuda,cpu"}, ["nvidia0"], True),
        ({"JAX_PLATFORMS": ""}, ["nvidia0", "nvidiactl"], True),
        ({"JAX_PLATFORMS": ""}, ["nvidiactl"], False),
        ({"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": ""}, ["nvidia0"], False),
        ({"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "1"}, ["nvidia0"], True),
    ],
)
def test_whether_jax_may_find_a_gpu(monkeypatch, tmp_path, setting, files, found):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(allocators, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(type(jax.config), "jax_platforms", setting["JAX_PLATFORMS"])
    assert allocators.may_have_gpu() is found


def test_devices_of_a_cpu_may_share_a_sequence(model_dir, tmp_path, monkeypatch):
    config, folder = weights.load_config(model_dir), RunFolder(tmp_path, now())
    shared = RunArguments(max_seq_length=48, context_parallel_size=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(InputError, match="a context of 2 devices does not fit 1"):
        check_model(config, shared, folder)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    check_model(config, shared, folder)


def test_an_empty_path_is_refused(model_dir, tmp_path, capsys):
    assert main(["--model", str(model_dir), "--data", "", *SHORT, "--output-dir", str(tmp_path / "run")]) == 2
    assert "--data is empty; give a value, or omit it" in capsys.readouterr().err


def test_the_end_of_a_single_text_is_held_out(model_dir, texts, tmp_path, capsys):
    book, run = tmp_path / "book.txt", tmp_path / "run"
    book.write_text("\n".join(texts))
    flags = ["--model", str(model_dir), "--data", str(book), *SHORT, "--max-steps", "1", "--output-dir", str(run)]
    assert main(flags) == 0
    said = capsys.readouterr().err
    assert f"(the end of {book})" in said
    assert "held-out loss" in said
    assert read_run_record(run)["data"]["documents"] == 1
