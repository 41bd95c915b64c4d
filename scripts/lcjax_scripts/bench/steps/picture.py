"""A bar chart with the measured and the ideal time of each kind of work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws a profile.json."""
    seconds, ideal = result["seconds"], result["ideal_seconds"]
    kinds = sorted((kind for kind in seconds if seconds[kind] > 0), key=lambda kind: seconds[kind])
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(kinds) + 1.4), layout="constrained")
    axes.barh(kinds, [seconds[kind] for kind in kinds], color="#d9822b", label="taken")
    axes.barh(kinds, [min(ideal.get(kind, 0.0), seconds[kind]) for kind in kinds], color="#2b6cb0", label="ideal")
    whole = sum(seconds.values())
    for row, kind in enumerate(kinds):
        axes.text(seconds[kind], row, f" {seconds[kind]:.2f} s, {seconds[kind] / whole:.0%}", va="center")
    axes.margins(x=0.18)
    axes.set_xlabel("seconds")
    axes.set_title(
        f"{result['model']}, {result['quantize']}, {result['tokens']:,} tokens, {result['policy']} "
        f"{result['memory']}: {whole:.1f} s on {result['device']}",
        fontsize=10,
    )
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
