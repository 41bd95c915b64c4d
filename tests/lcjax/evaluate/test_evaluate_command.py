"""The command `lcjax evaluate`."""

from __future__ import annotations

import json
import math

import jax
import pytest

import lcjax
from lcjax.evaluate.__main__ import main
from lcjax.model import lora


@pytest.fixture
def evaluate(capsys, tmp_path):
    """Runs the command with output below tmp_path; returns exit code, stdout and stderr."""

    def run(*flags: object, into: str = "results") -> tuple[int, str, str]:
        code = main([*(str(flag) for flag in flags), "--output-dir", str(tmp_path / into)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def adapter(model_dir, tmp_path_factory):
    """An adapter that changes the output of the model."""
    model, _ = lcjax.from_pretrained(model_dir, max_seq_length=128)
    model = lcjax.get_peft_model(model, r=2)
    base, fresh = lora.detach(model.params)
    changed = jax.tree.map(lambda leaf: leaf + 0.05, fresh)
    model = lcjax.Llama(model.config, lora.attach(base, changed), model.settings)
    directory = tmp_path_factory.mktemp("adapter")
    lcjax.save_pretrained(model, directory)
    return directory


def test_a_model_and_its_adapter(evaluate, model_dir, adapter, texts, tmp_path):
    """Runs all measurements at 256 tokens, twice the trained context of this model."""
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("".join(texts[8 * number : 8 * number + 8]))
    data = [tmp_path / f"{number}.txt" for number in range(3)]
    flags = ("--max-seq-length", 256, "--num-documents", 2, "--depths", 2, "--samples", 1, "--eval-batches", 3)
    code, out, err = evaluate("--model", model_dir, "--adapter", adapter, "--data", *data, *flags)
    assert code == 0, err
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    for rows in (found["position"], found["context"], found["needle"]):
        assert list(rows) == ["base", "adapter"]
        assert len(rows["base"]) == len(rows["adapter"])
        assert all(math.isfinite(row["loss"]) for model in rows.values() for row in model)
        assert [row["loss"] for row in rows["base"]] != [row["loss"] for row in rows["adapter"]]
    assert [row["start"] for row in found["position"]["base"]] == [0, 16, 32, 64, 128]
    assert [row["context"] for row in found["context"]["base"]] == [16, 32, 64, 128, 256]
    cells = [(cell["task"], cell["length"], cell["depth"]) for cell in found["needle"]["base"]]
    assert cells == [(task, 256, depth) for task in ("passkey", "key-value") for depth in (0.0, 1.0)]
    for title in ("loss by position", "given only this much context", "passkey retrieved, adapter", "change"):
        assert title in out
    for picture in ("position.png", "context.png", "needle.png"):
        assert (tmp_path / "results" / picture).read_bytes().startswith(b"\x89PNG")
        assert picture in err


def test_what_a_run_held_out(evaluate, model_dir, data_dir, tmp_path):
    """--eval-fraction reduces the tokens, and another --seed selects other tokens."""
    tokens = []
    asked = ("--model", model_dir, "--data", data_dir, "--tasks", "position", "--max-seq-length", 48)
    for number, flags in enumerate(((), ("--eval-fraction", 0.2), ("--eval-fraction", 0.2, "--seed", 1))):
        code, _, err = evaluate(*asked, *flags, into=f"{number}")
        assert code == 0, err
        found = json.loads((tmp_path / f"{number}" / "results.json").read_text())
        assert "needle" not in found
        assert ("held out" in err) == bool(flags)
        assert ("it is unknown whether the model was trained on it" in err) == (not flags)
        tokens.append([(row["tokens"], row["loss"]) for row in found["position"]["base"]])
    assert sum(count for count, _ in tokens[0]) > sum(count for count, _ in tokens[1])
    assert tokens[1] != tokens[2]


@pytest.mark.parametrize("left", ["results.json", "position.png", "context.png", "needle.png"])
def test_nothing_of_another_evaluation_is_overwritten(left, evaluate, model_dir, data_dir, tmp_path):
    """The command is refused before anything is loaded, so old and new pictures are not mixed."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / left).write_text("another's")
    code, out, err = evaluate("--model", tmp_path / "no-model", "--data", data_dir)
    assert (code, out) == (2, "")
    assert (
        err == f"error: --output-dir {tmp_path / 'results'} has {left} of another evaluation; choose another folder\n"
    )
    assert [(path.name, path.read_text()) for path in (tmp_path / "results").iterdir()] == [(left, "another's")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data", "no/such.txt"), "no/such.txt does not exist; check the path of the data"),
        (("--data",), "--data is not given"),
        (("--tasks", "needles"), "--tasks='needles' is unknown; did you mean needle?"),
        (
            ("--max-seq-length", "100"),
            "--max-seq-length 100 is out of range; for position, context, needle it must be from 256",
        ),
        (("--samples", "0"), "--samples 0 is out of range"),
        (("--num-documents", "0"), "--num-documents 0 is out of range"),
        (("--documents", "4"), "--documents='4' is unknown; use one of file, folder, repository, related"),
        (("--data-weights", "1", "2"), "--data-weights has 2 weights for 1 paths of --data"),
        (("--run", "no/run"), "no/run has no run.yaml; give the output directory of a run"),
        (("--adapter", "no/adapter"), "no/adapter"),
        (("--model", "no/model/at/all"), "no/model/at/all does not exist"),
        (("--attention", "fast"), "--attention fast is unknown"),
        (("--quantize", "int3"), "--quantize int3 is not supported"),
        (("--max-seq-length", "8192", "--tasks", "context"), "no document has more than 8,192 tokens"),
        (("--max-seq-length", "65536", "--tasks", "needle"), "add text, or lower --max-seq-length"),
    ],
)
def test_bad_input_is_one_line(evaluate, model_dir, data_dir, flags, message):
    given = {"--model": [str(model_dir)], "--data": [str(data_dir)]}
    for flag in flags:
        if flag.startswith("--"):
            given[flag] = values = []
        else:
            values.append(flag)
    code, out, err = evaluate(*(word for flag, values in given.items() for word in (flag, *values)))
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in err
