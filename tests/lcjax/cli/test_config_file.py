"""Files of settings for `--config`: what they may contain, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lcjax.cli.config_file import read_config
from lcjax.config.yaml_files import as_yaml, parse_yaml
from lcjax.errors import InputError
from lcjax.train.__main__ import parse
from lcjax.train.arguments import RunArguments


@pytest.fixture
def settings(tmp_path):
    """Writes a file of settings; returns its path as text."""

    def write(content: str) -> str:
        (tmp_path / "my.yaml").write_text(content, encoding="utf-8")
        return str(tmp_path / "my.yaml")

    return write


def test_a_file_is_the_same_as_the_flags(settings):
    path = settings(
        "# a comment\nmodel: m\ndata: [a, b]\ndata-weights: [1, 0.5]\nmax_steps: 4\nlearning-rate: 1e-4\n"
        "target_modules: q_proj\nuse_rslora: true\nquantize: null\noutput_dir: runs/x\nmax_seq_length: 8_192\n"
    )
    words = "--model m --data a b --data-weights 1 0.5 --max-steps 4 --learning-rate 1e-4 --target-modules q_proj"
    words += " --use-rslora --output-dir runs/x --max-seq-length 8192"
    expected = parse(words.split())
    assert parse(["--config", path]) == RunArguments(**{**vars(expected), "config": Path(path)})
    assert parse(
        [f"--config={path}", "--max-steps", "5", "--no-use-rslora", "--data-weights", "2", "3"]
    ) == RunArguments(
        **{**vars(expected), "config": Path(path), "max_steps": 5, "use_rslora": False, "data_weights": (2.0, 3.0)}
    )


def test_a_file_may_leave_model_and_data_to_the_flags_or_to_the_demo(settings):
    path = settings("model: m\nwarmup_steps: 3\n")
    assert parse(["--config", path, "--data", "a"]).data == ("a",)
    demo = parse(["--config", settings("num_train_epochs: 2\nlearning_rate: 0.5\n")])
    assert (demo.max_steps, demo.learning_rate, demo.max_seq_length) == (-1, 0.5, 1024)


def test_an_anchor_is_a_shared_value(settings):
    assert parse(["--config", settings("seed: &one 5\nsave_steps: *one\n")]).save_steps == 5
    layers = "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]\n" for n in range(1, 12))
    with pytest.raises(InputError, match=r"k0 in .* is no flag") as caught:
        parse(["--config", settings(f"k0: &k0 [x]\n{layers}")])
    assert len(str(caught.value)) < 300
    with pytest.raises(InputError, match=r"data, item 1: .* is a list; give text") as caught:
        parse(["--config", settings("data: &again [*again, *again]\n")])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("max_step: 4", "max_step in {} is no flag of this command; did you mean max_steps?"),
        ("lr: 1e-4", "lr in {} is no flag of this command; did you mean"),
        ('"\\e[31mfoo": 1', "\x1b[31mfoo in {} is no flag of this command; see --help"),
        ("a: !!timestamp x", "is not of the type that its tag (!!) names"),
        ("lora_r: !!bool x", "is not of the type that its tag (!!) names"),
        ("format: 9\narguments: {lora_r: 4}", "has format 9, but this lcjax reads format 2"),
        ("max_steps: ten", "max_steps: 'ten' in {} is text; give a whole number"),
        ("max_steps: 1.5", "max_steps: 1.5 in {} is a number with a fraction or an exponent; give a whole number"),
        ("max_steps: 010", "max_steps: '010' in {} is text; give a whole number"),
        ("max_steps: true", "max_steps: True in {} is true or false; give a whole number"),
        ("max_steps:", "max_steps: None in {} is empty; give a whole number"),
        ("learning_rate: {a: 1}", "learning_rate: {'a': 1} in {} is a mapping; give a number"),
        ("use_rslora: yes", "use_rslora: 'yes' in {} is text; give true or false"),
        ("model: 2024-01-01\ndata: 5", "data: 5 in {} is a whole number; give a list, each item text"),
        ("data: [a, [b]]", "data, item 2: ['b'] in {} is a list; give text"),
        ("data_weights: [1, x]", "data_weights, item 2: 'x' in {} is text; give a number"),
        ("model: ''", "model: '' in {} is empty; give text, or null"),
        ("rope_theta: 1" + 400 * "0", "give a number, or null"),
        ("seed: 1" + 5000 * "0", "is not a file of settings"),
        ("seed: 1\nseed: 2", "(line 2: the key seed occurs twice)"),
        ("max-steps: 1\nmax_steps: 2", "max_steps is in {} twice, with an underscore and with a dash"),
        ("1: 2", "(line 1: a key is not text)"),
        ("[a, b]: 2", "(line 1: a key is not text)"),
        ("<<: {seed: 1}", "<< in {} is no flag"),
        ("seed: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("seed: [", "(line 1: "),
        ("[" * 50_000, "nested too deeply"),
        ("x" * 2**21, "settings have at most 1,048,576"),
        ("seed: 1\n---\nseed: 2", "expected a single document"),
        ("seed: \0", "is not a file of settings"),
        ("", "has no settings"),
        ("- seed", "has no settings"),
        ("programs_dir: x", "programs_dir in {} is not read from a file; give --programs-dir on the command line"),
        ("config: x", "config in {} is not read from a file"),
        ("learning_rate: -1", "--learning-rate -1.0 is out of range; it must be at least 0 (--learning-rate is set in {})"),
        ("format: 2\narguments: {seed: 1}", "was written by lcjax.train() in a program"),
    ],
)  # fmt: skip
def test_what_is_refused(content, said, settings):
    path = settings(content)
    with pytest.raises(InputError) as caught:
        parse(["--config", path])
    assert said.replace("{}", path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_flag_on_the_command_line_is_not_blamed_on_the_file(settings):
    with pytest.raises(InputError) as caught:
        parse(["--config", settings("learning_rate: 0.1"), "--learning-rate", "-1"])
    assert "my.yaml" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"no.yaml cannot be read \(No such file or directory\)"):
        read_config(tmp_path / "no.yaml", RunArguments)
    with pytest.raises(InputError, match=r"is a folder; give a file, such as .*run\.yaml"):
        read_config(tmp_path, RunArguments)


def test_what_is_written_reads_back_the_same():
    texts = [
        "",
        "no",
        "1e-4",
        "010",
        "null",
        "2024-01-01",
        " x",
        "a: b",
        "# c",
        "\udc80",
        "é\n\u2028",
        "12:30:00",
        "~",
        "=",
        "<<",
    ]
    value = {"texts": texts, "numbers": [1, -2, 1e-05, 2.5, 1e300, True, None], "nested": {"a": {"b": []}}}
    assert parse_yaml(as_yaml(value).encode()) == value


def test_a_file_that_is_not_regular_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe is not a regular file; give a YAML file of settings"):
        read_config(tmp_path / "pipe", RunArguments)
