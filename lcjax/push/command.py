"""Runs `lcjax push` after its flags are parsed: checks, lists or uploads."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lcjax.errors import InputError
from lcjax.push.arguments import PushArguments
from lcjax.push.files import finished_files, local_base

# How the client's HTTP libraries are named, whose errors mean that there is no answer.
_HTTP = ("httpx", "httpcore", "requests", "urllib3", "hf_xet")
_BY_STATUS = {
    401: "the token is not valid (401): log in again with `hf auth login`",
    403: "the token may not write there (403): use a token with write access, or another owner",
    404: "there is no such repository, or the token may not see it (404): check the name and the token",
    409: "the repository has changed meanwhile (409): try again",
    429: "too many requests (429): try again later",
}


def run(arguments: PushArguments) -> int:
    """Lists or uploads; returns the exit code, 0."""
    files = finished_files(arguments.directory)
    if (base := local_base(arguments.directory)) is not None:
        print(f"warning: adapter_config.json names the base model by the path {base}, which others cannot use; "
              "change it to a hub id", file=sys.stderr)  # fmt: skip
    if arguments.dry_run:
        _list(arguments, files)
    else:
        print(_upload(arguments, files))
    return 0


def _list(arguments: PushArguments, files: list[Path]) -> None:
    sizes = [(arguments.directory / name).stat().st_size for name in files]
    width = max(len(f"{size:,}") for size in sizes)
    for name, size in zip(files, sizes, strict=True):
        print(f"{size:>{width},} bytes  {name.as_posix()}")
    branch = f", branch {arguments.revision}" if arguments.revision else ""
    kind = "private, if it is new" if arguments.private else "if it is new, as the hub decides: usually public"
    print(f"would upload {len(files)} files, {sum(sizes):,} bytes, to {arguments.hub_id}{branch} ({kind})")


def _upload(arguments: PushArguments, files: list[Path]) -> str:
    """Uploads the files in one commit; returns its address.

    Raises:
      InputError: there is no token or no network, or the hub refuses.
    """
    # Importing the client takes a third of a second.
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    if (token := huggingface_hub.get_token()) is None:
        raise InputError("there is no token of the hub; log in with `hf auth login`, or set HF_TOKEN")
    if not token.isascii():
        raise InputError("the token of the hub has characters that are not ASCII; copy it again to HF_TOKEN")
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = huggingface_hub.HfApi(library_name="lcjax")
    try:
        repository = api.create_repo(arguments.hub_id, private=arguments.private or None, exist_ok=True).repo_id
        if arguments.revision is not None:
            api.create_branch(repository, branch=arguments.revision, exist_ok=True)
        commit = api.create_commit(
            repository,
            [huggingface_hub.CommitOperationAdd(name.as_posix(), arguments.directory / name) for name in files],
            commit_message=arguments.commit_message,
            revision=arguments.revision,
        )
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        raise InputError(f"{arguments.directory} cannot be uploaded to {arguments.hub_id}: {reason}") from None
    return commit.commit_url


def _reason(error: BaseException | None) -> str | None:
    """Why an upload failed, and the remedy; None for a bug."""
    from huggingface_hub.errors import HfHubHTTPError

    if error is None:
        return None
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if isinstance(error, HfHubHTTPError):
        return _BY_STATUS.get(error.response.status_code, f"the hub refuses ({first[:200]}): see its page")
    if isinstance(error, OSError) or type(error).__module__.startswith(_HTTP):
        return f"the hub cannot be reached ({first[:200]}): check the network, then run the same command again"
    if isinstance(error, ValueError) and (endpoint := os.environ.get("HF_ENDPOINT")):
        return f"HF_ENDPOINT={endpoint!r} is not an address ({first[:200]}): correct it, or unset it"
    return _reason(error.__cause__)
