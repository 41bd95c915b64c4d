"""`lcjax evaluate --run`: evaluates a run on its held-out text, with correct claims."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import lcjax
from lcjax.config.run_record import read_run_record
from lcjax.evaluate.__main__ import main
from lcjax.evaluate.arguments import parse
from lcjax.evaluate.overlap import WINDOW
from lcjax.evaluate.provenance import load_text
from lcjax.evaluate.run import Run, TrainingText
from lcjax.report.records import read_rows
from lcjax.train.__main__ import main as train_main

REPOSITORIES = 6
POSITION = ("--tasks", "position")


@pytest.fixture(scope="module")
def work(tmp_path_factory, texts, model_dir):
    """A working directory with six repositories of four files each, and a run on relative paths."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(model_dir, folder / "tiny")
    for number, text in enumerate(texts):
        repository = folder / "data" / f"{number % REPOSITORIES}"
        (repository / ".git").mkdir(parents=True, exist_ok=True)
        (repository / f"{number}.txt").write_text(text)
    (folder / "other.txt").write_text(" ".join(f"{n} bottles stood there" for n in range(300)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = "--max-seq-length 64 --max-steps 2 --lora-r 2 --learning-rate 0.05 --seed 3 --documents repository"
        asked = f"--model tiny --data data --output-dir runs/x --eval-fraction 0.4 --eval-batches 1000 {flags}"
        assert train_main(asked.split()) == 0
    return folder


@pytest.fixture
def evaluate(work, monkeypatch, capsys):
    """Runs the command there; returns its results and its standard error."""
    monkeypatch.chdir(work)

    def run(*flags: object) -> tuple[dict, str]:
        code = main([str(flag) for flag in flags])
        said = capsys.readouterr().err
        assert code == 0, said
        (written,) = [line for line in said.splitlines() if line.endswith("results.json")]
        return json.loads(Path(written).read_text()), said

    return run


@pytest.fixture
def changed_run(work, tmp_path):
    """Makes a copy of the run whose run.yaml has other arguments."""

    def change(**arguments) -> str:
        shutil.copytree(work / "runs" / "x", tmp_path / "run")
        record = read_run_record(tmp_path / "run")
        record["arguments"] |= arguments
        (tmp_path / "run" / "run.yaml").write_text(json.dumps(record))
        return str(tmp_path / "run")

    return change


def mean_loss(rows: list[dict]) -> float:
    return sum(row["tokens"] * row["loss"] for row in rows) / sum(row["tokens"] for row in rows)


def test_a_run_is_measured_on_what_it_held_out(evaluate, work):
    """Base and adapter have the losses that the run measured before and after training."""
    found, said = evaluate("--run", "runs/x", "--eval-batches", 1000)
    assert "measured on text held out of runs/x: 2 documents" in said
    assert "warning" not in said
    before, after = [row["eval_loss"] for row in read_rows(work / "runs/x/evaluation.jsonl")]
    assert mean_loss(found["position"]["base"]) == pytest.approx(before, rel=1e-5)
    assert mean_loss(found["position"]["adapter"]) == pytest.approx(after, rel=1e-5)
    assert before - after > 0.01
    assert (found["max_seq_length"], found["seed"], found["adapter"]) == (64, 3, "runs/x/adapter")
    assert found["text"]["held_out_of"] == "runs/x"
    assert found["text"]["trained_on"] == []
    # Measurements for which the text is too short are skipped with a message.
    assert found.keys() >= {"position", "context"}
    assert "needle is omitted: --max-seq-length 64 is too short" in said


def test_from_another_folder_the_paths_are_still_the_runs(evaluate, work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()  # a different folder with the same name
    (tmp_path / "data" / "a.txt").write_text("nothing of it")
    found, said = evaluate("--run", work / "runs" / "x", *POSITION)
    assert "measured on text held out of" in said
    assert found["data"] == [str(work / "data")]
    assert found["model"] == str(work / "tiny")


def test_flags_override_the_run(work, monkeypatch):
    monkeypatch.chdir(work)
    taken = parse(["--run", "runs/x"])
    assert (taken.documents, taken.eval_fraction, taken.data, taken.tasks) == ("repository", 0.4, ("data",), ())
    given = parse(
        "--run runs/x --seed 4 --eval-fraction 0 --max-seq-length 32 --tasks position --documents file".split()
    )
    assert (given.seed, given.eval_fraction, given.max_seq_length) == (4, 0.0, 32)
    assert (given.documents, given.tasks, given.adapter) == ("file", ("position",), taken.adapter)
    # Other data are used completely, because the run held out none of them.
    other = parse(["--run", "runs/x", "--data", "other.txt"])
    assert (other.data, other.eval_fraction, other.documents, other.max_seq_length) == (("other.txt",), 0.0, "file", 64)


def test_other_text_is_not_called_held_out(evaluate):
    found, said = evaluate("--run", "runs/x", "--data", "other.txt", *POSITION)
    assert "measured on all of the data, which runs/x did not train on: 1 document, " in said
    assert "held out" not in said
    assert "warning" not in said
    assert found["text"]["held_out_of"] is None
    assert found["text"]["trained_on"] == []


@pytest.mark.parametrize("flags", [("--run", "runs/x"), ("--model", "tiny", "--adapter", "runs/x/adapter")])
def test_text_that_was_trained_on_is_named(flags, evaluate, work):
    """This does not depend on what a document is now, and only the adapter's folder is needed.

    Text shorter than a window cannot be recognized.
    """
    found, said = evaluate(*flags, "--data", "data", "other.txt", "--max-seq-length", 64, *POSITION)
    trained = found["text"]["trained_on"]
    repositories = {name.split("/")[1] for name in trained}
    assert len(repositories) == 4  # the others are held out
    files = [path for path in work.glob("data/*/*.txt") if path.parent.name in repositories]
    long = {str(path.relative_to(work)) for path in files if len(path.read_text().split()) >= WINDOW}
    assert long <= set(trained) <= {str(path.relative_to(work)) for path in files}
    (warning,) = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(f"warning: {len(trained)} of 25 documents, ")
    assert warning.endswith(f"text that was trained on in runs/x: {', '.join(trained[:3])} and {len(trained) - 3} more")
    assert "measured on all of the data, not held out: 25 documents" in said


def test_a_run_that_held_nothing_out_is_named_in_the_warning(evaluate, changed_run):
    found, said = evaluate("--run", changed_run(eval_fraction=0.0), *POSITION)
    assert "measured on all of the data, not held out: 6 documents" in said
    assert "6 of 6 documents, 100% of the tokens, are text that was trained on" in said
    assert "that run held nothing out (--eval-fraction 0)" in said
    assert found["text"]["held_out_of"] is None


def test_missing_training_data_are_not_an_error(evaluate, changed_run):
    _, said = evaluate("--run", changed_run(data=["gone"]), "--data", "other.txt", *POSITION)
    assert "cannot be compared with this text: gone" in said
    assert "it is unknown whether the model was trained on it" in said


def test_data_that_have_changed_are_named(evaluate, work, changed_run, tmp_path):
    shutil.copytree(work / "data", tmp_path / "data")
    (tmp_path / "data" / "0" / "new.txt").write_text("a new line of text")
    _, said = evaluate("--run", changed_run(data=[str(tmp_path / "data")]), *POSITION)
    assert "warning: the data has changed since" in said


def test_a_copy_of_a_trained_document_among_the_held_out_is_named(evaluate, work, changed_run, tmp_path):
    """The split is by documents, so that a duplicated text can be in both parts."""
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text((work / "other.txt").read_text())
    data = [str(tmp_path / f"{number}.txt") for number in range(4)]
    _, said = evaluate("--model", "tiny", "--data", *data, "--eval-fraction", 0.25, "--max-seq-length", 64, *POSITION)
    assert "1 of 1 documents, 100% of the tokens, repeat text that was trained on: " in said


def test_full_fine_tuning_leaves_a_model(evaluate, work, changed_run, model_dir, tmp_path):
    run = changed_run()
    shutil.rmtree(tmp_path / "run" / "adapter")
    model, tokenizer = lcjax.from_pretrained(model_dir, max_seq_length=64)
    lcjax.save_merged(model, tmp_path / "run" / "model", tokenizer)
    found, said = evaluate("--run", run, *POSITION)
    assert (found["model"], found["adapter"]) == (f"{run}/model", None)
    assert list(found["position"]) == ["trained"]
    assert "measured on text held out of" in said


def test_an_unfinished_run_is_refused(changed_run, tmp_path, capsys):
    run = changed_run()
    shutil.rmtree(tmp_path / "run" / "adapter")
    assert main(["--run", run]) == 2
    assert f"{run} has neither adapter/ nor model/, which a finished run has" in capsys.readouterr().err


def test_every_evaluation_has_its_own_folder(evaluate, work):
    """This includes two evaluations within one second."""
    for _ in range(2):
        evaluate("--run", "runs/x", *POSITION, "--eval-batches", 1)
    folders = list((work / "runs" / "x").glob("evaluation-*"))
    assert len(folders) >= 2
    assert all({path.name for path in folder.iterdir()} >= {"results.json", "position.png"} for folder in folders)
    assert max(folder.name for folder in folders) in (work / "runs" / "x" / "report.html").read_text()


def test_a_chat_template_writes_the_date_of_the_run(work, changed_run, tmp_path, model_dir):
    """Otherwise its conversations would change from day to day."""
    _, tokenizer = lcjax.from_pretrained(model_dir, max_seq_length=64)
    tokenizer.chat_template = "{{ strftime_now('%Y') }}{% for m in messages %}: {{ m['content'] }}{% endfor %}"
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        json.dumps({"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]}) + "\n"
    )
    folder = Path(changed_run())
    record = read_run_record(folder)
    (folder / "run.yaml").write_text(json.dumps(record | {"started": "2001-02-03T04:05:06+02:00"}))
    settings = TrainingText((str(rows),), "file", (), 0.0, 0)
    data = load_text(settings, Run.read(folder), tokenizer, 64, None)
    assert tokenizer.decode(data.corpus.document(0)).startswith("2001: hello")
