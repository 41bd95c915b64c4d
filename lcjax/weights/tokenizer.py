"""Loads and saves the fast tokenizer (transformers) of a Hugging Face directory or a GGUF file."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from lcjax.errors import InputError
from lcjax.weights.gguf.file import read_gguf_file
from lcjax.weights.gguf.tokenizer import gguf_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# On import, transformers warns that PyTorch is missing. Only its tokenizers are used here, which do
# not need PyTorch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja",
    "chat_template.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Glob patterns of the tokenizer's files inside a model's directory."""
_VOCABULARIES = (TOKENIZER_FILE, "tokenizer.model", "vocab.json")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token")
# Classes without default names.
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Loads a model's tokenizer from disk; uses no network and no code from the model's directory.

    Args:
      path: a Hugging Face directory, or a GGUF file (see `lcjax.weights.gguf.tokenizer`).

    Returns:
      A tokenizer. If the directory has a tokenizer.json, its ids equal those of
      `tokenizers.Tokenizer.from_file`; see `save_tokenizer`.

    Raises:
      InputError: there is no tokenizer, or it is corrupt or of an unsupported kind.
    """
    path = Path(path)
    return _load_from_directory(path) if path.is_dir() else gguf_tokenizer(read_gguf_file(path))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes a tokenizer's files into an existing directory; AutoTokenizer can read them.

    If `load_tokenizer` read the tokenizer from a directory and it has not changed since, its files
    are copied byte for byte.

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
    except Exception as error:  # the library raises bare Exception for a corrupt file
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the tokenizer in {directory} cannot be loaded ({reason}); download its files again"
        ) from error


def _read(directory: Path) -> PreTrainedTokenizerFast:
    # Importing transformers takes a second. A command's --help and argument errors should not wait.
    from transformers import PreTrainedTokenizerFast

    only_local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    file = directory / TOKENIZER_FILE
    if not file.is_file():
        # This imports PyTorch if it is installed, which takes more than another second.
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(directory, **only_local)
    for path in (file, directory / "tokenizer_config.json"):
        _require_readable(path)
    # Not AutoTokenizer: several classes that it selects rebuild the pipeline and ignore that of the
    # file.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, **only_local)
    backend = Tokenizer.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    added = sorted(tokenizer.added_tokens_decoder.items())
    # Tokens that tokenizer_config.json adds to the file's vocabulary.
    backend.add_tokens([token for _, token in added if backend.token_to_id(token.content) is None])
    tokenizer._tokenizer = backend  # there is no public setter
    _name_tokens(tokenizer, directory / "tokenizer_config.json")
    return tokenizer


def _require_readable(path: Path) -> None:
    if path.exists():
        with path.open("rb"):
            pass


def _name_tokens(tokenizer: PreTrainedTokenizerFast, config: Path) -> None:
    """Names the tokens that tokenizer_config.json leaves unnamed, by its class's defaults."""
    unnamed = [name for name in _NAMED_TOKENS if getattr(tokenizer, name) is None]
    stated = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if not unnamed or not isinstance(stated.get("tokenizer_class"), str) or stated["tokenizer_class"] in _GENERIC:
        return
    # This imports PyTorch as well.
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    # None unless the class is in transformers
    known = tokenizer_class_from_name(stated["tokenizer_class"])
    parameters = inspect.signature(known.__init__).parameters if known is not None else {}
    for name in unnamed:
        default = parameters[name].default if name in parameters and name not in stated else None
        if isinstance(default, str) and tokenizer.backend_tokenizer.token_to_id(default) is not None:
            setattr(tokenizer, name, default)


def _unchanged_files(tokenizer: PreTrainedTokenizerBase) -> list[Path]:
    """The files that a tokenizer was loaded from, if they still describe it; otherwise none."""
    directory = Path(tokenizer.name_or_path)
    if not tokenizer.is_fast or not tokenizer.name_or_path or not directory.is_dir():
        return []
    try:
        same = _meaning(load_tokenizer(directory)) == _meaning(tokenizer)
    except InputError:  # the tokenizer no longer exists
        return []
    return [path for pattern in TOKENIZER_FILES for path in sorted(directory.glob(pattern))] if same else []


def _meaning(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """The content of a tokenizer's files, except truncation and padding, which every call sets."""
    backend: Any = tokenizer.backend_tokenizer
    pipeline = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    sides = tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length
    return pipeline, tokenizer.special_tokens_map, tokenizer.chat_template, sides
