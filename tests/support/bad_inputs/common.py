"""Invalid inputs that many commands share, as (flags, what the error message must name)."""

from __future__ import annotations

from tests.support.bad_inputs.damaged import CONFIGS, DATA, LONG, TOKENIZERS, WEIGHTS

Case = tuple[str, str]


def models(flags: str, *, config: bool = True, weights: bool = True, tokenizer: bool = True) -> list[Case]:
    """`flags` has {} in place of the model."""
    names = [*(CONFIGS if config else ()), *(TOKENIZERS if tokenizer else ()), *(WEIGHTS if weights else ())]
    cases = [(flags.format("{w}/" + name), "{w}/" + name) for name in names]
    paths = ("missing", "nothing", "short.gguf", "text.gguf", "file")
    cases += [(flags.format("{w}/" + name), name) for name in paths]
    return [*cases, (flags.format("''"), "is empty"), (flags.format(LONG), "xxx")]


def data(flags: str, name: str = "--data") -> list[Case]:
    """`flags` has {} in place of the data."""
    cases = [(flags.format("{w}/" + file), file) for file in DATA]
    cases += [(flags.format("{w}/" + file), file) for file in ("missing", "nothing", "binaries")]
    return [*cases, (flags.format("''"), "is empty"), (flags.format(LONG), "xxx")]


def outputs(flags: str, name: str) -> list[Case]:
    """`flags` has {} in place of an output file."""
    bad = ("{w}/full", "{w}/missing/x.png", "{w}/file/x.png", "/proc/no/x.png", LONG + ".png")
    return [*((flags.format(path), name) for path in bad), (flags.format("''"), f"{name} is empty")]


def lengths(flags: str, least: int) -> list[Case]:
    """`flags` has {} in place of the number of tokens."""
    return [
        (flags.format(value), "--max-seq-length") for value in (least - 1, 0, -1, "1e3", "2K", "2147483648", 10**30)
    ]


def words(flags: str, *names: str) -> list[Case]:
    """Numeric flags with words as values."""
    return [(f"{flags} {name} {value}", name) for name in names for value in ("many", "1.5.2")]
