"""Compiles Triton's kernels in a separate process, which imports torch and triton, but not JAX."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from lcjax_scripts.codegen.compiled import CompiledKernel, load
from lcjax_scripts.paths import python_path


def has_triton() -> bool:
    return find_spec("triton") is not None and find_spec("torch") is not None


@contextmanager
def triton_process(gpu: str, head_dims: Sequence[int], dtype: str) -> Iterator[Callable[[], list[CompiledKernel]]]:
    """Starts compiling, and yields a function that waits for the kernels and returns them.

    There are no kernels if Triton is not installed.
    """
    if not has_triton():
        yield list
        return
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "kernels.json")
        dims = ",".join(map(str, head_dims))
        command = [sys.executable, "-m", "lcjax_scripts.codegen.compile_triton", gpu, dims, dtype, str(output)]
        # Compile even if the caller interprets Triton's kernels.
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        errors = Path(folder, "stderr")
        with errors.open("w") as stderr:
            process = subprocess.Popen(command, env=environment | {"PYTHONPATH": python_path()}, stderr=stderr)

        def kernels() -> list[CompiledKernel]:
            if process.wait():
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read_text()}")
            return load(output)

        try:
            yield kernels
        finally:
            process.kill()
            process.wait()
