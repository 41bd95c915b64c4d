"""What `lcjax plan` does once its flags are parsed: compile, search, report."""

from __future__ import annotations

import dataclasses
import os

import jax

from lcjax.cli.native_log import NativeLog
from lcjax.cli.outputs import output_file, write_json
from lcjax.cli.signals import WhileCompiling
from lcjax.cli.terminal import say, tables_console
from lcjax.config.parallel.mesh import MeshRequest
from lcjax.errors import InputError
from lcjax.plan.arguments import PlanArguments
from lcjax.plan.compiling.aot import gpu_memory_bytes, gpu_names, gpu_sharding
from lcjax.plan.models import config_of
from lcjax.plan.planner import Plan, Planner
from lcjax.plan.plot import draw, lengths
from lcjax.plan.progress import CompilationProgress
from lcjax.plan.remedies import remedies_of_plan
from lcjax.plan.report import buffer_table, gpu_table, headline, plan_table, trial_table
from lcjax.plan.workload import Workload
from lcjax.weights.peft import load_adapter_config


def run(arguments: PlanArguments) -> int:
    """Plans, writes files and prints tables.

    Returns the exit code: 0 if the step fits, 1 if it does not, 2 for invalid input.
    """
    start_quietly()
    with NativeLog(), CompilationProgress() as progress, WhileCompiling():
        return Command(arguments, progress).run()


def start_quietly() -> None:
    """Makes JAX use only the CPU and silences XLA's log; call it before the first compilation."""
    # JAX_PLATFORMS would have no effect any more, since JAX has been imported.
    jax.config.update("jax_platforms", "cpu")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def workload_of(arguments: PlanArguments) -> Workload:
    """The run to plan.

    Raises:
      InputError: an unknown model or a value out of range.
    """
    config = config_of(arguments.model)
    lora_r, target_modules = arguments.lora_r, arguments.target_modules
    if arguments.adapter is not None:
        lora = load_adapter_config(arguments.adapter, config)
        lora_r, target_modules = lora.r, lora.target_modules
    return Workload(
        model=arguments.model,
        config=config,
        gpu=arguments.gpu,
        lora_r=lora_r,
        target_modules=target_modules,
        quantize=arguments.quantize,
        use_gradient_checkpointing=arguments.use_gradient_checkpointing,
        memory=arguments.memory,
        loss_chunk=arguments.loss_chunk,
        attention=arguments.attention,
        optimizer_memory=arguments.optimizer_memory,
        gpus=arguments.gpus,
        hosts=arguments.hosts,
        mesh=MeshRequest.of(arguments),
        per_device_train_batch_size=arguments.per_device_train_batch_size,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
    )


class Command:
    """One invocation of the command line."""

    def __init__(self, arguments: PlanArguments, progress: CompilationProgress):
        self.arguments = arguments
        self.workload = workload_of(arguments)
        self.progress = progress
        self.console = tables_console(arguments.json)

    def run(self) -> int:
        """Plans, writes files and prints tables; returns the exit code."""
        gpu_sharding(self.workload.gpu, self.workload.gpus, self.workload.hosts)
        if self.arguments.table:
            return self._every_gpu()
        planner = self.planner(self.workload)
        plan = self._chosen(planner)
        if self.arguments.plot:
            plans = [planner.plan(tokens) for tokens in lengths(plan.max_seq_length, self.workload.length_step)]
            with output_file(self.arguments.plot) as temporary:
                draw(plans, temporary)
        write_json(plan.as_json(), self.arguments.json)
        say(self.console, headline(plan))
        self.console.print(plan_table(plan), *([trial_table(plan.tuning)] if plan.tuning else []), buffer_table(plan))
        if not plan.fits:
            found = list(remedies_of_plan(plan, self.planner))
            say(
                self.console,
                "it would fit with " + ", or ".join(found)
                if found
                else "none of the changes that were tried makes it fit",
            )
        return 0 if plan.fits else 1

    def planner(self, workload: Workload) -> Planner:
        """A planner with the budget of the command line; --vram-gb applies only to --gpu."""
        vram_gb = self.arguments.vram_gb if workload.gpu == self.arguments.gpu else None
        return Planner(workload, vram_gb, self.arguments.pinnable_gb, self.progress.compiling, self.progress.compiled)

    def _chosen(self, planner: Planner) -> Plan:
        if not self.arguments.find_max:
            return planner.plan(self.arguments.max_seq_length or self.workload.config.max_position_embeddings)
        return planner.longest() or planner.plan(self.workload.length_step)

    def _every_gpu(self) -> int:
        rows: list[tuple[str, Plan | str]] = []
        smaller: Plan | None = None
        for gpu in sorted(gpu_names(), key=gpu_memory_bytes):
            planner = self.planner(dataclasses.replace(self.workload, gpu=gpu))
            guess = smaller.length_within(planner.budget.device) if smaller else None
            try:
                plan = planner.longest(guess=guess)
            except InputError as error:
                rows.append((gpu, str(error)))
                continue
            rows.append((gpu, plan or f"not even {self.workload.length_step:,} tokens fit"))
            smaller = plan or smaller
        table = {"model": self.workload.model, "rows": [row.as_json() for _, row in rows if isinstance(row, Plan)]}
        write_json(table, self.arguments.json)
        self.console.print(gpu_table(rows, title=f"the longest context for {self.workload.describe()}"))
        return 0
