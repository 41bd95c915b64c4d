"""All uses of Pallas' Mosaic GPU backend that depend on JAX's version or on the interpreter.

Programs have warpgroups of 128 threads, of which all but the last compute. The warps of the last
one copy between global and shared memory, and give up most of their registers to the others. The
parts wait for each other at named barriers of the hardware.

JAX's interpreter for CPUs, from 0.11.2 on, runs these kernels inside `interpreted()`. It does not
model warps, named barriers between warps, products with an operand in registers, or sums in global
memory. Each function below that differs there says how.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm, nvvm

VERSION = jax.__version_info__

TILE = plgpu.Layout.WGMMA
"""The layout of a [64, N] tile that a product reads from registers or leaves there."""
ROWS, COLUMNS = TILE.reduce(1), TILE.reduce(0)
"""The layouts of one number per row and per column of a tile."""

COMPUTING = 2
"""Warpgroups that compute, where a kernel does not choose; the next one copies."""
WARPGROUP, WARP = 128, 32

# Of a thread that computes and of one that copies, by the number of computing warpgroups.
_REGISTERS = {2: (240, 24), 3: (160, 32)}
_FIRST_FREE_BARRIER = 4  # Mosaic itself uses 0 to 3.
_LAST_BARRIER = 15

_INTERPRETED: contextvars.ContextVar[bool] = contextvars.ContextVar("interpreted", default=False)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Kernels traced in this context are for the interpreter of Mosaic GPU kernels."""
    token = _INTERPRETED.set(True)
    try:
        yield
    finally:
        _INTERPRETED.reset(token)


def is_interpreted() -> bool:
    return _INTERPRETED.get()


def launch(
    program: Callable[..., None],
    *arguments: Any,
    name: str,
    grid: dict[str, int],
    outputs: Sequence[jax.ShapeDtypeStruct],
    scratch: dict[str, Any],
    copying_warps: int,
    computing: int = COMPUTING,
) -> Any:
    """Calls `program(*arguments, *outputs, **scratch)` with references, once per point of the grid.

    Args:
      arguments: arrays, or references of `jax.new_ref`, which the program may write to.
      grid: sizes of the axes by name, the slowest first, as in C; programs start in this order. A
        name must not be an axis of the mesh of devices: the compiler would take the device's index.
      copying_warps: how many warps of the last warpgroup have work.
      computing: how many warpgroups compute.
    """

    def body(*refs):
        def with_scratch(*scratch_refs):
            program(*refs, **dict(zip(scratch, scratch_refs, strict=True)))

        pl.run_scoped(with_scratch, *scratch.values(), collective_axes="warpgroup")

    assert not set(grid) & set(jax.sharding.get_abstract_mesh().axis_names), f"{[*grid]} are axes of devices, too"
    # `plgpu.kernel` is this with a custom_vmap around it, through which JAX 0.10 cannot pass a
    # reference.
    warpgroups = computing + (copying_warps if is_interpreted() else 1)
    mesh = plgpu.Mesh(
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=warpgroups,
        thread_name="warpgroup",
        kernel_name=name,
    )
    # The kernels place their own barriers and fences; automatic ones would serialize the products.
    parameters = plgpu.CompilerParams(approx_math=True, unsafe_no_auto_barriers=True, reduction_scratch_bytes=0)
    return pl.kernel(body, out_type=list(outputs), mesh=mesh, compiler_params=parameters, name=name)(*arguments)


def by_roles(compute: Callable[[jax.Array], None], *copies: Callable[[], None], computing: int = COMPUTING) -> None:
    """`compute(warpgroup)` in the computing warpgroups, and each of `copies` in a warp of its own.

    In the interpreter each of `copies` has a warpgroup of its own.
    """
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup < computing)
    def _():
        if not is_interpreted():
            plgpu.set_max_registers(_REGISTERS[computing][0], action="increase")
        compute(warpgroup)

    if is_interpreted():
        for number, copy in enumerate(copies):
            pl.when(warpgroup == computing + number)(copy)
        return

    @pl.when(warpgroup == computing)
    def _():
        plgpu.set_max_registers(_REGISTERS[computing][1], action="decrease")

        @plgpu.warp_map
        def _(warp):
            for number, copy in enumerate(copies):
                pl.when(warp == number)(copy)


def swizzled(shape: Sequence[int], dtype: Any, line_bytes: int = 128) -> Any:
    """Shared memory for matrices, in tiles of 8 rows of `line_bytes` with exchanged parts.

    Products and the copy engine read lines of 128 bytes without conflicts.
    """
    tile = 8, line_bytes // jnp.dtype(dtype).itemsize
    transforms = plgpu.TilingTransform(tile), plgpu.SwizzleTransform(line_bytes)
    return plgpu.SMEM(tuple(shape), dtype, transforms=transforms)


def accumulator(shape: Sequence[int]) -> Any:
    """Registers in which products are summed, float32, for `pl.run_scoped`."""
    rows, columns = shape
    return plgpu.WGMMAAccumulatorRef((rows, columns), jnp.float32)


def load(ref: Any, layout: Any, *, is_global: bool = False) -> jax.Array:
    """An array in registers, from shared memory or, one number at a time, from global memory."""
    options = {"layout": layout, "optimized": not is_global}
    return plgpu.load(ref, **options) if VERSION >= (0, 11) else plgpu.load(ref, (), **options)


def transposed(ref: Any) -> Any:
    """A view of a matrix in shared memory with its axes exchanged."""
    return ref.transpose((1, 0)) if VERSION >= (0, 11) else plgpu.transpose_ref(ref, (1, 0))


def over_rows(x: jax.Array, like: jax.Array) -> jax.Array:
    """One number per row, repeated over the columns of a tile like the second argument."""
    return lax.broadcast_in_dim(x, like.shape, [0])


def over_columns(x: jax.Array, like: jax.Array) -> jax.Array:
    """One number per column, repeated over the rows of a tile like the second argument."""
    return lax.broadcast_in_dim(x, like.shape, [1])


def full(shape: Sequence[int], value: float, layout: Any) -> jax.Array:
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def index_along(axis: int, shape: Sequence[int]) -> jax.Array:
    """The row (axis 0) or column (axis 1) of every element of a tile, int32."""
    return plgpu.broadcasted_iota(jnp.int32, tuple(shape), axis, layout=TILE)


def left_operand(x: jax.Array, scratch: Any, slot: Any) -> Any:
    """The left operand of a product from registers; the interpreter takes it from shared memory."""
    if not is_interpreted():
        return x
    scratch[slot] = x
    return scratch.at[slot]


def left_operand_scratch(shape: Sequence[int], dtype: Any, computing: int = COMPUTING) -> dict[str, Any]:
    """The scratch memory that `left_operand` needs: in the interpreter only."""
    return {"left": swizzled((computing, *shape), dtype)} if is_interpreted() else {}


def continue_sum(sum_MN: jax.Array, add: Callable[[Any], tuple], *initial: jax.Array) -> tuple:
    """`(sum, *results)` after `add(accumulator)`, which starts products and returns arrays.

    The accumulator contains `sum_MN` at first. `initial` gives the shapes and layouts of the
    results. The interpreter adds the products to zero, and then the sum.
    """
    if is_interpreted():

        def from_zero(products):
            results = add(products)
            plgpu.wgmma_wait(0)
            return products[...], *results

        product_MN, *results = pl.run_scoped(from_zero, accumulator(sum_MN.shape))
        return sum_MN + product_MN, *results

    def body(refs):
        sums, *result_refs = refs
        for ref, result in zip(result_refs, add(sums), strict=True):
            ref[...] = result

    return pl.run_state(body)((plgpu.WGMMAAccumulatorRef.init(sum_MN), *initial))


@dataclasses.dataclass(frozen=True)
class NamedBarrier:
    """Barriers of the hardware, at which some threads wait and others only arrive.

    `first` is the number of the first of them. Each has as many threads as `warpgroups` and
    `warps` have together.
    """

    first: int
    warpgroups: int
    warps: int

    def arrive(self, n: Any = 0) -> None:
        _named_barrier("arrive", self.first + n, self._threads)

    def wait(self, n: Any = 0) -> None:
        """Arrives at barrier n, and waits until all threads have."""
        _named_barrier("sync", self.first + n, self._threads)

    @property
    def _threads(self) -> int:
        return self.warpgroups * WARPGROUP + self.warps * (WARPGROUP if is_interpreted() else WARP)


def named_barriers(*counts: tuple[int, int, int]) -> list[NamedBarrier]:
    """Barriers from (how many, warpgroups, warps) each.

    Without warps they are between the computing warpgroups alone.
    """
    barriers, first = [], _FIRST_FREE_BARRIER
    for count, warpgroups, warps in counts:
        barriers.append(NamedBarrier(first, warpgroups, warps))
        first += count
    assert first <= _LAST_BARRIER + 1, f"{first} named barriers; the hardware has {_LAST_BARRIER + 1}"
    return barriers


def _named_barrier(operation: str, barrier: Any, num_threads: int) -> None:
    # JAX's interpreter recognizes this function by its name and the names of its variables.
    @plgpu.inline_mgpu(arg_types=(plgpu.Layout.WG_SPLAT,))
    def bar_op(_, number):
        assembly = f"bar.{operation} $0, {num_threads};"
        _assembly(assembly, "r", number.registers[()])

    bar_op(jnp.asarray(barrier, jnp.int32))  # pyright: ignore[reportCallIssue]


@plgpu.inline_mgpu()
def fence_async_shared_cta(_):
    """Makes what this thread wrote to shared memory visible to products and to the copy engine."""
    nvvm.fence_proxy(nvvm.ProxyKind.async_shared, space=nvvm.SharedSpace.shared_cta)


fence: Callable[[], None] = fence_async_shared_cta  # pyright: ignore[reportAssignmentType]


def add_to_global(source: Any, target: Any) -> None:
    """Starts adding a float32 array in shared memory to one in global memory.

    In the interpreter, where programs run one after another, it is done at once.
    """
    if is_interpreted():
        target[...] = target[...] + source[...]
        return
    plgpu.copy_smem_to_gmem(source, target, commit_group=False, reduction_op="add")


def wait_for_count(counter: Any, index: Any, count: Any) -> None:
    """Waits until `counter[index]`, int32 in global memory, is at least `count`.

    Not in the interpreter, where programs run one after another in the order of their start.
    """
    if not is_interpreted():
        _counter_operation(_WAIT_FOR_COUNT)(counter, jnp.asarray(index, jnp.int32), jnp.asarray(count, jnp.int32))


def increase_count(counter: Any, index: Any) -> None:
    """Adds 1 to `counter[index]`, after everything that this warp has written before."""
    if not is_interpreted():
        _counter_operation(_INCREASE_COUNT)(counter, jnp.asarray(index, jnp.int32), jnp.int32(1))


# The copy engine and ordinary instructions see memory in their own order; fence.proxy.async orders
# one after the other.
_WAIT_FOR_COUNT = (
    "{ .reg .pred early; .reg .u32 count; again: ld.acquire.gpu.global.u32 count, [$0];"
    " setp.lt.u32 early, count, $1; @early bra again; fence.proxy.async.global; }"
)
_INCREASE_COUNT = (
    "{ .reg .pred one; .reg .b32 lane; fence.proxy.async.global; elect.sync lane|one, 0xffffffff;"
    " @one fence.acq_rel.gpu; @one red.release.gpu.global.add.u32 [$0], $1; }"
)


@functools.cache
def _counter_operation(assembly: str) -> Callable[..., None]:
    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WG_SPLAT, plgpu.Layout.WG_SPLAT))
    def counter_op(_, counter, index, count):
        start = mgpu.utils.memref_ptr(counter)
        pointer = mgpu.utils.getelementptr(start, [index.registers[()]], ir.IntegerType.get_signless(32))
        _assembly(assembly, "l,r", pointer, count.registers[()])

    return counter_op


def _assembly(text: str, constraints: str, *operands: Any) -> None:
    llvm.inline_asm(ir.Type.parse("!llvm.void"), list(operands), text, constraints, has_side_effects=True)
