"""Records one training step of a large model on a GPU and says where its time goes, and how much of it a perfect one would save.

    python scripts/profile_step.py --tokens 65536 --policy offload --memory none --output profile
    python scripts/profile_step.py --draw profile/profile.json          # the picture again, on any machine

Writes OUTPUT/profile.json (seconds by kind and by kernel), OUTPUT/profile.png and the trace itself, which TensorBoard, Perfetto and
xprof open. The ideal time of a product or of attention is its arithmetic at `--ceiling`; of everything else it is none, since it
could run beside them. What is above the ideal is lost.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from lcjax_scripts.bench.steps.shape import Shape


@dataclasses.dataclass(frozen=True)
class Profile(Shape):
    """What to record."""

    tokens: int = 65_536
    """Tokens of the sequence."""
    policy: str = "offload"
    """Gradient checkpointing."""
    memory: str = "none"
    """As --memory of lcjax.train."""
    ceiling: float = 785.0
    """TFLOP/s of a large bfloat16 product on this GPU, measured."""
    output: Path = Path("profile")
    """The folder to write."""
    draw: Path | None = None
    """Draw this profile.json instead of recording."""


def main(argv: list[str] | None = None) -> int:
    profile = tyro.cli(Profile, args=argv, description=__doc__)
    if profile.draw is not None:
        result, picture = json.loads(profile.draw.read_text(encoding="utf-8")), profile.draw.with_suffix(".png")
    else:
        result, picture = record(profile), profile.output / "profile.png"
        (profile.output / "profile.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)
    try:
        from lcjax_scripts.bench.steps.picture import draw
    except ModuleNotFoundError as error:
        print(f"no picture: {error.name} is not installed here; --draw makes it elsewhere", file=sys.stderr)
        return 0
    draw(result, picture)
    print(f"picture {picture}")
    return 0


def record(profile: Profile) -> dict[str, Any]:
    """Takes a step to warm up and one to record; the result as profile.json has it."""
    import jax

    from lcjax_scripts.bench.steps import ideal, lcjax_side, trace

    traced = lcjax_side.trace_step(profile, profile.tokens, profile.policy, profile.memory)
    one_step = traced.compile().load()
    one_step()
    with jax.profiler.trace(str(profile.output)):
        one_step()
    events = trace.read(profile.output)
    seconds = trace.seconds_by_kind(events)
    by_name = list(trace.seconds_by_name(events).items())[:40]
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        **{
            name: getattr(profile, name)
            for name in ("model", "quantize", "lora_r", "tokens", "policy", "memory", "ceiling")
        },
        "seconds": seconds,
        "ideal_seconds": ideal.seconds(traced.config, profile, profile.tokens, by_name, profile.ceiling),
        "copies_seconds": {
            kind: sum(event.stop - event.start for event in events if event.kind == kind) / 1e9
            for kind in trace.HOST_COPIES
        },
        "kernels": [{"name": name, "count": count, "seconds": total} for name, (count, total) in by_name],
    }


def show(result: dict[str, Any]) -> None:
    """Prints the table, the largest loss first, and the longest kernels."""
    seconds, ideal = result["seconds"], result["ideal_seconds"]
    whole = sum(seconds.values())
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("", "seconds", "share", "ideal", "lost", title=f"{result['tokens']:,} tokens, {whole:.2f} s")
    for kind, spent in sorted(seconds.items(), key=lambda item: ideal.get(item[0], 0.0) - item[1]):
        best = ideal.get(kind, 0.0)
        table.add_row(kind, f"{spent:.3f}", f"{spent / whole:.1%}", f"{best:.3f}", f"{spent - best:.3f}")
    console.print(table)
    for kind, spent in result["copies_seconds"].items():
        console.print(f"{kind}: {spent:.3f} s in all, beside kernels or not")
    for kernel in result["kernels"][:15]:
        console.print(f"{kernel['seconds']:8.3f} s  {kernel['count']:6}  {kernel['name'][:100]}")


if __name__ == "__main__":
    sys.exit(main())
