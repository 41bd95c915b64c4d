"""Compiles for a GPU on a machine without one; gives exact memory figures and real machine code.

    gpu = gpu_sharding("h100-80gb")
    compiled = compile_lowered(jax.jit(step).lower(*abstract(arguments, gpu)))
    compiled.memory_analysis()  # the bytes that the step would take on that GPU

Nothing can be run: the devices only describe to the compiler what to compile for. They exist in
addition to the real devices of the process, so JAX may already be running on the CPU. Each GPU is a
file `targets/NAME.txtpb`, a GpuTargetConfigProto in text form with the values that the CUDA driver
reports.

Source: `jax.experimental.topologies` and OpenXLA's ahead-of-time compilation.
"""

from __future__ import annotations

import contextlib
import dataclasses
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

from lcjax.config.parallel.mesh import ONE_DEVICE, MeshShape
from lcjax.errors import InputError, unknown
from lcjax.pallas.triton.block_sizes import Gpu, traced_for, traced_with
from lcjax.parallel.devices import Devices

_TARGETS = resources.files("lcjax.plan") / "targets"
_SUFFIX = ".txtpb"
# Seen with JAX 0.11.2 on a machine with a GPU, when compiling for absent ones: XLA finds no blocks
# for some of the products that it compiles with Triton. cuBLAS computes them instead.
_NO_CONFIGURATION = "No supported config found"
_WITHOUT_TRITON_PRODUCTS = {"xla_gpu_enable_triton_gemm": False}

# JAX 0.11's Pallas compiles only for GPUs whose names it knows.
_SAME_ARCHITECTURE = {"NVIDIA L40S": "NVIDIA L40", "NVIDIA GeForce RTX 3090": "NVIDIA A10"}


class GpuSharding(NamedSharding):
    """A sharding over absent GPUs that has a memory kind, "device" or "pinned_host".

    A `NamedSharding` cannot have one here: JAX asks the devices which kinds they have, and absent
    devices have none.
    """

    def __init__(self, mesh: Mesh | AbstractMesh, spec: PartitionSpec, *, memory_kind: str = "device"):
        super().__init__(mesh, spec)
        self._kind = memory_kind

    @property
    def memory_kind(self) -> str:
        return self._kind

    def with_memory_kind(self, kind: str) -> GpuSharding:
        return GpuSharding(self.mesh, self.spec, memory_kind=kind)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GpuSharding) and self._kind == other._kind and super().__eq__(other)

    def __hash__(self) -> int:
        return hash((super().__hash__(), self._kind))


def gpu_names() -> tuple[str, ...]:
    """The names of the GPUs that can be compiled for, in alphabetical order."""
    files = (file.name for file in _TARGETS.iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX)))


def gpu_memory_bytes(gpu: str) -> int:
    """The bytes of memory of one GPU, as the CUDA driver reports them.

    Raises:
      InputError: an unknown name.
    """
    [size] = re.findall(r"^\s*device_memory_size: (\d+)", _target(gpu), re.MULTILINE)
    return int(size)


def kernels_of(gpu: str) -> contextlib.AbstractContextManager[None]:
    """A context in which operations choose their kernels for a GPU, without any device.

    Raises:
      InputError: an unknown name.
    """
    target = _target(gpu)
    [shared_memory] = re.findall(r"^\s*shared_memory_per_block_optin: (\d+)", target, re.MULTILINE)
    [(major, minor)] = re.findall(r"cuda_compute_capability {\s*major: (\d+)\s*minor: (\d+)", target)
    return traced_with(Gpu(int(shared_memory), f"{major}.{minor}"))


def gpu_of_kind(kind: str) -> str | None:
    """The name of the GPU whose `jax.Device.device_kind` is `kind`; None if it is not listed.

    Cards with other clocks or less power, such as those for PCI Express, are other kinds.
    """
    editions = ("", " Server Edition", " Workstation Edition")
    return next((gpu for gpu in gpu_names() if kind in [_kind(gpu) + edition for edition in editions]), None)


def _kind(gpu: str) -> str:
    [kind] = re.findall(r'^device_description_str: "(.*)"', _target(gpu), re.MULTILINE)
    return kind


def gpu_sharding(gpu: str, gpus: int = 1, hosts: int = 1, shape: MeshShape = ONE_DEVICE) -> GpuSharding:
    """A sharding that replicates an array on every GPU of several hosts.

    Args:
      gpu: one of `gpu_names()`.
      gpus: number of GPUs in each host.
      hosts: number of hosts.
      shape: the mesh that the GPUs form; a single axis for one device.

    Raises:
      InputError: an unknown name, or a JAX that cannot compile for a GPU. The message says what to
        install or to set.
    """
    target = _target(gpu)
    try:
        # Partitions x hosts x GPUs per host.
        topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology=f"1x{hosts}x{gpus}")
    except NotImplementedError as error:
        raise InputError(f"gpu={gpu!r} cannot be compiled for on this machine: {_remedy()}") from error
    if (mesh := Devices.of(shape, topology.devices).mesh) is None:
        mesh = topologies.make_mesh(topology, (hosts * gpus,), ("gpu",))
    return GpuSharding(mesh, PartitionSpec())


def abstract(tree: Any, sharding: Sharding) -> Any:
    """The shapes and dtypes of a tree's leaves as ShapeDtypeStructs that `sharding` places."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


@contextlib.contextmanager
def lowering_for(sharding: Sharding) -> Iterator[None]:
    """A context in which a step for the devices of `sharding` must be lowered.

    It does nothing if they are devices of this process.
    """
    if not isinstance(sharding, GpuSharding):
        yield
        return
    # Since JAX 0.11, Pallas reads from the surrounding mesh which GPU it lowers for.
    with traced_for(next(iter(sharding.device_set))), use_abstract_mesh(_known_to_pallas(sharding.mesh.abstract_mesh)):
        yield


def _known_to_pallas(mesh: AbstractMesh) -> AbstractMesh:
    """The mesh with the name of a GPU of the same architecture, if Pallas refuses the GPU's own."""
    device = getattr(mesh, "abstract_device", None)
    if device is None or device.device_kind not in _SAME_ARCHITECTURE:
        return mesh
    known = dataclasses.replace(device, device_kind=_SAME_ARCHITECTURE[device.device_kind])
    return mesh.update(abstract_device=known)


def compile_lowered(lowered: jax.stages.Lowered, options: dict[str, Any] | None = None) -> jax.stages.Compiled:
    """Compiles a lowered function for an absent GPU.

    `options` are XLA's, e.g. {"xla_dump_to": folder}. The result is not written to JAX's persistent
    compilation cache, because it could not be loaded from there without its GPU.
    """
    shortest = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, shortest)
    jax.config.update(shortest, math.inf)
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if _NO_CONFIGURATION not in str(error):
            raise
        return lowered.compile(compiler_options={**(options or {}), **_WITHOUT_TRITON_PRODUCTS})
    finally:
        jax.config.update(shortest, before)


def _target(gpu: str) -> str:
    if gpu not in gpu_names():
        raise InputError(unknown("gpu", gpu, gpu_names()))
    return (_TARGETS / f"{gpu}{_SUFFIX}").read_text(encoding="utf-8")


def _remedy() -> str:
    """What the user can do if JAX has no CUDA compiler."""
    if find_spec("jax_cuda13_plugin") is None:
        # --no-deps installs only the compiler, a tenth of what a machine with a GPU needs.
        return (
            f"run `pip install --no-deps jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__} "
            "nvidia-cuda-nvcc nvidia-nvvm nvidia-nvjitlink`"
        )
    return f"set JAX_PLATFORMS=cpu before JAX starts, and keep jax-cuda13-plugin at jax's version, {jax.__version__}"
