"""The tokenizer of a Hugging Face directory or of a GGUF file, as transformers' fast tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lcjax.errors import InputError
from lcjax.weights.gguf_file import read_gguf_file
from lcjax.weights.gguf_tokenizer import gguf_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# transformers advises on import that it lacks PyTorch; only its tokenizers are used here, which need none.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Loads the tokenizer that belongs to a model on disk; no network, no code from the model's directory.

    Args:
      path: a Hugging Face directory, or a GGUF file (see `lcjax.weights.gguf_tokenizer`).

    Returns:
      A tokenizer whose `save_pretrained` writes what AutoTokenizer reads back.

    Raises:
      InputError: there is no tokenizer there, or it is corrupt or of a kind that is not supported.
    """
    path = Path(path)
    return _load_from_directory(path) if path.is_dir() else gguf_tokenizer(read_gguf_file(path))


def _load_from_directory(directory: Path) -> PreTrainedTokenizerFast:
    if not any((directory / name).is_file() for name in _VOCABULARIES):
        raise InputError(
            f"{directory} has no tokenizer: it needs one of {', '.join(_VOCABULARIES)} from the model's page"
        )
    # Importing transformers takes a second, which a command's --help and its argument errors should not.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception for a corrupt tokenizer.json
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the tokenizer in {directory} cannot be loaded ({reason}); download its files again"
        ) from error
