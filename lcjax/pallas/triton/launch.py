"""All uses of Pallas' Triton backend, and the differences between the device and the interpreter.

JAX deprecates that backend since 0.11. Code that depends on its API is only in this file and in the
kernels next to it.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from lcjax.ops.rope import turns

load = plt.load
store = plt.store

_LONGEST_INTERPRETED_SUM = 16


def launch(
    kernel: Callable[..., None],
    *arguments: Any,
    name: str,
    grid: Sequence[int],
    in_specs: Any,
    out_specs: Any,
    out_shape: Any,
    num_warps: int,
    num_stages: int,
    input_output_aliases: dict[int, int] | None = None,
) -> Any:
    """Calls `kernel(*refs, native=...)` over a grid: compiled on a GPU, interpreted on a CPU.

    The choice is made where the program is compiled, not where it is traced. So a step compiled for
    a GPU on a machine without one contains the kernels.
    """

    def call(*arguments: Any, native: bool) -> Any:
        return pl.pallas_call(
            functools.partial(kernel, native=native),
            grid=tuple(grid),
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=out_shape,
            input_output_aliases=input_output_aliases or {},
            compiler_params=plt.CompilerParams(num_warps=num_warps, num_stages=num_stages) if native else None,
            interpret=not native,
            name=name,
        )(*arguments)

    return lax.platform_dependent(
        *arguments, cpu=functools.partial(call, native=False), cuda=functools.partial(call, native=True)
    )


def whole(x: Any) -> pl.BlockSpec:
    """The specification of an array that every program may read anywhere."""
    return pl.BlockSpec(x.shape, lambda *_: (0,) * len(x.shape))


class TableView:
    """The attributes of an array that mask and score functions may use inside a kernel.

    They are shape, dtype, ndim, size, len() and elements.
    """

    def __init__(self, table: Any):
        self.table = table
        self.shape: tuple[int, ...] = table.shape
        self.dtype = table.dtype
        self.ndim, self.size = len(self.shape), math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a mask or score function asks for .{name} of an array; in pallas an array has "
            "shape, dtype, ndim, size and elements alone: compute the rest before, or use "
            "attention='xla'"
        )


class Table(TableView):
    """A whole array inside a kernel, with one scalar read per index, like `array[index]` outside.

    Indices are clamped into the array, and an axis of size 1 answers for every index.
    """

    def __getitem__(self, index: Any) -> jax.Array:
        index = index if isinstance(index, tuple) else (index,)
        clamped = (_clamped(i, size) for i, size in zip(index, self.shape, strict=True))
        return load(self.table.at[tuple(clamped)])


def tables(tree: Any) -> Any:
    """The same object with each of its array references as a Table."""
    return jax.tree.map(Table, tree)


def _clamped(index: Any, size: int) -> jax.Array:
    # Triton does not support a Python int as an index together with arrays.
    return jnp.int32(0) if size == 1 else jnp.clip(jnp.asarray(index, jnp.int32), 0, size - 1)


def dot_transposed(a: Sequence[jax.Array], b: Sequence[jax.Array], *, native: bool) -> jax.Array:
    """`a b^T` in float32, of operands in parts by columns.

    Each part's product is summed separately, and the sums are added in pairs.
    """
    return _in_pairs(list(zip(a, b, strict=True)), negative=False, native=native)


def _in_pairs(parts: Sequence[tuple[jax.Array, jax.Array]], *, negative: bool, native: bool) -> jax.Array:
    """The sum of the products, or its negative. Only for differences: see `add_product`."""
    if len(parts) == 1:
        [(a_MK, b_NK)] = parts
        return _dot(-a_MK if negative else a_MK, b_NK, b_axis=1, native=native)
    half = (len(parts) + 1) // 2
    first, second = parts[:half], parts[half:]
    return _in_pairs(first, negative=negative, native=native) - _in_pairs(second, negative=not negative, native=native)


def add_product(sum_MN: Sequence[jax.Array], a_MK: jax.Array, b_KN: Sequence[jax.Array], *, native: bool) -> tuple:
    """`sum + a b` in float32, of sum and b in parts by columns.

    For float32 operands the product is summed separately. Otherwise the compiler would make one
    chain of additions of sum and product through the whole loop over blocks, and its rounding error
    grows with its length. The compiler does not change a difference.
    """
    return tuple(add_dot(s, a_MK, b, b_axis=0, native=native) for s, b in zip(sum_MN, b_KN, strict=True))


def add_dot(sum_MN: jax.Array, a_MK: jax.Array, b: jax.Array, *, b_axis: int, native: bool) -> jax.Array:
    """`sum + a b` or, with `b_axis` 1, `sum + a b^T`, in float32; see `add_product`."""
    if a_MK.dtype == jnp.float32:
        return sum_MN - _dot(-a_MK, b, b_axis=b_axis, native=native)
    return sum_MN + _dot(a_MK, b, b_axis=b_axis, native=native)


def wait_for_wgmma(x: jax.Array, *, native: bool) -> jax.Array:
    """Waits for all outstanding WGMMAs, then returns `x` unchanged (Hopper only).

    XLA's Triton emits `fence.proxy.async` before each WGMMA, and the fence stalls while the
    previous step's product is in flight. Waiting first is faster, where `x` is computed between the
    copies and the next products.
    """
    return _inline("wgmma.wait_group.sync.aligned 0;", x, constraints="=f,0") if native else x


def in_registers(tile: Sequence[jax.Array], *, native: bool) -> tuple[jax.Array, ...]:
    """A tile times the identity: the same numbers, which a product can read from registers.

    For Hopper's products the compiler puts loaded operands into shared memory, and leaves the
    results of other products in registers.
    """
    if not native:
        return tuple(tile)
    index = [jnp.arange(x.shape[1], dtype=jnp.int32) for x in tile]
    ones = ((i[:, None] == i[None, :]).astype(x.dtype) for i, x in zip(index, tile, strict=True))
    return tuple(_dot(x, one, b_axis=0, native=True).astype(x.dtype) for x, one in zip(tile, ones, strict=True))


def opaque(x: jax.Array, *, native: bool) -> jax.Array:
    """x, int32, with its origin hidden from the compiler.

    The compiler therefore cannot reuse values derived from that origin.
    """
    return _inline("mov.b32 $0, $1;", x, constraints="=r,r") if native else x


def _dot(a, b, b_axis, native):
    """`a b` or, with `b_axis` 1, `a b^T`.

    float32 operands have full precision. The device's default would round them to TF32.
    """
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dot = functools.partial(lax.dot_general, precision=precision, preferred_element_type=jnp.float32)
    if native:
        return dot(a, b, (((1,), (b_axis,)), ((), ())))
    # XLA on a CPU has no product of 16-bit numbers in every layout. In float32 each term is exact.
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    # It adds one term after another. In parts its error is about that of Triton's interpreter,
    # which has lanes.
    parts = -1, min(a.shape[1], _LONGEST_INTERPRETED_SUM)
    a_parts, b_parts = a.reshape(len(a), *parts), b.reshape(*b.shape[:b_axis], *parts, *b.shape[b_axis + 1 :])
    return dot(a_parts, b_parts, (((2,), (b_axis + 1,)), ((1,), (b_axis,)))).sum(0)


def multiply_add(x: jax.Array, factor: float, y: jax.Array, *, native: bool) -> jax.Array:
    """`factor x + y`, float32, rounded once on the device."""
    return _inline(f"fma.rn.f32 $0, $1, {_hexadecimal(factor)}, $2;", x, y) if native else x * factor + y


def reciprocal(x: jax.Array, *, native: bool) -> jax.Array:
    """`1 / x`, float32, correctly rounded.

    The compiler's own division is wrong by up to two units in the last place.
    """
    return _inline("rcp.rn.f32 $0, $1;", x) if native else 1 / x


def exp2(x: jax.Array, *, precise: bool, native: bool) -> jax.Array:
    """`2^x`, float32, to two units in the last place; with `precise`, to one."""
    if not native:
        return _exp2_in_two_factors(x) if precise else jnp.exp2(x)
    return _inline(f"{{ .reg .f32 line; mov.f32 line, $1; {_PRECISE_EXP2 if precise else _EXP2} }}", x)


def exp2_of_line(x: jax.Array, slope: float, offset: jax.Array, *, precise: bool, native: bool) -> jax.Array:
    """`2^(slope x - offset)`, float32, as `exp2`.

    On the device it is one fused multiply-add and one exponential. XLA's own lowering takes a
    multiplication, a subtraction and an exponential that handles denormals. That would be a quarter
    of the instructions of attention's inner loop.
    """
    offset = jnp.broadcast_to(offset, x.shape)
    if not native:
        return exp2(x * slope - offset, precise=precise, native=False)
    line = f"fma.rn.ftz.f32 line, $1, {_hexadecimal(slope)}, $2;"
    return _inline(f"{{ .reg .f32 line; {line} {_PRECISE_EXP2 if precise else _EXP2} }}", x, -offset)


def _exp2_in_two_factors(x: jax.Array) -> jax.Array:
    """The algorithm of _PRECISE_EXP2; XLA's own uses base e, which adds another rounding."""
    x = jnp.maximum(x, -200.0)
    n = jnp.round(x)
    power = functools.reduce(lambda p, coefficient: p * (x - n) + coefficient, _EXP2_POLYNOMIAL)
    return jnp.where(n < -126, 0.0, jnp.ldexp(power, n.astype(jnp.int32)))


def cos_and_sin(
    position: jax.Array, high_F: jax.Array, low_F: jax.Array, *, native: bool
) -> tuple[jax.Array, jax.Array]:
    """`lcjax.ops.rope.turns.cos_and_sin`, in half as many instructions.

    On the device, products of integers have an upper half, and multiplications and additions are
    fused.
    """
    if not native:
        return turns.cos_and_sin(position, high_F, low_F)
    positions_F = jnp.broadcast_to(position, high_F.shape)
    turns_F = _inline(_TURNS, positions_F, high_F, low_F, constraints="=r,r,r,r")
    angles_F = _inline(_ANGLE, turns_F, constraints="=f,r")
    sine, cosine = _inline(_SINE, angles_F), _inline(_COSINE, angles_F)
    cos, sin = (
        _inline(_OF_QUADRANT.format(ahead=ahead), turns_F, sine, cosine, constraints="=f,r,f,f")
        for ahead in (turns.EIGHTH + turns.QUARTER, turns.EIGHTH)
    )
    return cos, sin


def _polynomial(coefficients: Sequence[float], variable: str) -> str:
    """PTX that computes a polynomial in the register p, highest power first."""
    first, *others = map(_hexadecimal, coefficients)
    return f"mov.f32 p, {first};" + "".join(f" fma.rn.f32 p, p, {variable}, {other};" for other in others)


def _hexadecimal(value: float) -> str:
    """A float32 literal of PTX."""
    assert math.isfinite(value)
    return "0f" + struct.pack(">f", value).hex().upper()


_EXP2 = "ex2.approx.ftz.f32 $0, line;"
# 2^x = 2^n 2^f with an integer n and |f| <= 1/2, where 2^f = 1 + f p(f), minimax; the highest power
# first. For integers the device's exponential is exact. Below -200 the result is 0 anyway, and -inf
# has no f.
_EXP2_POLYNOMIAL = (
    1.5461447765e-4,
    1.3390866807e-3,
    9.6180569381e-3,
    5.5503569543e-2,
    2.4022650719e-1,
    6.9314718246e-1,
    1.0,
)
_PRECISE_EXP2 = (
    "{ .reg .f32 n, f, p; max.NaN.f32 line, line, 0fC3480000; cvt.rni.f32.f32 n, line; sub.rn.f32 f, line, n;"
    + _polynomial(_EXP2_POLYNOMIAL, "f")
    + " ex2.approx.ftz.f32 n, n; mul.rn.ftz.f32 $0, p, n; }"
)
# 2^-32 turns: the lower half of a product, and the upper half of another.
_TURNS = "{ .reg .s32 h; mul.hi.s32 h, $1, $3; mad.lo.s32 $0, $1, $2, h; }"
_ANGLE = (
    f"{{ .reg .s32 r; .reg .f32 x; add.s32 r, $1, {turns.EIGHTH}; and.b32 r, r, {turns.QUARTER - 1};"
    f" sub.s32 r, r, {turns.EIGHTH}; cvt.rn.f32.s32 x, r; mul.rn.f32 $0, x, {_hexadecimal(turns.RADIANS)}; }}"
)
_SINE = (
    "{ .reg .f32 p, t; mul.rn.f32 t, $1, $1;"
    + _polynomial(turns.SINE, "t")
    + " mul.rn.f32 p, p, t; fma.rn.f32 $0, p, $1, $1; }"
)
_COSINE = "{ .reg .f32 p, t; mul.rn.f32 t, $1, $1;" + _polynomial(turns.COSINE, "t") + " mov.f32 $0, p; }"
# The sine of an angle that is `ahead` units ahead, from $1 turns, $2 = sin r and $3 = cos r: odd
# quadrants swap the two, and the lower half of the circle negates.
_OF_QUADRANT = (
    "{{ .reg .f32 s; .reg .s32 q, b; .reg .pred odd; add.s32 q, $1, {ahead}; and.b32 b, q, 0x40000000;"
    " setp.ne.s32 odd, b, 0; selp.f32 s, $3, $2, odd; and.b32 b, q, 0x80000000; xor.b32 $0, s, b; }}"
)


def _inline(assembly: str, *args: jax.Array, constraints: str | None = None) -> jax.Array:
    dtype = jnp.float32 if constraints is None or constraints.startswith("=f") else jnp.int32
    [result] = plt.elementwise_inline_asm(
        assembly,
        args=args,
        constraints=constraints or ",".join(["=f"] + ["f"] * len(args)),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(args[0].shape, dtype)],
    )
    return result
