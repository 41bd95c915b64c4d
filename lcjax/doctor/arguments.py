"""The flags of `lcjax doctor`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lcjax.cli.outputs import check_outputs
from lcjax.data.arguments import CorpusArguments
from lcjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class DoctorArguments:
    """Check a long run and print the command for it: RoPE, memory, documents, tokens per step.

    Exits with 0 if the run is possible as requested, 1 if it is not, 2 if a flag is invalid.
    Examples:

      lcjax doctor --model DIR_OR_HUB_ID --data books/ --max-seq-length 65536 --gpu h200
      lcjax doctor --model x.gguf --data src/ --documents repository --max-seq-length 8192
    """

    model: str
    """A Hugging Face directory or hub id, or a .gguf file; no weights are loaded."""
    data: tuple[str, ...]
    """The data, as lcjax.train takes it: files, tables of records, folders."""
    max_seq_length: int
    """Context length for training, in tokens."""
    gpu: str | None = None
    """Plan for this GPU, e.g. rtx4090 or h100-80gb; needs the compiler that lcjax.plan needs."""
    host_gb: float | None = None
    """GiB of host memory that may be pinned there; unlimited if not given."""
    lora_r: int = 16
    """Rank of the adapter; 0 trains every weight."""
    documents: str = "file"
    """What counts as a document: file, folder (its text files, in order), repository (its files,
    after what they import), or related (similar texts joined up to the length).
    """
    columns: tuple[str, ...] = ()
    """Columns with other names than the fields of a record, as field=column, as in lcjax.train."""
    json: str | None = None
    """Write the findings as JSON to this file, or to standard output for -."""
    write_config: Path | None = None
    """Write the settings of the command to this YAML file, for --config of lcjax train."""

    def __post_init__(self):
        check_outputs([self.model, *self.data], **{"write-config": self.write_config})
        self.corpus()  # rejects the length, the unit of documents, the output
        if self.lora_r < 0:
            raise InputError(f"--lora-r {self.lora_r} is out of range; it must be 0 (every weight) or a rank")
        if self.host_gb is not None and not self.host_gb > 0:
            raise InputError(f"--host-gb {self.host_gb} is out of range; it must be positive")

    def corpus(self) -> CorpusArguments:
        """The arguments of the commands that examine data."""
        return CorpusArguments(self.data, self.model, self.max_seq_length, self.documents, self.columns, self.json)

    def flags(self) -> dict[str, str]:
        """The flags of lcjax.train that request this run."""
        flags = {"model": self.model, "max-seq-length": str(self.max_seq_length)}
        if self.documents != "file":
            flags["documents"] = self.documents
        if self.columns:
            flags["columns"] = ",".join(self.columns)
        return flags | ({"lora-r": str(self.lora_r)} if self.lora_r else {"full-finetuning": ""})
