"""Two processes in which one or the other fails before they train: what each of them raises.

Usage: python -m tests.support.failing_processes ADDRESS NUMBER FOLDER. The process's own folder is
FOLDER/NUMBER. Prints JSON: the message of each case.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from lcjax.data import check_data_paths
from lcjax.errors import InputError
from lcjax.parallel.processes import any_of, from_first, leave_together, processes_per_host, require_same, together
from lcjax.train.arguments import RunArguments
from lcjax.train.checkpoints.folder import open_run_folder
from tests.support.processes import DEADLINE_S
from tests.support.several_processes import free_port


def messages_of_both(folder: Path) -> list[dict[str, str]]:
    """What process 0 and process 1 raise in each case of `_cases`."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "tests.support.failing_processes", address]
    both = []
    for number in "01":
        (folder / number).mkdir()
        both.append(subprocess.Popen([*command, number, str(folder)], stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=DEADLINE_S)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main() -> None:
    address, number, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    jax.distributed.initialize(address, 2, number)
    os.chdir(folder / str(number))
    found = {}
    for name, case in _cases(number).items():
        found[name] = "nothing"
        try:
            together(case)
        except InputError as error:
            found[name] = str(error)
    assert from_first(number) == 0  # they still understand each other
    leave_together()
    print(json.dumps(found))


def _cases(number: int) -> dict[str, Callable[[], object]]:
    """Functions that fail in one process while the other exchanges something else."""

    def fail_in(process: int, otherwise: Callable[[], object]) -> Callable[[], object]:
        def case():
            if number == process:
                raise InputError("no disk")
            return otherwise()

        return case

    def open_folder(output_dir: str):
        with contextlib.ExitStack() as opened:
            opened.enter_context(open_run_folder(Path(output_dir), RunArguments()))

    exchanges = {
        "from_first": lambda: from_first(3),
        "any_of": lambda: any_of(3),
        "require_same": lambda: require_same({"x": 3}),
        "processes_per_host": processes_per_host,
        "together": lambda: together(lambda: 3),
        "nothing else": lambda: 3,
    }
    Path("data.txt").write_text("text")
    Path("folder").write_text("a file")
    return {
        **{f"{name}, process {process}": fail_in(process, exchanges[name]) for name in exchanges for process in (0, 1)},
        "both": lambda: (_ for _ in ()).throw(InputError(f"number {number}")),
        "data": lambda: check_data_paths(("data.txt" if number == 0 else "other.txt",)),
        "a folder of its own": lambda: open_folder("run"),
        "a file in the first": lambda: open_folder("folder" if number == 0 else "run"),
    }


if __name__ == "__main__":
    main()
