"""A family is one file: no other code of lcjax names it.

Shared code reads the properties of a family. Code that asks for a name would have to be found and
changed for every new family.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lcjax
from lcjax.config import families
from lcjax.config.families import FAMILIES, Family

PACKAGE = Path(lcjax.__file__).parent

# Files that define a family, and the two places that list families and models.
OF_FAMILIES = {
    f"config/families/{path.name}"
    for path in (PACKAGE / "config" / "families").glob("*.py")
    if re.search(r"model_type=\"", path.read_text(encoding="utf-8"))
}
REGISTRIES = {"config/families/__init__.py", "config/presets/"}

# The classes of all families' models. They keep the name of the first family because it is public.
PUBLIC = {"Llama", "LlamaConfig"}
# (file, what it names): why that is not the family.
EXCEPTIONS = {
    ("weights/gguf/tokenizer.py", "llama"): "GGUF's name for vocabularies of SentencePiece",
    ("weights/gguf/vocabulary.py", "llama"): "the same, where it is written",
    ("weights/gguf/types.py", "llama"): "a class of the gguf library",
    ("weights/gguf/words.py", "qwen2"): "GGUF's name for a pattern that splits text into words",
}

CONSTANTS = {name for name, value in vars(families).items() if isinstance(value, Family)} - {"DEFAULT_FAMILY"}
CLASSES = {family.architecture for family in FAMILIES.values()}


def names_in(source: str) -> set[str]:
    """What names a family in the code of a module: identifiers and strings, not docstrings."""
    return {found for word in _words(ast.parse(source)) if (found := _family_in(word)) is not None}


def _words(tree: ast.Module) -> Iterator[str]:
    """The identifiers and the strings of a module; strings are in quotes."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield repr(node.value)
        for field in ("id", "attr", "name", "arg", "asname"):
            if isinstance(word := getattr(node, field, None), str):
                yield word


def _family_in(word: str) -> str | None:
    """The family that an identifier or a string names, by any of its names."""
    if word[0] in "'\"":
        text = ast.literal_eval(word)
        return next(
            (name for name in (*FAMILIES, *CLASSES) if text == name or (name in CLASSES and name in text)), None
        )
    if word in PUBLIC:
        return None
    parts = [part.lower() for part in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])", word)]
    return next((name for name in FAMILIES if name in parts), word if word in CONSTANTS else None)


def modules() -> list[str]:
    paths = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    return [path for path in paths if path not in OF_FAMILIES and not any(path.startswith(x) for x in REGISTRIES)]


def test_every_family_has_its_file():
    names = "gemma gpt_oss llama mistral olmo phi qwen smollm"
    assert {f"{name}.py" for name in names.split()} == {Path(path).name for path in OF_FAMILIES}
    assert "config/families/family.py" not in OF_FAMILIES


@pytest.mark.parametrize("folder", sorted({path.split("/")[0] for path in modules()}))
def test_no_other_module_names_a_family(folder):
    found = {
        (path, name)
        for path in modules()
        if path.split("/")[0] == folder
        for name in names_in((PACKAGE / path).read_text(encoding="utf-8"))
    }
    assert found - EXCEPTIONS.keys() == set()


def test_every_exception_is_needed():
    for path, name in EXCEPTIONS:
        assert name in names_in((PACKAGE / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('if config.model_type == "qwen3":\n    pass', {"qwen3"}),
        ("from lcjax.config.families import MISTRAL", {"mistral"}),
        ("from lcjax.config import families\nx = families.LLAMA", {"llama"}),
        ("class Phi3Attention:\n    pass", {"phi3"}),
        ("def is_qwen2(config): ...", {"qwen2"}),
        ("call(smollm3=1)", {"smollm3"}),
        ('names = ["MistralForCausalLM"]', {"MistralForCausalLM"}),
        ('"""Docstrings may say qwen3 and MistralForCausalLM."""', set()),
        ("# So may comments: qwen3.", set()),
        ("x = LlamaConfig", set()),
        ('kind = "llama3"', set()),
        ('"A file of llama.cpp"', set()),
    ],
)
def test_the_names_that_are_found(source, expected):
    assert names_in(source) == expected
