"""Who may import whom: the import column of the design, read off the source of every file."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lcjax

PACKAGE = Path(lcjax.__file__).parent

# Of each room, the rooms of lcjax and the libraries that it may import beside the standard library.
ALLOWED = {
    "errors": "",
    "startup": "",
    "signals": "",
    "lazy": "",
    "native_log": "",
    "flags": "errors | tyro",
    "rope_scaling": "errors",
    "config": "errors rope_scaling",
    "rope": "config errors | jax numpy",
    "reference": "| jax",
    "loss": "| jax",
    "remat": "errors | jax",
    "masks": "| jax",
    "attention_call": "masks | jax",
    "block_pairs": "masks | jax",
    "blockwise": "block_pairs masks remat | jax",
    "cudnn": "errors | jax",
    "fa3": "| jax flash_attn3_jax",
    "pallas": "masks remat | jax numpy",
    "dispatch": "attention_call blockwise cudnn fa3 pallas errors | jax",
    "attention_halves": "attention_call blockwise dispatch errors pallas | jax",
    "memory": "attention_halves errors weights.names | jax",
    "ops": "attention_call dispatch masks pallas reference rope | jax",
    "deviceless": "errors | jax",
    "presets": "config errors",
    "model": "attention_halves config errors memory rope ops quant remat lora | jax flax numpy",
    "quant": "errors | jax numpy",
    "lora": "config errors quant weights.names | jax optax",
    "layerwise": "| jax optax",
    "optim": "errors layerwise | jax optax",
    "step": "config layerwise loss memory model lora remat | jax optax",
    "weights": "config errors quant | jax numpy ml_dtypes safetensors gguf tokenizers transformers huggingface_hub",
    "data": "config errors | numpy grain jinja2 pyarrow rich tokenizers transformers",
    "evaluate": "cli lazy startup data errors inference loss model rope step train.reporting.run_record "
    "train.reporting.terminal weights | numpy rich matplotlib transformers",
    "api": "config errors lora memory ops quant weights model remat rope | jax numpy transformers",
    "cli": "errors flags signals startup | rich",
    "convert": "cli startup config errors lora rope weights | jax numpy rich tyro",
    "corpus": "cli data errors rope train.arguments train.reporting.terminal weights | rich transformers tyro",
    "tokens": "cli startup corpus data | matplotlib numpy rich",
    "audit": "cli startup corpus data errors tokens train.reporting.terminal | matplotlib numpy rich",
    "leak": "api cli startup lazy config data errors model train.reporting.terminal weights | jax numpy rich",
    "train": "api audit cli flags lazy native_log signals startup config data errors evaluate layerwise leak "
    "lora memory model ops optim plan quant remat rope step "
    "weights | jax numpy optax orbax rich matplotlib tensorboardX transformers",
    "plan": "attention_halves cli native_log startup config deviceless dispatch errors fa3 layerwise lora loss "
    "memory model ops pallas.tiles presets "
    "quant remat rope step train weights.names | jax rich matplotlib",
    "inference": "api errors model ops quant rope weights | transformers",
    "generate": "cli lazy signals startup errors inference model ops train.reporting.terminal weights | jax numpy "
    "flax rich tokenizers transformers jinja2",
    "doctor": "audit cli native_log startup config corpus deviceless errors plan remat rope weights | rich",
    "": "api config errors lazy model startup train",
    "__main__": "errors startup",
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it; `from lcjax import lora` counts as lcjax.lora."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (
                (f"lcjax.{alias.name}" for alias in node.names) if node.module == "lcjax" else [node.module or ""]
            )


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def is_below(module: str, allowed: list[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


def offences(path: Path, room: str) -> list[str]:
    """The imports of a file that its room may not make."""
    rooms, _, libraries = ALLOWED[room].partition("|")
    own = [f"lcjax.{name}" for name in [*rooms.split(), *([room] if room else [])]]
    return [
        module
        for module in imports(path)
        if module.split(".")[0] not in sys.stdlib_module_names and not is_below(module, own + libraries.split())
    ]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_what_the_design_allows(path):
    assert room_of(path) in ALLOWED, "a new room: give it a line above and in the design"
    assert offences(path, room_of(path)) == []


def test_every_room_is_there():
    assert {room_of(path) for path in FILES} == set(ALLOWED)


def test_an_offence_is_found(tmp_path):
    path = tmp_path / "loss.py"
    path.write_text(
        "import jax.numpy as jnp\nfrom lcjax import config\ndef f():\n    import torch.nn\n    import lcjax.train.loop\n"
    )
    assert offences(path, "loss") == ["lcjax.config", "torch.nn", "lcjax.train.loop"]


REFERENCE = sorted((PACKAGE.parent / "triton_ref").rglob("*.py"))


@pytest.mark.parametrize(
    ("files", "strangers"),
    [(FILES, ["torch", "triton", "triton_ref"]), (REFERENCE, ["jax", "jaxlib", "flax", "lcjax"])],
    ids=["lcjax", "triton_ref"],
)
def test_the_package_and_its_opponent_stay_apart(files, strangers):
    assert files
    assert [p for p in files if any(is_below(module, strangers) for module in imports(p))] == []
