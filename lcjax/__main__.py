"""`python -m lcjax`, installed as `lcjax`: the list of commands, and each command by name.

`lcjax train ...`, `lcjax-train ...`, `python -m lcjax train ...` and `python -m lcjax.train ...`
are the same.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import sys

from lcjax.cli.startup import BROKEN_PIPE, discard, importing, is_a_program, leave
from lcjax.errors import unknown

COMMANDS = {
    "train": (
        "lcjax.train.__main__",
        "fine-tune a model on long documents; without flags a demo of a few minutes on a CPU",
    ),
    "plan": ("lcjax.plan.__main__", "say whether a run fits a GPU, without the GPU"),
    "doctor": ("lcjax.doctor.__main__", "check data, RoPE and memory for a long run, and print the command for it"),
    "generate": ("lcjax.generate.__main__", "continue a text, or hold a conversation"),
    "evaluate": ("lcjax.evaluate.__main__", "measure how well a model uses long context"),
    "data": ("lcjax.data.__main__", "show packed rows as text, with what is learned marked"),
    "tokens": ("lcjax.tokens.__main__", "count the tokens of the data, document by document"),
    "audit": ("lcjax.audit.__main__", "say whether the data has anything far back to learn"),
    "leak": ("lcjax.leak.__main__", "check that packed documents do not see each other"),
    "convert": (
        "lcjax.convert.__main__",
        "write a model as a Hugging Face directory or a .gguf file, with an adapter merged in",
    ),
    "push": ("lcjax.push.__main__", "upload a finished adapter or model to the Hugging Face hub"),
}
"""Each command's module and its purpose."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the first word names; returns its exit code, 2 if it is unknown."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        return _printed(overview())
    if name == "--version":
        return _printed(f"lcjax {importlib.metadata.version('lcjax')}")
    if name in COMMANDS:
        return _command(name, rest)
    print(f"error: {unknown('the command', name, COMMANDS)}", file=sys.stderr)
    return 2


def _printed(text: str) -> int:
    """Prints the text; returns the exit code, BROKEN_PIPE if the reader has exited."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        discard(sys.stdout.fileno())
        return BROKEN_PIPE
    return 0


def overview() -> str:
    """The commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lcjax COMMAND ...    (or python -m lcjax.COMMAND ...)",
            "",
            "Long-context fine-tuning of Llama-family models in JAX: LoRA, 4-bit LoRA or every weight.",
            "",
            *lines,
            "",
            "lcjax COMMAND --help explains the flags of a command; lcjax --version prints the version",
        ]
    )


def script(name: str | None = None) -> None:
    """An installed script: the command of that name, or `main`."""
    is_a_program()
    leave(main() if name is None else _command(name, None))


def _command(name: str, argv: list[str] | None) -> int:
    with importing(True):
        module = importlib.import_module(COMMANDS[name][0])
    return module.main(argv)


train, plan, doctor, generate, evaluate, data, tokens, audit, leak, convert, push = (
    functools.partial(script, name) for name in COMMANDS
)


if __name__ == "__main__":
    script()
