"""The examples: what their files and pages say, and their runs at small size."""

from __future__ import annotations

import json
import shutil

import pytest

from lcjax.plan.__main__ import main as plan_main
from lcjax.plan.config_file import parse as plan_parse
from lcjax.plan.models import config_of
from lcjax.train.__main__ import main as train_main
from lcjax.train.__main__ import parse as train_parse
from tests.support.document_commands import ROOT, parse, unknown_names
from tests.support.example_pages import FOLDERS, PAGES, commands_of, content_of, quoted_plans
from tests.support.tiny_llama import save_tiny_llama

NAMES = [folder.name for folder in FOLDERS]
COMMANDS = [command for page in PAGES for command in commands_of(page)]
PLANS = [(page.parent.name, words, lines) for page in PAGES for words, lines in quoted_plans(page)]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """The examples are run from the root of the repository."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, texts):
    """A random model for all lengths, with a chat template that has tools."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_tiny_llama(folder, texts, max_position_embeddings=1024)
    for template in ROOT.glob("examples/*/chat_template.jinja"):
        shutil.copy(template, folder)
    return folder


def evaluations(run) -> list[float]:
    """The held-out losses of a run, in the order of the steps."""
    return [json.loads(line)["eval_loss"] for line in (run / "evaluation.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_all_its_parts(name):
    full, small = (train_parse(["--config", f"examples/{name}/{file}.yaml"]) for file in ("config", "small"))
    assert full.max_seq_length > small.max_seq_length
    assert full.full_finetuning == small.full_finetuning
    assert full.output_dir != small.output_dir
    planned = plan_parse(["--config", f"examples/{name}/config.yaml"])
    assert planned.max_seq_length == full.max_seq_length
    assert config_of(planned.model)
    texts = [" ".join(command.words) for command in COMMANDS if f"examples/{name}/" in command.document]
    for file in ("config", "small"):
        assert any(f"lcjax train --config examples/{name}/{file}.yaml" in text for text in texts)
    assert [of for of, _, _ in PLANS].count(name) > 0


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_at_small_size(name, tiny, tmp_path):
    """With a random model in place of SmolLM2, all settings are those of the file."""
    settings = ["--config", f"examples/{name}/small.yaml", "--model", str(tiny)]
    assert train_main([*settings, "--output-dir", str(tmp_path / "run")]) == 0
    losses = evaluations(tmp_path / "run")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.document}:{command.line}")
def test_a_command_of_a_page_is_valid(command, capsys):
    if command.words[0] == "cp":
        assert (ROOT / command.words[1]).is_file()
    elif not command.is_python:
        assert unknown_names(command) == []
    else:
        assert parse(command, command.words[2:]) == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "lines"), PLANS, ids=[f"{name}-{at}" for at, (name, _, _) in enumerate(PLANS)]
)
def test_the_figures_of_a_page_are_those_of_the_plan(name, words, lines, capsys):
    plan_main(words)
    found = content_of(capsys.readouterr().out)
    assert [line for line in lines if line not in found] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "chat-tools"])
def test_an_example_runs_as_it_is(name, smollm2, tmp_path):
    assert train_main(["--config", f"examples/{name}/small.yaml", "--output-dir", str(tmp_path / "run")]) == 0
    losses = evaluations(tmp_path / "run")
    assert losses[-1] < losses[0]
