"""A process that runs the jobs of one side as they come: `... worker jax|torch SECONDS < jobs > results`.

One line of JSON a job, one a result; a job that cannot run gives its error in a line.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from lcjax_scripts.bench.kernels.jobs import Job, Result


def main() -> int:
    side, seconds = sys.argv[1], float(sys.argv[2])
    # Only one of the two libraries is loaded, so neither takes the other's memory.
    if side == "jax":
        from lcjax_scripts.bench.kernels.jax_side import provenance, run
    else:
        from lcjax_scripts.bench.kernels.torch_side import provenance, run
    print(json.dumps(provenance()), flush=True)
    for line in sys.stdin:
        job = Job(**json.loads(line))
        try:
            result = run(job, seconds)
        except Exception as error:  # the implementation may lack anything: that is a result too
            result = Result(
                job, None, None, f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            )
        print(json.dumps(dataclasses.asdict(result)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
