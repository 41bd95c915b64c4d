"""Runs every command and Python block of README.md, CONTRIBUTING.md and docs/.

Commands that need a GPU are only parsed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lcjax.config import rope
from lcjax.config.families import FAMILIES
from lcjax.ops.attention import registry
from lcjax.ops.rope import frequencies
from lcjax.train.__main__ import main as train_main
from tests.support import chats
from tests.support.document_commands import (
    CODE,
    DOCUMENTS,
    ROOT,
    RUN_BEFORE_A_RELEASE,
    RUN_BY,
    STARTS,
    Command,
    commands,
    json_block,
    parse,
    python_blocks,
    run,
    unknown_names,
    yaml_block,
)
from tests.support.thin import thinned

TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCUMENTS}
COMMANDS = [command for name, text in TEXTS.items() for command in commands(text, name)]
PYTHON = [command for command in COMMANDS if command.is_python]
BLOCKS = [(name, line, code) for name, text in TEXTS.items() for line, code in python_blocks(text)]


def flags(command: Command) -> set[str]:
    return {word.partition("=")[0] for word in command.words if word.startswith("--")}


def is_run_here(command: Command) -> bool:
    """Whether every run of the tests runs it; not if an earlier command has all its flags."""
    earlier = (other for other in PYTHON[: PYTHON.index(command)] if other.program == command.program)
    return command.program not in RUN_BEFORE_A_RELEASE and not any(flags(command) <= flags(other) for other in earlier)


RUN = (
    "--model smollm2 --data docs --max-seq-length 256 --max-steps 2 --save-steps 1 --eval-fraction 0.3 --eval-batches 1 "
    "--lora-r 2"
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory, model_dir, texts):
    """A folder with what the documents assume: a model, texts and a finished run."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(model_dir, folder / "smollm2")
    (folder / "smollm2" / "chat_template.jinja").write_text(chats.PLAIN)
    for number, name in enumerate(("docs/a.txt", "docs/b.txt", "docs/c.txt", "new/d.txt")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(texts[6 * number : 6 * number + 6] * 2))
    (folder / "book.txt").write_text(texts[0])
    (folder / "prompts.txt").write_text("def main():\n")
    (folder / "book.yaml").write_text(yaml_block(TEXTS["docs/settings.md"]))
    for name, text in {
        "checkouts/a/main.py": "import lib\n" + texts[0],
        "checkouts/a/lib.py": texts[1],
        "books/one/c10.txt": texts[2],
        "books/one/c2.txt": texts[3],
        "books/two/c1.txt": texts[4],
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    messages = [{"role": "user", "content": "Where?"}, call | {"content": "Looking."}]
    messages += [{"role": "tool", "content": "Here."}, {"role": "assistant", "content": "Here."}]
    (folder / "agents.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 4)
    (folder / "chat.jsonl").write_text(json_block(TEXTS["README.md"]))
    (folder / "faq.csv").write_text("question,answer\n" + "Where is it?,In the harbor.\n" * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train_main([*RUN.split(), "--output-dir", "runs/x"]) == 0
        for name in ("32k", "128k"):  # stages of a ladder
            (folder / "runs" / name).symlink_to("x")
    return folder


@pytest.fixture
def here(reader, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, in which a command may write its results."""
    shutil.copytree(reader, tmp_path / "reader")
    monkeypatch.chdir(tmp_path / "reader")
    return tmp_path / "reader"


@pytest.fixture(autouse=True)
def tables_as_before():
    """Removes what a code block adds to lcjax's tables."""
    tables = rope.KEYS, rope.EFFECTS, frequencies.KINDS, registry.BACKENDS, FAMILIES
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


def prepare(command: Command, folder: Path) -> None:
    """Removes the folder for a new run, or the last step for a run to be resumed."""
    reads_run = {"--resume-from-checkpoint", "--start-from"} & {*command.words}
    reads_run = reads_run or any(word.startswith("runs/x/") for word in command.words)
    if command.program == "lcjax.train" and not reads_run:
        shutil.rmtree(folder / "runs")
    elif "--resume-from-checkpoint" in command.words:
        shutil.rmtree(folder / "runs" / "x" / "checkpoints" / "2")
        shutil.rmtree(folder / "runs" / "x" / "adapter")


def place(command: Command) -> str:
    return f"{command.document}:{command.line} {command.program}"


@pytest.mark.parametrize("command", thinned(PYTHON, is_run_here), ids=place)
def test_a_python_command_runs(command, here, capsys):
    if command.is_a_name and command.needs_gpu:
        assert parse(command, ["--help"]) == 0
    elif command.needs_gpu or command.program in RUN_BY:
        assert parse(command, command.argv) == 0, capsys.readouterr().err
    else:
        prepare(command, here)
        code = run(command, command.argv)
        assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", [c for c in PYTHON if not is_run_here(c)], ids=place)
def test_a_command_that_is_run_before_a_release_is_parsed(command, here, capsys):
    assert parse(command, command.argv) == 0, capsys.readouterr().err


def test_every_program_is_run_or_run_elsewhere():
    assert {c.program for c in PYTHON} - set(RUN_BEFORE_A_RELEASE) == {c.program for c in PYTHON if is_run_here(c)}


def test_what_is_only_parsed_here_is_run_elsewhere():
    for program, test in RUN_BY.items():
        module = Path(program).stem if program.startswith("scripts/") else program
        source = (ROOT / test).read_text()
        assert f"import {module}" in source or f"from {module}" in source, test


@pytest.mark.parametrize(("document", "line", "code"), BLOCKS, ids=[f"{name}:{line}" for name, line, _ in BLOCKS])
def test_a_python_block_runs(document, line, code, here):
    run_block(document, line, code)


def run_block(document: str, line: int, code: str) -> None:
    for long, short in CODE.items():
        code = code.replace(long, short)
    exec(compile("\n" * line + code, document, "exec"), {"__name__": "block"})


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.is_python], ids=place)
def test_targets_extras_and_programs_exist(command):
    assert command.text.startswith(STARTS)
    assert unknown_names(command) == []


def test_commands_are_found():
    with_commands = {command.document for command in COMMANDS}
    assert with_commands >= {"README.md", "CONTRIBUTING.md", "docs/long-context.md", "docs/rope.md", "docs/planning.md"}
    of_readme = {command.program for command in COMMANDS if command.document == "README.md"}
    every = "train evaluate generate doctor data tokens audit leak plan convert".split()
    assert of_readme >= {"make", "pip", *(f"lcjax.{name}" for name in every)}
    assert {command.needs_gpu for command in PYTHON} == {True, False}
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("lcjax evaluate --run", "lcjax evaluate --of-run"),
        ("--resume-from-checkpoint", "--resume"),
        ("--lora-r 32", "--lora-rank 32"),
        ("--top-p 0.9", "--top-p 1.9"),
        ("make train", "make trian"),
        ("'.[cuda]'", "'.[gpu]'"),
        ("nvidia-nvvm", "nvidia-nvmm"),
    ],
)
def test_a_wrong_flag_is_found(right, wrong, here):
    """Uses a copy of the README, and only the parsers."""
    text = TEXTS["README.md"]
    assert right in text
    changed = [c for c in commands(text.replace(right, wrong), "copy") if c not in commands(text, "copy")]
    assert changed
    for command in changed:
        assert parse(command, command.argv) if command.is_python else unknown_names(command)


def test_a_wrong_name_in_a_python_block_is_found(here):
    line, code = python_blocks(TEXTS["README.md"])[0]
    with pytest.raises(AttributeError):
        run_block("copy", line, code.replace("lcjax.from_pretrained", "lcjax.from_pretraned"))
