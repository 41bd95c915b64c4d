"""A run that starts from an adapter: of an earlier run, or one that PEFT saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

import lcjax
from lcjax import weights
from lcjax.config.run_record import read_run_record
from lcjax.data import Data, load_corpus
from lcjax.errors import InputError
from lcjax.model import lora
from lcjax.ops.cross_entropy import IGNORE
from lcjax.report.records import read_rows
from lcjax.train.__main__ import main, parse
from lcjax.train.checkpoints.fingerprint import fingerprint
from tests.support.processes import contents, records


@pytest.fixture(scope="module")
def second(short, finished, tmp_path_factory) -> Path:
    """The folder of a run that started from the adapter of the finished one."""
    folder = tmp_path_factory.mktemp("second") / "run"
    flags = ["--adapter", str(finished / "adapter"), "--output-dir", str(folder), "--learning-rate", "1e-3"]
    assert main([*short, *flags]) == 0
    return folder


def test_the_loss_before_the_first_step_is_that_at_the_end_of_the_earlier_run(finished, second):
    last, first = read_rows(finished / "evaluation.jsonl")[-1], read_rows(second / "evaluation.jsonl")[0]
    assert (last["step"], first["step"]) == (4, 0)
    assert {**first, "step": 4} == last
    assert read_rows(second / "evaluation.jsonl")[-1]["eval_loss"] < first["eval_loss"]


def test_the_adapter_is_not_changed_and_is_named_in_the_record_and_the_card(finished, second, model_dir, data_dir):
    config = weights.load_config(model_dir)
    origin = {
        "adapter": str(finished / "adapter"),
        "fingerprint": fingerprint(weights.load_adapter(finished / "adapter", config)[1]),
    }
    record = read_run_record(second)
    assert record["origin"] == origin
    assert record["arguments"]["adapter"] == str(finished / "adapter")
    assert "origin" not in read_run_record(finished)
    card = (second / "adapter" / "README.md").read_text()
    assert f"| started from | adapter run, fingerprint {origin['fingerprint']} |" in card
    assert "started from" not in (finished / "adapter" / "README.md").read_text()
    assert (second / "adapter" / "adapter_model.safetensors").read_bytes() != (
        finished / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


def test_it_resumes_exactly_without_the_adapter_that_it_started_from(short, finished, second, tmp_path, capsys):
    adapter, run = shutil.copytree(finished / "adapter", tmp_path / "adapter"), tmp_path / "run"
    before = contents(adapter)
    flags = ["--adapter", str(adapter), "--learning-rate", "1e-3", "--output-dir", str(run)]
    assert main([*short, *flags]) == 0
    assert f"; LoRA r=2 from {adapter}, " in capsys.readouterr().err
    assert contents(adapter) == before
    shutil.rmtree(adapter)
    shutil.rmtree(run / "checkpoints" / "4")
    shutil.rmtree(run / "adapter")
    assert main(["--output-dir", str(run), "--resume-from-checkpoint", "latest", "--adapter", str(second)]) == 2
    assert f"the resumed run started from {adapter}; omit it" in capsys.readouterr().err
    assert main(["--output-dir", str(run), "--resume-from-checkpoint", "latest"]) == 0
    assert records(run) == records(second)
    assert read_run_record(run)["origin"]["fingerprint"] == read_run_record(second)["origin"]["fingerprint"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--lora-r 16", "--lora-r 16 contradicts the adapter in {}, which has rank 2; omit it"),
        ("--lora-alpha 8", "--lora-alpha 8.0 contradicts the adapter in {}, which has lora_alpha 32; omit it"),
        ("--use-rslora", "--use-rslora True contradicts the adapter in {}, which has use_rslora=False; omit it"),
        ("--target-modules q_proj", "--target-modules q_proj contradicts the adapter in {}, which has the target "),
        ("--full-finetuning", "--full-finetuning and --adapter {} contradict each other"),
        ("--output-dir {}", "--output-dir {0} is in the folder of --adapter {0}, which stays unchanged; choose"),
        ("--output-dir {}/run", "--output-dir {0}/run is in the folder of --adapter {0}, which stays unchanged"),
        ("--adapter {}/missing", "{}/missing is not an existing directory; check the path"),
        ("--adapter {}/..", "--adapter {0}/.. is the folder of a run; give {0}/../adapter"),
    ],
)
def test_flags_that_contradict_the_adapter_are_refused(flags, said, finished, model_dir, data_dir, capsys):
    adapter, before = finished / "adapter", contents(finished)
    words = ["--model", str(model_dir), "--data", str(data_dir), "--adapter", str(adapter)]
    assert main([*words, *flags.format(adapter).split()]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said.format(adapter) in line
    assert contents(finished) == before


def test_what_is_no_part_of_the_weights_may_be_chosen(finished, model_dir, data_dir):
    words = ["--model", str(model_dir), "--data", str(data_dir), "--adapter", str(finished / "adapter")]
    arguments = parse([*words, "--lora-dropout", "0.1", "--target-modules", "all-linear", "--lora-alpha", "32"])
    assert (arguments.lora_r, arguments.lora_alpha, arguments.lora_dropout) == (2, 32, 0.1)


def save_with_peft(base: Path, directory: Path, **options: Any) -> Any:
    """Returns a PEFT model with random factors, which is also saved."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model: Any = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(str(directory))
    return model.eval()


def loss_of_peft(model: Any, data: Data) -> float:
    """The mean loss on the held-out rows, one document after another."""
    total, count = 0.0, 0
    for batch in data.evaluation_batches(1):
        tokens, labels, segments = (batch[name][0] for name in ("tokens", "labels", "segment_ids"))
        for segment in set(segments.tolist()) - {0}:
            ids, wanted = tokens[segments == segment], labels[segments == segment]
            with torch.no_grad():
                logits = model(torch.tensor(ids[None].astype(np.int64))).logits[0]
            targets = torch.tensor(np.where(wanted == IGNORE, -100, wanted).astype(np.int64))
            total += float(torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum"))
            count += int((wanted != IGNORE).sum())
    return total / count


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
def test_an_adapter_of_peft_begins_with_its_loss_and_keeps_its_ranks(model_dir, data_dir, tmp_path):
    """With rsLoRA and ranks that differ, and from Python."""
    options = {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]}
    theirs = save_with_peft(
        model_dir, tmp_path / "a", **options, rank_pattern={"q_proj": 1}, alpha_pattern={"q_proj": 4}
    )
    before = contents(tmp_path / "a")
    model, tokenizer = lcjax.from_pretrained(model_dir, 48)
    data = load_corpus([data_dir], tokenizer, 48, held_out_fraction=0.2, seed=42)
    result = lcjax.train(
        lcjax.load_adapter(model, tmp_path / "a"),
        tokenizer,
        data,
        output_dir=tmp_path / "run",
        max_steps=2,
        eval_fraction=0.2,
        eval_batches=100,
        learning_rate=1e-2,
    )
    np.testing.assert_allclose(result.loss_before, loss_of_peft(theirs, data), rtol=2e-6)
    assert contents(tmp_path / "a") == before
    assert read_run_record(tmp_path / "run")["origin"]["adapter"] == str(tmp_path / "a")
    assert result.model.settings.adapter == str(tmp_path / "run" / "adapter")
    a_LRI = lora.detach(result.model.params)[1]["layers"]["self_attn"]["q_proj"]["lora_A"]
    assert jnp.any(a_LRI[:, 0]).item()
    assert not jnp.any(a_LRI[:, 1:]).item()
    # The command reads the same adapter.
    flags = f"--model {model_dir} --data {data_dir} --adapter {tmp_path / 'a'} --max-seq-length 48"
    arguments = parse(flags.split())
    assert (arguments.lora_r, arguments.lora_alpha, arguments.use_rslora) == (4, 8.0, True)
    assert arguments.target_modules == ("q_proj", "down_proj")


def test_an_adapter_of_another_model_is_refused_before_the_data_are_read(finished, tmp_path, texts, capsys):
    from tests.support.tiny_llama import save_tiny_llama

    save_tiny_llama(tmp_path / "wide", texts, intermediate_size=64)
    with pytest.raises(InputError, match="load the adapter with the base model it was trained on"):
        parse(["--model", str(tmp_path / "wide"), "--data", "missing", "--adapter", str(finished / "adapter")])
