"""The process of one side: `python -m ... worker jax|torch SECONDS < jobs > results`.

Reads one job per line and writes one result per line, both as JSON. The result of a job that fails
is its error.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from lcjax_scripts.bench.kernels.jobs import Job, Result


def main() -> int:
    side, seconds = sys.argv[1], float(sys.argv[2])
    # Import only one of the two libraries, so that the other takes no memory.
    if side == "jax":
        from lcjax_scripts.bench.kernels.jax_side import provenance, run
    else:
        from lcjax_scripts.bench.kernels.torch_side import provenance, run
    print(json.dumps(provenance()), flush=True)
    for line in sys.stdin:
        job = Job(**json.loads(line))
        try:
            result = run(job, seconds)
        except Exception as error:  # any failure of an implementation is a result
            result = Result(
                job, None, None, f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            )
        print(json.dumps(dataclasses.asdict(result)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
