"""The import rule: the order of the packages, and the libraries that each may import."""

from __future__ import annotations

import ast
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import lcjax

PACKAGE = Path(lcjax.__file__).parent

# Lowest first. Packages on one line do not import each other, only packages on lines above.
ORDER = """
errors | lazy
config
parallel
ops
pallas | optim
memory
model
weights | step
api
cli
data | convert | generate | push
leak | tokens | report
plan | evaluate | audit
train
doctor
"""
LEVELS = [line.split(" | ") for line in ORDER.split("\n") if line]
LEVEL = {package: level for level, packages in enumerate(LEVELS) for package in packages}

# Kernels use what operations define, especially masks. RoPE imports its kernel when it chooses an
# implementation.
UPWARD = {
    "ops/rope/api.py": "pallas",
    "ops/grouped/product.py": "pallas",
    "__init__.py": "cli.startup",  # imported first; uses only the standard library
}

# In addition to the standard library and JAX.
LIBRARIES = {
    "errors": "",
    "lazy": "",
    "config": "yaml",
    "ops": "jax numpy flash_attn3_jax",
    "pallas": "jax jaxlib numpy",
    "parallel": "jax numpy",
    "optim": "jax optax",
    "memory": "jax",
    "model": "jax flax numpy optax",
    "weights": "jax numpy ml_dtypes safetensors gguf tokenizers transformers huggingface_hub",
    "api": "jax numpy transformers",
    "cli": "rich tyro transformers",
    "data": "numpy grain huggingface_hub jinja2 pyarrow rich tokenizers transformers tyro",
    "convert": "jax numpy rich transformers tyro",
    "generate": "jax numpy flax rich tokenizers transformers jinja2",
    "push": "tyro huggingface_hub",
    "step": "jax optax",
    "leak": "jax numpy rich",
    "tokens": "matplotlib numpy rich",
    "report": "",
    "plan": "jax rich matplotlib",
    "evaluate": "jax numpy rich matplotlib transformers",
    "audit": "matplotlib numpy rich",
    "train": "jax numpy optax orbax rich matplotlib tensorboardX transformers wandb mlflow",
    "doctor": "rich",
    "": "",
    "__main__": "",
}


def imports(path: Path) -> Iterator[str]:
    """Yields every module that a file imports anywhere; `from lcjax import api` means lcjax.api."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (
                (f"lcjax.{alias.name}" for alias in node.names) if node.module == "lcjax" else [node.module or ""]
            )


def package_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def is_below(module: str, allowed: list[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


def may_import(package: str) -> list[str]:
    """Returns the modules of lcjax that a package may import: itself, and all on lines above."""
    if package in ("", "__main__"):
        return [f"lcjax.{name}" for name in LEVEL]
    return [f"lcjax.{name}" for name, level in LEVEL.items() if level < LEVEL[package] or name == package]


def violations(path: Path, package: str, exception: str = "") -> list[str]:
    """Returns the imports of a file that violate the rule."""
    allowed = [*may_import(package), *LIBRARIES[package].split(), *([f"lcjax.{exception}"] if exception else [])]
    return [
        module
        for module in imports(path)
        if module.split(".")[0] not in sys.stdlib_module_names and not is_below(module, allowed)
    ]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_package_imports_only_packages_before_it(path):
    package = package_of(path)
    assert package in LIBRARIES, "a new package: add it to ORDER and to LIBRARIES"
    assert violations(path, package, UPWARD.get(str(path.relative_to(PACKAGE)), "")) == []


def test_every_package_has_a_place():
    assert {package_of(path) for path in FILES} == set(LIBRARIES) == {"", "__main__", *LEVEL}


def test_every_exception_is_used():
    for name, module in UPWARD.items():
        assert any(is_below(found, [f"lcjax.{module}"]) for found in imports(PACKAGE / name))


def test_a_violation_is_found(tmp_path):
    path = tmp_path / "masks.py"
    path.write_text(
        "import jax.numpy as jnp\nfrom lcjax import memory\ndef f():\n    import torch.nn\n    import lcjax.train.loop\n"
        "from lcjax.config import LlamaConfig\n"
    )
    assert violations(path, "ops") == ["lcjax.memory", "torch.nn", "lcjax.train.loop"]


def modules_of(package: str) -> list[str]:
    """Returns every module of a package except its command, which is a program."""
    paths = [path for path in FILES if package_of(path) == package and path.stem != "__main__"]
    dotted = (path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".") for path in paths)
    return [name.removesuffix(".__init__") for name in dotted]


def loaded_alone(package: str) -> set[str]:
    """Returns the packages of lcjax that are loaded by importing all modules of one package.

    `lcjax/__init__.py` is empty. This runs in a separate process in which the libraries are loaded.
    """
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            for name in [name for name in sys.modules if name.split(".")[0] == "lcjax"]:
                del sys.modules[name]
            empty = types.ModuleType("lcjax")
            empty.__path__ = [str(PACKAGE)]
            sys.modules["lcjax"] = empty
            for name in modules_of(package):
                __import__(name)
            found = {name.split(".")[1] for name in sys.modules if name.startswith("lcjax.")}
            os.write(writer, " ".join(sorted(found)).encode())
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    assert ":" not in text, text
    return set(text.split())


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning", "ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("package", LEVEL)
def test_a_package_can_be_imported_alone(package):
    assert loaded_alone(package) <= {name.removeprefix("lcjax.") for name in may_import(package)}


@pytest.mark.parametrize("package", [package for package in LEVEL if LIBRARIES[package] in ("", "yaml")])
def test_settings_of_a_run_need_only_what_reads_their_files(package):
    assert all(
        module.split(".")[0] in {*sys.stdlib_module_names, "lcjax", "yaml"}
        for path in FILES
        if package_of(path) == package
        for module in imports(path)
    )


REFERENCE = sorted((PACKAGE.parent / "triton_ref").rglob("*.py"))


@pytest.mark.parametrize(
    ("files", "strangers"),
    [(FILES, ["torch", "triton", "triton_ref"]), (REFERENCE, ["jax", "jaxlib", "flax", "lcjax"])],
    ids=["lcjax", "triton_ref"],
)
def test_lcjax_and_triton_ref_do_not_import_each_other(files, strangers):
    assert files
    assert [p for p in files if any(is_below(module, strangers) for module in imports(p))] == []
