"""Profiles one training step of a large model on a GPU, and compares it with an ideal step.

    python scripts/profile_step.py --tokens 65536 --policy offload --memory none --output profile
    python scripts/profile_step.py --draw profile/profile.json  # draw again, on any machine

Writes OUTPUT/profile.json (seconds by kind and by kernel), OUTPUT/profile.png, and the trace, which
TensorBoard, Perfetto and xprof can open. The ideal time of matrix products and attention is their
FLOPs divided by `--ceiling`. All other work has an ideal time of zero, because it could overlap
with them. Time above the ideal is lost.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import tyro

from lcjax.cli.entry import entry_point
from lcjax_scripts.bench.steps.profile import record, show
from lcjax_scripts.bench.steps.shape import Shape


@dataclasses.dataclass(frozen=True)
class Profile(Shape):
    """The step to record."""

    tokens: int = 65_536
    """Tokens of the sequence."""
    policy: str = "offload"
    """Gradient checkpointing policy."""
    memory: str = "none"
    """The same as --memory of lcjax.train."""
    ceiling: float = 785.0
    """Measured TFLOP/s of a large bfloat16 matrix product on this GPU."""
    output: Path = Path("profile")
    """The folder to write to."""
    draw: Path | None = None
    """Draw this profile.json instead of recording."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    profile = tyro.cli(Profile, args=argv, description=__doc__)
    if profile.draw is not None:
        result, picture = json.loads(profile.draw.read_text(encoding="utf-8")), profile.draw.with_suffix(".png")
    else:
        arguments = profile.tokens, profile.policy, profile.memory, profile.ceiling, profile.output
        result, picture = record(profile, *arguments), profile.output / "profile.png"
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


if __name__ == "__main__":
    sys.exit(main())
