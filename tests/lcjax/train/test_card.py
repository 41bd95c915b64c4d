"""The card of a run's adapter: figures, nothing private, and code that works."""

from __future__ import annotations

import getpass
import re

import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

import lcjax
from lcjax.config import LoraConfig
from lcjax.config.run_record import read_run_record
from lcjax.convert.__main__ import main as convert_main
from lcjax.report.records import read_rows
from lcjax.weights.cards.card import adapter_card, model_card
from lcjax.weights.cards.names import hub_id, shown_name


def test_the_card_has_the_figures_of_the_run(finished):
    text = (finished / "adapter" / "README.md").read_text()
    card = ModelCard.load(finished / "adapter" / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("peft", None)
    rows, evaluations = read_rows(finished / "metrics.jsonl"), read_rows(finished / "evaluation.jsonl")
    record = read_run_record(finished)
    assert f"| trained tokens | {sum(row['tokens'] for row in rows):,} |" in text
    assert f"| documents, tokens of data | 24, {record['data']['tokens']:,} |" in text
    assert f"| held-out loss before | {evaluations[0]['eval_loss']:.4f} nats per token |" in text
    assert f"| held-out loss after | {evaluations[-1]['eval_loss']:.4f} nats per token |" in text
    assert "| steps, rows per step | 4, 1 |" in text
    assert "| seed | 7 |" in text


def test_nothing_private_is_in_a_card(finished, model_dir, data_dir):
    text = (finished / "adapter" / "README.md").read_text()
    for path in (finished, model_dir, data_dir):
        assert not any(str(folder) in text for folder in [path, *path.parents[:-1]])
    assert re.findall(r"(?<![\w.])/\w", text) == []
    assert f"pytest-of-{getpass.getuser()}" not in text
    assert shown_name(str(model_dir)) == model_dir.name


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_code_of_a_card_works_in_peft_and_here(finished, model_dir):
    text = (finished / "adapter" / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names = {}
        code = block.replace("BASE_MODEL", str(model_dir)).replace("DIRECTORY", str(finished / "adapter"))
        exec(code, names)
        assert names["model"] is not None
        assert names["tokenizer"]("the old river")["input_ids"]


def test_a_merged_model_has_the_adapters_figures(finished, model_dir, tmp_path):
    assert convert_main([str(model_dir), str(tmp_path / "merged"), "--adapter", str(finished / "adapter")]) == 0
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert card.data.library_name == "transformers"
    table = [line for line in (finished / "adapter" / "README.md").read_text().splitlines() if line.startswith("|")]
    assert "\n".join(table) in card.text
    assert convert_main([str(model_dir), str(tmp_path / "copy")]) == 0
    assert not (tmp_path / "copy" / "README.md").exists()


def test_the_saved_tokenizer_is_the_one_that_was_used(model_dir, tmp_path):
    model, tokenizer = lcjax.from_pretrained(model_dir, max_seq_length=32)
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    model = lcjax.get_peft_model(model, r=2)
    lcjax.save_pretrained(model, tmp_path / "adapter", tokenizer)
    lcjax.save_merged(model, tmp_path / "merged", tokenizer)
    for name in ("adapter", "merged"):
        saved = AutoTokenizer.from_pretrained(tmp_path / name)
        assert saved.chat_template == tokenizer.chat_template
        assert saved("the old river")["input_ids"] == tokenizer("the old river")["input_ids"]


def test_a_readme_of_someone_else_stays(model_dir, tmp_path):
    model = lcjax.get_peft_model(lcjax.from_pretrained(model_dir, max_seq_length=32)[0], r=2)
    lcjax.save_pretrained(model, tmp_path)
    lcjax.save_pretrained(model, tmp_path, figures={"steps": "5 | 6"})
    assert "| steps | 5   6 |" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    lcjax.save_pretrained(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "expected", "shown"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("/home/u/.cache/hub/models--Qwen--Qwen3-8B/snapshots/0a1b", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("/home/u/tiny", None, "tiny"),
        ("models/tiny.gguf", None, "tiny.gguf"),
        ("~", None, "a local model"),
        ("", None, "a local model"),
    ],
)
def test_the_base_models_name(name, expected, shown):
    assert (hub_id(name), shown_name(name)) == (expected, shown)
    data = ModelCard(adapter_card(name, LoraConfig())).data
    assert data.base_model == expected
    assert ModelCard(model_card(name, merged=True)).data.base_model == expected
