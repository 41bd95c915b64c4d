"""Plans as tables for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from lcjax.plan.choosing.tuner import Tuning
from lcjax.plan.compiling.memory import GIB, MARGIN_BYTES, gib
from lcjax.plan.planner import Plan


def headline(plan: Plan) -> str:
    """One line that says whether the step fits."""
    workload, memory = plan.workload, plan.memory
    mesh = plan.settings.execution.mesh
    each = "the GPU" if mesh.size == 1 else "each GPU"
    needs = f"{gib(memory.device_bytes)} of {gib(plan.budget.device)} on {each}"
    if memory.host_bytes:
        needs += f", {gib(memory.host_bytes * min(workload.gpus, mesh.size))} of pinned host memory"
        needs += "" if workload.hosts == 1 else " on each host"
    gpu = workload.gpu if mesh.size == 1 else f"{mesh.size} x {workload.gpu}"
    verdict = "fits" if plan.fits else "does not fit"
    return f"{workload.model}, {plan.max_seq_length:,} tokens, {gpu}: {verdict} ({needs})"


def plan_table(plan: Plan) -> Table:
    """The figures of one plan."""
    memory, flops = plan.memory, plan.flops
    table = Table(show_header=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    batch = memory.argument_bytes - memory.weights_bytes - memory.state_bytes
    limit = plan.budget.device
    host = "" if plan.budget.host is None else f"of {gib(plan.budget.host)}"
    step = "step" if plan.workload.rows == 1 else "a sequence"
    mesh = plan.settings.execution.mesh
    if mesh.size > 1:
        host = f"a GPU {host}".strip()
    devices = f"{mesh.describe()}, {plan.settings.local_tokens:,} tokens of a sequence on each"
    for name, figure, note in (
        *([("GPUs", str(mesh.size), devices)] if mesh.size > 1 else []),
        ("frozen weights", gib(memory.weights_bytes), _frozen(plan)),
        ("trained weights, optimizer", gib(memory.state_bytes), _trained(plan)),
        ("batch, outputs", gib(batch + memory.output_bytes), ""),
        ("temporaries", gib(memory.temp_bytes), f"gradient checkpointing {plan.policy}, attention {plan.attention}"),
        ("layers", "", "without tiles" if plan.layers == "none" else f"in tiles: {plan.layers}"),
        ("loss", "", f"{plan.loss_chunk:,} tokens at a time"),
        ("device", gib(memory.device_bytes), f"{plan.device_load:.0%} of {gib(limit)}; {gib(limit - memory.device_bytes)} left"),
        ("margin", gib(MARGIN_BYTES), "reserved for the CUDA context and the allocator"),
        ("pinned host", gib(memory.host_bytes), host),
        ("model FLOPs", f"{flops.total / 1e15:,.2f} P", f"attention {flops.attention / flops.total:.0%}"),
        (step, duration(plan.seconds), f"estimated: {plan.utilization:.0%} of the GPU's dense bfloat16 peak"),
        ("kernels", str(sum(plan.kernels.values())), ", ".join(f"{n} x {name}" for name, n in plan.kernels.items())),
        *_communication(plan),
    ):  # fmt: skip
        table.add_row(name, figure, Text(note))
    return table


def _communication(plan: Plan) -> list[tuple[str, str, str]]:
    """The row about collective operations; none for one GPU."""
    if not plan.collectives:
        return []
    calls = sum(row.calls for row in plan.collectives)
    return [("collectives", str(calls), ", ".join(map(str, plan.collectives)))]


def trial_table(tuning: Tuning) -> Table:
    """The settings that were compiled to choose from, the fastest first."""
    table = Table(title="settings in the order of their estimated time, fastest first", title_justify="left")
    for name in ("gradient checkpointing, layers", "step", "device", "host"):
        table.add_column(name, justify="left" if name.startswith("gradient") else "right", no_wrap=True)
    table.add_column("")
    for trial in tuning.trials:
        memory = trial.memory
        chosen = trial.candidate == tuning.chosen
        if memory is None:
            verdict = f"needs at least as much memory as {trial.ruled_out_by}"
        elif chosen:
            verdict = "chosen" if trial.fits else "needs the least memory"
        else:
            verdict = "fits" if trial.fits else "does not fit"
        figures = ("", "") if memory is None else (gib(memory.device_bytes), gib(memory.host_bytes))
        table.add_row(
            Text(str(trial.candidate)), duration(trial.seconds), *figures, verdict, style="bold" if chosen else ""
        )
    return table


def buffer_table(plan: Plan) -> Table:
    """The largest buffers of one plan."""
    table = Table(title="largest buffers at the step's peak of memory", title_justify="left")
    table.add_column("buffer")
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    table.add_column("made by")
    for buffer in plan.buffers:
        place = " (host)" if buffer.on_host else ""
        table.add_row(Text(buffer.name + place), f"{buffer.bytes / GIB:.2f}", Text(buffer.shape), Text(buffer.source))
    return table


def gpu_table(rows: Iterable[tuple[str, Plan | str]], title: str) -> Table:
    """The longest context that fits on each GPU; a row without a plan gives the reason."""
    table = Table(title=title, title_justify="left")
    table.add_column("GPU", no_wrap=True)
    for name in ("limit", "longest context", "device", "host", "step"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("policy")
    for gpu, plan in rows:
        if isinstance(plan, str):
            table.add_row(gpu, "", "", "", "", "", Text(plan))
            continue
        memory = plan.memory
        table.add_row(
            gpu,
            gib(plan.budget.device),
            f"{plan.max_seq_length:,}",
            gib(memory.device_bytes),
            gib(memory.host_bytes),
            duration(plan.seconds),
            plan.policy,
        )
    return table


def duration(seconds: float) -> str:
    """Seconds, with a unit that suits their number."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _frozen(plan: Plan) -> str:
    on_host = plan.memory.host_weights_bytes
    elsewhere = f", {gib(on_host)} of embedding and head in host memory" if on_host else ""
    return f"{plan.workload.weights}{elsewhere}"


def _trained(plan: Plan) -> str:
    trained = f"LoRA r={plan.workload.lora_r}" if plan.workload.lora_r else "every weight"
    return f"{trained}, AdamW{' with its state in host memory' if plan.memory.host_state_bytes else ''}"
