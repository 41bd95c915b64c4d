"""Finds and downloads the files of a data set on the Hugging Face hub, without running its code.

The card of a data set (README.md) lists the files of its subsets and splits. Without such a list,
the names of files and folders give the splits, as in Hugging Face's `datasets`.
"""

from __future__ import annotations

import fnmatch
import glob
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lcjax.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?::[\w.-]+(?:/[\w.-]+)?)?")
_PREFIX = "hf://datasets/"
# The branch to which the hub converts data sets that it can read.
_CONVERTED = "refs/convert/parquet"
# Words in the names of files and folders, and the splits that they mean.
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_NOT_DATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
_CARD, _TIMEOUT_S = "README.md", 10
_NUMBERED = re.compile(r"-\d{5}-of-(\d{5})(?=\.)")

Splits = Mapping[str, list[str]]
"""The files of each split, in order."""


class HubData(NamedTuple):
    """A data set on the hub.

    Attributes:
      repository: owner/name.
      part: what follows the colon: a split, a subset, or subset/split; empty for the default.
    """

    repository: str
    part: str

    def __str__(self) -> str:
        return f"{self.repository}:{self.part}" if self.part else self.repository


def hub_data(name: str) -> HubData | None:
    """The data set that a name means if it is not a path; None if it looks like a path.

    `owner/name` looks like a path if the folder `owner` exists or if it ends with a suffix, such as
    .txt. With the prefix hf://datasets/ it never does.
    """
    is_explicit = name.startswith(_PREFIX)
    name = name.removeprefix(_PREFIX)
    if not _NAME.fullmatch(name):
        return None
    repository, _, part = name.partition(":")
    looks_local = Path(repository.split("/")[0]).is_dir() or Path(repository).suffix[1:2].isalpha()
    return None if looks_local and not is_explicit else HubData(repository, part)


def download(data: HubData, is_data: Callable[[Path], bool]) -> list[Path]:
    """The files of one split on disk; an earlier download is found without a network.

    Without a split, it is `train` or the only one.

    Args:
      is_data: whether a file may contain documents, by its name.

    Raises:
      InputError: the data set, its subset or its split does not exist, has no such files, or cannot
        be downloaded.
    """
    # Importing the client takes a third of a second. A path on disk should not wait for it.
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return _downloaded(data, is_data)
    except InputError:
        raise
    except GatedRepoError:
        remedy = "access is restricted: request it on the data set's page, then log in with `hf auth login`"
    except RepositoryNotFoundError:
        remedy = "the hub has none of that name, or it is private: check the spelling, or log in with `hf auth login`"
    except HFValidationError as error:
        remedy = f"it is not the name of one ({error})"
    except Exception as error:  # network errors come from the client's HTTP library, which changes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = f"the hub cannot be reached ({reason}): check the network, or give the path of a file or folder"
    raise InputError(f"{data} is neither a path that exists nor a data set that can be downloaded: {remedy}")


def _downloaded(data: HubData, is_data: Callable[[Path], bool]) -> list[Path]:
    snapshot, names = _listed(data, None)
    files = [name for name in names if _may_be_data(name, is_data)]
    subsets = _subsets_of_card(snapshot / _CARD, files) or ({"default": _splits_by_name(files)} if files else {})
    if not subsets:  # its files may be in a form that only its own code reads
        snapshot, names = _listed(data, _CONVERTED)
        subsets = _subsets_by_folder(name for name in names if name.endswith(".parquet"))
    if not subsets:
        raise InputError(f"the data set {data} has no files that can be read; download it and convert it to .jsonl")
    chosen = _chosen(data, subsets)
    _fetch(data.repository, snapshot.name, [glob.escape(name) for name in chosen])
    paths = [snapshot / name for name in chosen]
    missing = [path for path in paths if not path.is_file()]
    if missing or not _are_all_numbered(chosen):
        raise InputError(f"the data set {data} is only partly on this disk; connect to the network to download it")
    return paths


def _may_be_data(name: str, is_data: Callable[[Path], bool]) -> bool:
    parts = name.split("/")
    return parts[-1] not in _NOT_DATA and not any(part.startswith(".") for part in parts) and is_data(Path(name))


def _fetch(repository: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=patterns, etag_timeout=_TIMEOUT_S
        )
    )


def _listed(data: HubData, revision: str | None) -> tuple[Path, list[str]]:
    """A snapshot's folder, and the names of all its files; without a network, those on disk."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        snapshot = _fetch(data.repository, revision, [_CARD, ".gitattributes"])
    except RevisionNotFoundError:
        return Path(), []
    try:
        # The snapshot's folder is named by its commit. There may be a newer one.
        # Without a network, `list_repo_files` would try for 20 seconds.
        info = HfApi().dataset_info(data.repository, revision=snapshot.name, timeout=_TIMEOUT_S)
        names = [file.rfilename for file in info.siblings or ()]
    except Exception:  # the errors of the client's HTTP library; a file that is missing is noticed
        names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    return snapshot, sorted(names)


def _subsets_of_card(card: Path, files: list[str]) -> dict[str, Splits]:
    """The subsets that a data set's card lists, those without files omitted."""
    from huggingface_hub.repocard import metadata_load

    try:
        metadata: Any = metadata_load(card) if card.is_file() else None
    except Exception:  # not YAML; the hub does not use such a card either
        return {}
    configs = metadata.get("configs") if isinstance(metadata, dict) else None
    subsets: dict[str, Splits] = {}
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, dict) and (splits := _splits_of_config(config, files)):
            subsets[str(config.get("config_name", "default"))] = splits
            if config.get("default") is True:
                subsets["default"] = splits
    return subsets


def _splits_of_config(config: Mapping[str, Any], files: list[str]) -> Splits:
    folder = str(config.get("data_dir") or "").strip("/")
    inside = [name for name in files if not folder or name.startswith(folder + "/")]
    entries = config.get("data_files")
    if not entries:
        return _splits_by_name(inside) if inside else {}
    if isinstance(entries, (str, dict)) or all(isinstance(entry, str) for entry in entries):
        entries = [{"split": "train", "path": entries}] if not isinstance(entries, dict) else [entries]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or "path" not in entry:
            continue
        patterns = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
        patterns = [f"{folder}/{pattern}" if folder else str(pattern) for pattern in patterns]
        if found := [name for name in files if any(_matches(name, pattern) for pattern in patterns)]:
            splits[str(entry.get("split", "train"))] = found
    return splits


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern of a card matches: * is within a folder, and ** spans folders."""
    expression = re.escape(pattern.removeprefix("./"))
    expression = expression.replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
    if "[" in pattern or "{" in pattern:
        return fnmatch.fnmatchcase(name, pattern)
    return re.fullmatch(expression.replace(r"\?", "[^/]"), name) is not None


def _splits_by_name(files: Iterable[str]) -> Splits:
    """Splits by words in the names of files; if there are none, all files are `train`.

    Only files with the most frequent suffix are used: others are often about the data.
    """
    files = list(files)
    suffixes = Counter("".join(Path(name).suffixes[-2:]).lower().split("-")[-1] for name in files)
    suffix = suffixes.most_common(1)[0][0]
    files = [name for name in files if name.lower().endswith(suffix)]
    splits: dict[str, list[str]] = {}
    for name in files:
        words = re.split(r"[^a-z]+", name.lower())
        if found := next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None):
            splits.setdefault(found, []).append(name)
    return splits or {"train": files}


def _subsets_by_folder(files: Iterable[str]) -> dict[str, Splits]:
    """The subsets of the converted branch, whose files are subset/split/0000.parquet."""
    subsets: dict[str, dict[str, list[str]]] = {}
    for name in files:
        if len(parts := name.split("/")) == 3:
            subsets.setdefault(parts[0], {}).setdefault(parts[1].removeprefix("partial-"), []).append(name)
    return dict(subsets)


def _chosen(data: HubData, subsets: Mapping[str, Splits]) -> list[str]:
    """The files of the split that was asked for.

    Raises:
      InputError: there is no such split or subset, or several and none is the default.
    """
    subset, _, split = data.part.rpartition("/")
    if not subset and split in subsets and split not in subsets.get("default", {}):
        subset, split = split, ""
    subset = subset or ("default" if "default" in subsets or len(subsets) > 1 else next(iter(subsets)))
    if subset not in subsets:
        what = f"has no subset {subset}" if "/" in data.part else "has several subsets"
        names = ", ".join(f"{data.repository}:{name}" for name in list(subsets)[:20])
        raise InputError(f"the data set {data.repository} {what}; give one of {names}")
    splits = subsets[subset]
    split = split or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits)))
    if split not in splits:
        prefix = f"{data.repository}:" + (f"{subset}/" if subset != "default" else "")
        names = ", ".join(f"{prefix}{name}" for name in splits)
        raise InputError(f"the data set {data.repository} has no split {split}; give one of {names}")
    return splits[split]


def _are_all_numbered(names: list[str]) -> bool:
    """Whether, of files that are numbered as in -00000-of-00002, none is missing."""
    groups = Counter((_NUMBERED.sub("", name), match[1]) for name in names if (match := _NUMBERED.search(name)))
    return all(count == int(total) for (_, total), count in groups.items())
