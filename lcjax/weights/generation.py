"""Generation settings in a model's files: generation_config.json and the end-of-text tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lcjax.errors import InputError
from lcjax.weights.gguf.file import REMEDY, GgufFile, read_gguf_file

GENERATION_CONFIG = "generation_config.json"

# In a GGUF file: the end of the text, of a turn, and of a message that calls a tool.
_GGUF_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read_generation_config(path: str | os.PathLike[str]) -> str | None:
    """The text of a model's generation_config.json; None if it has none.

    Args:
      path: a Hugging Face directory, whose file is returned unchanged, or a GGUF file, whose
        metadata is converted.

    Raises:
      InputError: the file cannot be read, or is not a JSON object.
    """
    path = Path(path)
    if not path.is_dir():
        return _of_gguf(read_gguf_file(path))
    file = path / GENERATION_CONFIG
    text, parsed = "", None
    try:
        # Bytes, because reading as text would change the line ends.
        text = file.read_bytes().decode("utf-8")
        parsed = json.loads(text)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError):
        pass
    if not isinstance(parsed, dict):
        raise InputError(f"{file} is not a JSON object; download it again, or delete it")
    return text


def write_generation_config(directory: Path, text: str | None) -> None:
    """Writes the result of `read_generation_config`, byte for byte; does nothing for None."""
    if text is not None:
        (directory / GENERATION_CONFIG).write_bytes(text.encode("utf-8"))


def stop_ids(*stated: Any) -> frozenset[int]:
    """The token ids in values of `eos_token_id`, each an id, a list of ids, or None."""
    lists = [list(value) if isinstance(value, list | tuple) else [value] for value in stated]
    return frozenset(
        token for tokens in lists for token in tokens if isinstance(token, int) and not isinstance(token, bool)
    )


def _of_gguf(file: GgufFile) -> str | None:
    count = len(file.metadata.get("tokenizer.ggml.tokens", ()))
    found = {key: file.metadata.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", *_GGUF_ENDS)}
    found = {key: token for key, token in found.items() if token is not None}
    for key, token in found.items():
        if not isinstance(token, int) or not 0 <= token < count:
            raise InputError(f"{file.path} says tokenizer.ggml.{key}={token!r} of {count} tokens; {REMEDY}")
    ends = list(dict.fromkeys(found[key] for key in _GGUF_ENDS if key in found))
    if not ends:
        return None
    content = {"eos_token_id": ends if len(ends) > 1 else ends[0]}
    if "bos_token_id" in found:
        content["bos_token_id"] = found["bos_token_id"]
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
