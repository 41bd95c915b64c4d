"""`python -m lcjax.doctor`: ask, answer, end in a command."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lcjax.cli.startup import importing, leave

with importing(__name__ == "__main__"):
    from rich.console import Console

    from lcjax import weights
    from lcjax.audit.figures import audit
    from lcjax.cli.entry import entry_point
    from lcjax.cli.flags import parse
    from lcjax.cli.native_log import NativeLog
    from lcjax.cli.outputs import write_json
    from lcjax.cli.terminal import tables_console
    from lcjax.config import LlamaConfig
    from lcjax.data.arguments import CorpusArguments
    from lcjax.data.corpus import load
    from lcjax.doctor.command import command
    from lcjax.doctor.documents import on_documents
    from lcjax.doctor.findings import Finding
    from lcjax.doctor.memory import by_plan, by_rule
    from lcjax.doctor.rope import on_rope
    from lcjax.errors import InputError, unknown
    from lcjax.plan.__main__ import start_quietly
    from lcjax.plan.aot import gpu_names
    from lcjax.plan.planner import Planner
    from lcjax.plan.progress import CompilationProgress
    from lcjax.plan.workload import Workload

# Of the documents, what reuse and near-duplicates are counted on: seconds, and enough to tell.
_AUDITED_TOKENS = 5_000_000


@dataclasses.dataclass(frozen=True)
class DoctorArguments:
    """What to do for a long run: RoPE, memory, documents, tokens a step; ends in the lcjax.train command to run.

    Exits with 0 where the run is to be had as asked for, 1 where not, 2 where the question is wrong. Examples:

      python -m lcjax.doctor --model DIR_OR_HUB_ID --data books/ --max-seq-length 131072 --gpu h100-80gb
      python -m lcjax.doctor --model model.gguf --data src/ --documents repository --max-seq-length 8192
    """

    model: str
    """A Hugging Face directory or hub id, or a .gguf file; no weights are loaded."""
    data: tuple[str, ...]
    """As lcjax.train takes them: files, tables of records, folders."""
    max_seq_length: int
    """Tokens of context that you mean to train at."""
    gpu: str | None = None
    """Plan for this GPU, e.g. rtx4090 or h100-80gb; needs the compiler that lcjax.plan needs."""
    host_gb: float | None = None
    """GiB of host memory that may be pinned there; any amount when not given."""
    lora_r: int = 16
    """Rank of the adapter; 0 trains every weight."""
    documents: str = "file"
    """What is a document where a path is a folder: file or repository."""
    json: str | None = None
    """Write the findings as JSON to this file, or to standard output for -."""

    def __post_init__(self):
        self.corpus()  # refuses the length, the unit of documents, the output
        if self.gpu is not None and self.gpu not in gpu_names():
            raise InputError(unknown("--gpu", self.gpu, gpu_names()))
        if self.lora_r < 0:
            raise InputError(f"--lora-r {self.lora_r} is out of range; it must be 0 (every weight) or a rank")
        if self.host_gb is not None and not self.host_gb > 0:
            raise InputError(f"--host-gb {self.host_gb} is out of range; it must be positive")

    def corpus(self) -> CorpusArguments:
        """As the commands that look at data take it."""
        return CorpusArguments(self.data, self.model, self.max_seq_length, self.documents, self.json)

    def workload(self, config: LlamaConfig) -> Workload:
        """As the planner takes it."""
        return Workload(self.model, config, self.gpu or "h100-80gb", self.lora_r)

    def flags(self) -> dict[str, str]:
        """Of lcjax.train, as asked for."""
        flags = {"model": self.model, "max-seq-length": str(self.max_seq_length)}
        if self.documents != "file":
            flags["documents"] = self.documents
        return flags | ({"lora-r": str(self.lora_r)} if self.lora_r else {"full-finetuning": ""})


@entry_point
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 as asked for, 1 not so, 2 bad input."""
    arguments = parse(DoctorArguments, argv, "python -m lcjax.doctor")
    start_quietly()
    findings = list(examine(arguments))
    line = command(arguments.flags(), arguments.data, findings)
    write_json({"findings": [dataclasses.asdict(finding) for finding in findings], "command": line}, arguments.json)
    console = tables_console(arguments.json)
    for finding in findings:
        console.print(finding.question, style="bold", end=" " if finding.question else "  - ")
        console.print(finding.answer, markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n{line}", markup=False, highlight=False, soft_wrap=True)
    return 1 if any(finding.stops for finding in findings) else 0


def examine(arguments: DoctorArguments) -> Iterator[Finding]:
    """The findings, in the order of the questions."""
    config = weights.open_model_files(weights.resolve_model(arguments.model)).config
    tokens, workload = arguments.max_seq_length, arguments.workload(config)
    corpus = load(arguments.corpus(), Console(stderr=True))
    yield on_rope(config, tokens)
    yield on_memory(arguments, workload)
    yield from on_documents(audit(corpus, tokens, _AUDITED_TOKENS))


def on_memory(arguments: DoctorArguments, workload: Workload) -> Finding:
    """By the plan where a GPU is named, else by the rule."""
    if arguments.gpu is None:
        return by_rule(workload, arguments.max_seq_length)
    with NativeLog(), CompilationProgress() as progress:

        def replan(workload: Workload) -> Planner:
            host_gb = arguments.host_gb
            return Planner(workload, host_gb=host_gb, compiling=progress.compiling, compiled=progress.compiled)

        return by_plan(workload, arguments.max_seq_length, replan)


if __name__ == "__main__":
    leave(main())
