"""The flags of `lcjax push`, named as those of `hf upload`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated

import tyro

from lcjax.cli import flags
from lcjax.errors import InputError

_PROGRAM = "lcjax push"
_DESCRIPTION = f"""Uploads a finished adapter or model to the Hugging Face hub, in one commit. The
repository is created if it does not exist. The token is that of `hf auth login`, or HF_TOKEN.

What would be uploaded, without a network:
  {_PROGRAM} runs/x/adapter OWNER/NAME --dry-run

A private repository:
  {_PROGRAM} runs/x/adapter OWNER/NAME --private
"""
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")


@dataclasses.dataclass(frozen=True)
class PushArguments:
    """One upload."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
    """The folder adapter/ or model/ of a finished run, or a merged model."""

    hub_id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HUB_ID")]
    """OWNER/NAME on the hub, or NAME in your own account."""

    private: bool = False
    """Create a private repository; one that exists stays as it is. Otherwise the hub decides, and
    it is usually public.
    """

    revision: str | None = None
    """The branch to upload to, created if missing; by default the main branch."""

    commit_message: str = "Upload with lcjax"
    """The first line of the commit."""

    dry_run: bool = False
    """Only list what would be uploaded."""

    def __post_init__(self):
        if not _HUB_ID.fullmatch(self.hub_id) or "--" in self.hub_id or ".." in self.hub_id or len(self.hub_id) > 96:
            raise InputError(f"{self.hub_id[:100]} is not a hub id; give OWNER/NAME, of letters, digits, - _ and .")


def parse(argv: list[str] | None) -> PushArguments:
    """Reads the flags; raises InputError for those that do not parse."""
    return flags.parse(PushArguments, argv, _PROGRAM, description=_DESCRIPTION)
