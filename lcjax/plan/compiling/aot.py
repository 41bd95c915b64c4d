"""Compiling for a GPU that is not there: exact memory figures and real machine code on a machine without one.

    gpu = gpu_sharding("h100-80gb")
    compiled = compile_lowered(jax.jit(step).lower(*abstract(arguments, gpu)))
    compiled.memory_analysis()  # the bytes that the step would take on that GPU

Nothing can be run: the devices only tell the compiler what to compile for. They stand beside the real devices of the process,
so JAX may already be running on the CPU. Each GPU is a file `targets/NAME.txtpb`, a GpuTargetConfigProto in text form, whose
figures are what the CUDA driver reports for it.

Source: `jax.experimental.topologies` and OpenXLA's ahead-of-time compilation.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from importlib import resources
from importlib.util import find_spec
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import (
    AbstractMesh,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    use_abstract_mesh,
)

from lcjax.errors import InputError, unknown
from lcjax.pallas.triton.block_sizes import traced_for

_TARGETS = resources.files("lcjax.plan") / "targets"
_SUFFIX = ".txtpb"


class GpuSharding(NamedSharding):
    """A sharding that knows a memory of GPUs that are not there, as one of real GPUs does: "device" or "pinned_host".

    JAX asks a device whether it has a memory of that kind and takes the answer of one that is not there for a no.
    """

    def __init__(self, mesh: Mesh | AbstractMesh, spec: PartitionSpec, kind: str = "device"):
        super().__init__(mesh, spec)
        self._kind = kind

    @property
    def memory_kind(self) -> str:
        return self._kind

    def with_memory_kind(self, kind: str) -> GpuSharding:
        return GpuSharding(self.mesh, self.spec, kind)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GpuSharding) and self._kind == other._kind and super().__eq__(other)

    def __hash__(self) -> int:
        return hash((super().__hash__(), self._kind))


def gpu_names() -> tuple[str, ...]:
    """The GPUs that can be compiled for, in alphabetical order."""
    files = (file.name for file in _TARGETS.iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX)))


def gpu_memory_bytes(gpu: str) -> int:
    """The memory of one GPU of that name as the CUDA driver reports it. Raises InputError for an unknown name."""
    [size] = re.findall(r"^\s*device_memory_size: (\d+)", _target(gpu), re.MULTILINE)
    return int(size)


def gpu_sharding(gpu: str, gpus: int = 1, hosts: int = 1) -> NamedSharding:
    """Places an array, whole, on every GPU of `hosts` machines with `gpus` GPUs of that name each.

    Args:
      gpu: one of `gpu_names()`.

    Raises:
      InputError: an unknown name, or a JAX that cannot compile for a GPU; the message says what to install or to set.
    """
    target = _target(gpu)
    try:
        # Partitions x hosts x GPUs of a host.
        topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology=f"1x{hosts}x{gpus}")
    except NotImplementedError as error:
        raise InputError(f"gpu={gpu!r} cannot be compiled for: {_remedy()}") from error
    return GpuSharding(topologies.make_mesh(topology, (hosts * gpus,), ("gpu",)), PartitionSpec())


def abstract(tree: Any, sharding: Sharding) -> Any:
    """The shapes and dtypes of a tree of arrays (or of ShapeDtypeStructs), placed by `sharding`; values are not looked at."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


@contextlib.contextmanager
def lowering_for(sharding: Sharding) -> Iterator[None]:
    """What a step for the devices of `sharding` is lowered in; it changes nothing for devices of this process."""
    if not isinstance(sharding, GpuSharding):
        yield
        return
    # From 0.11 on, Pallas asks the mesh around it what GPU it lowers for.
    with traced_for(next(iter(sharding.device_set))), use_abstract_mesh(sharding.mesh.abstract_mesh):
        yield


def compile_lowered(lowered: jax.stages.Lowered, options: dict[str, Any] | None = None) -> jax.stages.Compiled:
    """The program of a GPU that is not there. `options` are XLA's, e.g. {"xla_dump_to": folder}.

    It stays out of the folder in which JAX may keep compiled programs: from there it could not be loaded without its GPU.
    """
    shortest = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, shortest)
    jax.config.update(shortest, math.inf)
    try:
        return lowered.compile(compiler_options=options)
    finally:
        jax.config.update(shortest, before)


def _target(gpu: str) -> str:
    if gpu not in gpu_names():
        raise InputError(unknown("gpu", gpu, gpu_names()))
    return (_TARGETS / f"{gpu}{_SUFFIX}").read_text(encoding="utf-8")


def _remedy() -> str:
    """What a user does when JAX knows no CUDA compiler."""
    if find_spec("jax_cuda13_plugin") is None:
        # --no-deps: the compiler alone, a tenth of what a machine with a GPU needs.
        return (
            f"run `pip install --no-deps jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__} "
            "nvidia-cuda-nvcc nvidia-nvvm nvidia-nvjitlink`"
        )
    return f"set JAX_PLATFORMS=cpu before JAX starts, and keep jax-cuda13-plugin at jax's version, {jax.__version__}"
