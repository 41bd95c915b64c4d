"""Runs `lcjax doctor` after its flags are parsed; its output ends with a command."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from rich.console import Console

from lcjax import weights
from lcjax.audit.figures import audit
from lcjax.cli.native_log import NativeLog
from lcjax.cli.outputs import output_file, write_json
from lcjax.cli.signals import WhileCompiling
from lcjax.cli.terminal import tables_console
from lcjax.data.corpus import load
from lcjax.doctor.arguments import DoctorArguments
from lcjax.doctor.documents import on_documents
from lcjax.doctor.findings import Finding
from lcjax.doctor.memory import by_plan, by_rule
from lcjax.doctor.rope import on_rope
from lcjax.doctor.train_command import config_file, train_command
from lcjax.errors import InputError, unknown
from lcjax.plan.command import start_quietly
from lcjax.plan.compiling.aot import gpu_names
from lcjax.plan.planner import Planner
from lcjax.plan.progress import CompilationProgress
from lcjax.plan.workload import Workload

# Tokens of the documents on which reuse and near-duplicates are counted: enough, and takes seconds.
_AUDITED_TOKENS = 5_000_000


def run(arguments: DoctorArguments) -> int:
    """Examines and prints; returns the exit code.

    0: the run is possible as requested. 1: it is not. 2: bad input.
    """
    if arguments.gpu is not None and arguments.gpu not in gpu_names():
        raise InputError(unknown("--gpu", arguments.gpu, gpu_names()))
    start_quietly()
    findings = list(examine(arguments))
    line = train_command(arguments.flags(), arguments.data, findings)
    write_json({"findings": [dataclasses.asdict(finding) for finding in findings], "command": line}, arguments.json)
    if arguments.write_config is not None:
        with output_file(arguments.write_config) as temporary:
            temporary.write_text(config_file(line), encoding="utf-8")
    console = tables_console(arguments.json)
    for finding in findings:
        console.print(finding.question, style="bold", end=" " if finding.question else "  - ")
        console.print(finding.answer, markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n{line}", markup=False, highlight=False, soft_wrap=True)
    return 1 if any(finding.stops for finding in findings) else 0


def examine(arguments: DoctorArguments) -> Iterator[Finding]:
    """The findings, in the order of the questions."""
    config = weights.open_model_files(weights.resolve_model(arguments.model)).config
    tokens = arguments.max_seq_length
    workload = Workload(arguments.model, config, arguments.gpu or "h100-80gb", arguments.lora_r)
    corpus = load(arguments.corpus(), Console(stderr=True))
    yield on_rope(config, tokens)
    yield on_memory(arguments, workload)
    yield from on_documents(audit(corpus, tokens, _AUDITED_TOKENS))


def on_memory(arguments: DoctorArguments, workload: Workload) -> Finding:
    """From the plan if a GPU is given, otherwise from the rule."""
    if arguments.gpu is None:
        return by_rule(workload, arguments.max_seq_length)
    with NativeLog(), CompilationProgress() as progress, WhileCompiling():

        def replan(workload: Workload) -> Planner:
            host_gb = arguments.host_gb
            return Planner(workload, host_gb=host_gb, compiling=progress.compiling, compiled=progress.compiled)

        return by_plan(workload, arguments.max_seq_length, replan)
