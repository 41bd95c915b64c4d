"""NVIDIA's assembler and disassembler, from Python wheels or from an installed CUDA toolkit."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from lcjax.errors import InputError

# The path of each program within the directory of a Python package, in order of preference.
_PTXAS = (("nvidia", "cu13/bin/ptxas"),)
_NVDISASM = (("nvidia", "cu13/bin/nvdisasm"), ("triton", "backends/nvidia/bin/nvdisasm"))


def assemble(ptx: Path, cubin: Path, *, architecture: str) -> str:
    """Assembles PTX into machine code and returns the report of `ptxas -v`.

    Raises:
      InputError: ptxas is missing.
    """
    ptxas = _find("ptxas", _PTXAS, "pip install --no-deps nvidia-cuda-nvcc")
    return _run([ptxas, "-v", f"-arch={architecture}", str(ptx), "-o", str(cubin)]).stderr


def disassemble(cubin: Path) -> str:
    """Returns the disassembly of a cubin."""
    nvdisasm = _find("nvdisasm", _NVDISASM, "pip install --no-deps nvidia-cuda-nvdisasm")
    return _run([nvdisasm, "--print-code", str(cubin)]).stdout


def _find(program: str, places: tuple[tuple[str, str], ...], remedy: str) -> str:
    for package, path in places:
        spec = find_spec(package)  # finds the directory without importing the package
        for directory in (spec and spec.submodule_search_locations) or ():
            if (Path(directory) / path).is_file():
                return str(Path(directory) / path)
    if found := shutil.which(program):
        return found
    raise InputError(f"{program} is missing: {remedy}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done
