"""From what the user calls a model to a path: a directory, a GGUF file, or a download from the Hugging Face hub."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from lcjax.errors import InputError
from lcjax.weights.hf import INDEX, SINGLE_FILE, read_index

# What loading needs and no more: no code, no weights in other formats (pickles, ONNX, GGUF), nothing in folders. Of weights those
# files that the index names, or the only one: a consolidated.safetensors or a variant in float16 would double what is fetched.
_WANTED = ["*.json", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt"]
_UNWANTED = ["*/*"]
_TIMEOUT_S = 5.0


def resolve_model(name_or_path: str | os.PathLike[str], *, with_weights: bool = True) -> Path:
    """Finds a model on disk, or downloads it (or finds the former download, without a network).

    Args:
      name_or_path: a directory, a `.gguf` file, or a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`.
      with_weights: whether to download weights, too; without them, the tokenizer and config.json.

    Returns:
      The path of a directory or of a GGUF file, which exists.

    Raises:
      InputError: a path that does not exist, a file of another kind, or an id that cannot be fetched.
    """
    path = Path(name_or_path).expanduser()
    try:
        is_directory, exists = path.is_dir(), path.exists()
    except OSError as error:  # of a folder that may not be looked into, or a name too long for one
        raise InputError(
            f"{str(path)[:100]} cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    if is_directory:
        return path
    if exists:
        if path.suffix.lower() == ".gguf":
            return path
        raise InputError(f"{path} is neither a directory nor a .gguf file; give the directory that holds config.json")
    name = os.fspath(name_or_path)
    if _looks_local(name):
        raise InputError(f"{name} does not exist; check the path, or give a hub id such as meta-llama/Llama-3.2-1B")
    return _download(name, with_weights)


def _looks_local(name: str) -> bool:
    """Anything but `owner/name`, where no such folder as `owner` exists here."""
    parts = name.split("/")
    return (
        name.startswith(("/", "./", "../", "~"))
        or name.lower().endswith((".gguf", ".safetensors", ".bin", ".json"))
        or len(parts) != 2
        or not all(parts)
        or Path(parts[0]).is_dir()
    )


def _weight_files(snapshot: Path) -> list[str]:
    """Patterns of the files that hold the weights, each once."""
    index = snapshot / INDEX
    return [glob.escape(name) for name in sorted({*read_index(index).values()})] if index.exists() else [SINGLE_FILE]


def _download(name: str, with_weights: bool) -> Path:
    # Importing the client takes a third of a second, which a path on disk should not.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    options: dict[str, Any] = {"ignore_patterns": _UNWANTED, "etag_timeout": _TIMEOUT_S}
    try:
        snapshot = Path(snapshot_download(name, allow_patterns=_WANTED, **options))
        if with_weights:
            # The same commit, which the snapshot's folder is named by, should there be a newer one by now.
            snapshot_download(name, revision=snapshot.name, allow_patterns=_weight_files(snapshot), **options)
        return snapshot
    except InputError:
        raise
    except GatedRepoError:
        mend = "its owner has to grant access: ask on its page, then log in with `hf auth login`"
    except RepositoryNotFoundError:
        mend = "it does not exist or is private: check the spelling, or log in with `hf auth login`"
    except HFValidationError:
        mend = "it is no hub id: give owner/name, or the path of a directory that exists"
    except Exception as error:  # the client's errors on a bad network come from its HTTP library, which changes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        mend = f"the hub cannot be reached ({reason}): check the network, or give the path of a directory that exists"
    raise InputError(f"{name} is not on this disk and cannot be downloaded: {mend}")
