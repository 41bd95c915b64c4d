"""A run in a few lines: what was trained, for how long, and how well."""

from __future__ import annotations

from pathlib import Path

from lcjax.report.records import RunRecords


def summary(run: RunRecords) -> dict[str, str]:
    """The lines, each by a short name; what the run has not recorded is left out."""
    lines = {"model": _model(run), "data": _data(run)}
    if run.steps:
        first, last = run.steps[0], run.steps[-1]
        lines["time"] = _time(run)
        lines["loss"] = f"{first['loss']:.4f} in the first step, {last['loss']:.4f} in the last"
    if run.evaluations:
        lines["held out"] = _held_out(run)
    return lines


def _model(run: RunRecords) -> str:
    name = Path(run.arguments["model"]).name or "the model"
    resolved = run.record.get("resolved", {})
    precision = [str(resolved[key]) for key in ("dtype",) if key in resolved] + list(resolved.get("quantize", ()))
    every = run.arguments.get("full_finetuning", False) or resolved.get("full_finetuning", False)
    trained = "every weight" if every else f"LoRA r={run.arguments['lora_r']}" if "lora_r" in run.arguments else "LoRA"
    if "trainable_parameters" in resolved:
        trained += f", {resolved['trainable_parameters']:,} trainable parameters"
    return f"{', '.join([name, *precision])}; {trained}"


def _data(run: RunRecords) -> str:
    data, length = run.record["data"], run.arguments["max_seq_length"]
    documents = f"{data['documents']:,} document{'s' * (data['documents'] != 1)}"
    held_out = f", {data['held_out_rows']:,} held out" if data["held_out_rows"] else ""
    return f"{documents}, {data['tokens']:,} tokens; {data['training_rows']:,} rows of {length:,}{held_out}"


def _time(run: RunRecords) -> str:
    last = run.steps[-1]
    tokens = sum(row["tokens"] for row in run.steps)
    taken = f"{last['step']:,} step{'s' * (last['step'] != 1)}, {tokens:,} tokens"
    if "epoch" in last:
        taken += f", {last['epoch']:.2g} epochs"
    if "elapsed_seconds" in last:
        taken += f" in {duration(last['elapsed_seconds'])}"
    return taken


def _held_out(run: RunRecords) -> str:
    first, last = run.evaluations[0], run.evaluations[-1]
    parts = [f"{first['eval_loss']:.4f} before"]
    if (best := run.best) and best.step != last["step"]:
        parts.append(f"{best.value:.4f} at step {best.step:,}, the best and saved")
    if last is not first:
        parts.append(f"{last['eval_loss']:.4f} after")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as "12.3 s", "3 min 5 s" or "2 h 4 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
