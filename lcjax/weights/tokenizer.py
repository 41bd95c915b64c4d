"""The tokenizer of a Hugging Face directory or of a GGUF file, as transformers' fast tokenizer, in and out."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from lcjax.errors import InputError
from lcjax.weights.gguf_file import read_gguf_file
from lcjax.weights.gguf_tokenizer import gguf_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# transformers advises on import that it lacks PyTorch; only its tokenizers are used here, which need none.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json",
    "merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Glob patterns, inside a model's directory, of what makes its tokenizer."""
_VOCABULARIES = (TOKENIZER_FILE, "tokenizer.model", "vocab.json")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token")


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Loads the tokenizer that belongs to a model on disk; no network, no code from the model's directory.

    Args:
      path: a Hugging Face directory, or a GGUF file (see `lcjax.weights.gguf_tokenizer`).

    Returns:
      A tokenizer whose ids are those of `tokenizers.Tokenizer.from_file` where the directory has a tokenizer.json;
      see `save_tokenizer`.

    Raises:
      InputError: there is no tokenizer there, or it is corrupt or of a kind that is not supported.
    """
    path = Path(path)
    return _load_from_directory(path) if path.is_dir() else gguf_tokenizer(read_gguf_file(path))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes a tokenizer's files into a directory that exists; AutoTokenizer reads them.

    One that `load_tokenizer` read from a directory, and that nobody has changed since, is copied byte for byte.

    Raises:
      OSError: the disk is full or the directory cannot be written.
    """
    unchanged = _unchanged_files(tokenizer)
    if not any(path.name == TOKENIZER_FILE for path in unchanged):
        tokenizer.save_pretrained(directory)
    for path in unchanged:
        copy = directory / path.relative_to(tokenizer.name_or_path)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)


def _load_from_directory(directory: Path) -> PreTrainedTokenizerFast:
    if not any((directory / name).is_file() for name in _VOCABULARIES):
        raise InputError(
            f"{directory} has no tokenizer: it needs one of {', '.join(_VOCABULARIES)} from the model's page"
        )
    try:
        return _read(directory)
    except PermissionError as error:
        raise InputError(
            f"the tokenizer in {directory} cannot be read ({error.strerror}); check its permissions"
        ) from None
    except Exception as error:  # the tokenizers library raises bare Exception for a corrupt tokenizer.json
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the tokenizer in {directory} cannot be loaded ({reason}); download its files again"
        ) from error


def _read(directory: Path) -> PreTrainedTokenizerFast:
    # Importing transformers takes a second, which a command's --help and its argument errors should not.
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    only_local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    file = directory / TOKENIZER_FILE
    if not file.is_file():
        return AutoTokenizer.from_pretrained(directory, **only_local)
    for path in (file, directory / "tokenizer_config.json"):
        _require_readable(path)
    # Not AutoTokenizer: many a class that it takes for a model rebuilds the pipeline in its own way and forgets the file's.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, **only_local)
    backend = Tokenizer.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    added = sorted(tokenizer.added_tokens_decoder.items())
    # What tokenizer_config.json names on top of the file's vocabulary.
    backend.add_tokens([token for _, token in added if backend.token_to_id(token.content) is None])
    tokenizer._tokenizer = backend  # which has no public setter
    _name_tokens(tokenizer, directory / "tokenizer_config.json")
    return tokenizer


def _require_readable(path: Path) -> None:
    if path.exists():
        with path.open("rb"):
            pass


def _name_tokens(tokenizer: PreTrainedTokenizerFast, config: Path) -> None:
    """Gives the tokens that tokenizer_config.json leaves unnamed the names that its class has for them."""
    unnamed = [name for name in _NAMED_TOKENS if getattr(tokenizer, name) is None]
    stated = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if not unnamed or not isinstance(stated.get("tokenizer_class"), str):
        return
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    known = tokenizer_class_from_name(stated["tokenizer_class"])  # of transformers' own; None for any other
    parameters = inspect.signature(known.__init__).parameters if known is not None else {}
    for name in unnamed:
        default = parameters[name].default if name in parameters and name not in stated else None
        if isinstance(default, str) and tokenizer.backend_tokenizer.token_to_id(default) is not None:
            setattr(tokenizer, name, default)


def _unchanged_files(tokenizer: PreTrainedTokenizerBase) -> list[Path]:
    """The files that a tokenizer was loaded from, where they still say what it does; else none."""
    directory = Path(tokenizer.name_or_path)
    if not tokenizer.is_fast or not tokenizer.name_or_path or not directory.is_dir():
        return []
    try:
        same = _meaning(load_tokenizer(directory)) == _meaning(tokenizer)
    except InputError:  # there is no tokenizer any more
        return []
    return [path for pattern in TOKENIZER_FILES for path in sorted(directory.glob(pattern))] if same else []


def _meaning(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """All that a tokenizer's files say, but for truncation and padding, which every call of it sets."""
    backend: Any = tokenizer.backend_tokenizer
    pipeline = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    sides = tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length
    return pipeline, tokenizer.special_tokens_map, tokenizer.chat_template, sides
