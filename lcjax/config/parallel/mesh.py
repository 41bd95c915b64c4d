"""How a run is divided over devices: the mesh, and the choice of its sizes.

A mesh has three axes. Along `data`, devices have different micro-batches of a step. Along `ring`
and `heads` they have different tokens of the same sequences: together they are the context. Inside
attention, devices along `heads` exchange tokens for heads, and keys and values travel along `ring`.

Sources: Jacobs et al., DeepSpeed-Ulysses, arXiv 2309.14509 (heads); Liu et al., Ring Attention,
arXiv 2310.01889 (ring).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lcjax.errors import InputError, flag, unknown

DATA, RING, HEADS = "data", "ring", "heads"

CONTEXT = (RING, HEADS)
"""The axes that divide a sequence."""

AXES = (DATA, RING, HEADS)

SHARD_WEIGHTS = ("auto", "none", "layers")

LEAST_TOKENS = 16_384
"""Of a device, where the mesh is chosen: with fewer, communication takes much of a layer's time."""


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """The sizes of the axes, in devices.

    `shard_axes` are the axes along which devices have different rows of the weights; without them
    every device has all weights.
    """

    data: int = 1
    ring: int = 1
    heads: int = 1
    shard_axes: tuple[str, ...] = ()

    @property
    def context(self) -> int:
        """The number of devices that share a sequence."""
        return self.ring * self.heads

    @property
    def size(self) -> int:
        return self.data * self.context

    @property
    def shards(self) -> int:
        """The number of devices that share the weights."""
        return math.prod(getattr(self, axis) for axis in self.shard_axes)

    @property
    def pieces(self) -> int:
        """The number of equal pieces of a sequence that devices along `ring` have: two each.

        The work of causal attention grows along the sequence. The first device has the first and
        the last piece, the second device the second and the last but one.
        """
        return 1 if self.ring == 1 else 2 * self.ring

    @property
    def parts(self) -> int:
        """The number of equal parts that a sequence is cut into, one or two for each device."""
        return self.pieces * self.heads

    def local_tokens(self, tokens: int) -> int:
        """The tokens of a sequence on each device.

        Raises:
          InputError: the sequence cannot be cut into equal parts.
        """
        if tokens % self.parts:
            shorter = tokens // self.parts * self.parts
            raise InputError(
                f"sequences of {tokens:,} tokens do not divide into {self.parts} equal parts for {self.context} "
                f"devices; use --max-seq-length {f'{shorter} or ' if shorter else ''}{shorter + self.parts}"
            )
        return tokens // self.context

    def describe(self) -> str:
        """For people, such as "2 data x 4 context (all-to-all over 4)"."""
        if self.size == 1:
            return "1 device"
        exchanges = [f"all-to-all over {self.heads}"] * (self.heads > 1) + [f"ring of {self.ring}"] * (self.ring > 1)
        how = f" ({', '.join(exchanges)})" if exchanges else ""
        return f"{self.data} data x {self.context} context{how}"


ONE_DEVICE = MeshShape()


@dataclasses.dataclass(frozen=True)
class MeshRequest:
    """What a user requests; None leaves a size open.

    Attributes:
      context_parallel_size: devices that share a sequence.
      data_parallel_size: devices with different micro-batches.
      ulysses_degree: the part of the context that exchanges tokens for heads.
      ring_degree: the part of the context along which keys and values travel.
      shard_weights: one of `SHARD_WEIGHTS`. "layers" gives each GPU of a host some rows of every
        matrix, "none" all weights, and "auto" is "layers" if every weight is trained, or if the
        weights take more than half of a GPU's memory.

    Raises:
      InputError: a size is not positive, or the sizes contradict each other.
    """

    context_parallel_size: int | None = None
    data_parallel_size: int | None = None
    ulysses_degree: int | None = None
    ring_degree: int | None = None
    shard_weights: str = "auto"

    def __post_init__(self):
        if self.shard_weights not in SHARD_WEIGHTS:
            raise InputError(unknown("--shard-weights", self.shard_weights, SHARD_WEIGHTS))
        given = {name: value for name, value in dataclasses.asdict(self).items() if type(value) is not str}
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in given.items():
            if type(value) is not int or value < 1:
                raise InputError(f"{flag(name)} {value!r} is out of range; give a whole number from 1 on")
        context, heads, ring = self.context_parallel_size, self.ulysses_degree, self.ring_degree
        if context and heads and ring and heads * ring != context:
            raise InputError(
                f"--ulysses-degree {heads} times --ring-degree {ring} is not --context-parallel-size {context}; "
                "omit one of the three"
            )
        for name in ("ulysses_degree", "ring_degree"):
            if context and name in given and context % given[name]:
                raise InputError(
                    f"{flag(name)} {given[name]} does not divide --context-parallel-size {context}; omit one"
                )

    @classmethod
    def of(cls, arguments: Any) -> MeshRequest:
        """From a command's arguments, which have fields of the same names."""
        return cls(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)})

    @property
    def context(self) -> int | None:
        if self.ulysses_degree and self.ring_degree:
            return self.ulysses_degree * self.ring_degree
        return self.context_parallel_size


def choose_mesh(
    request: MeshRequest,
    *,
    devices: int,
    devices_per_host: int,
    tokens: int,
    micro_batches: int,
    query_heads: int,
    kv_heads: int,
    most_tokens_of_a_head: int | None = None,
) -> MeshShape:
    """The mesh of a run.

    If nothing is requested, all devices are used. The context is as large as leaves every device
    `LEAST_TOKENS` tokens of a sequence; the other devices take different micro-batches, as far as a
    step has them. Attention exchanges tokens for heads inside a host, as far as heads divide, and
    uses a ring for the rest. Exchanging is faster, but a device then has a head's queries, keys and
    values of all tokens of its part of the ring. With a longer ring it has fewer.

    Args:
      devices, devices_per_host: of all hosts, and of each.
      tokens: of a sequence.
      micro_batches: of a step.
      most_tokens_of_a_head: that a device has memory for; None for any number.

    Raises:
      InputError: the request does not fit the devices, the heads or the micro-batches.
    """
    data, context = request.data_parallel_size, request.context
    if data is None and context is None:
        degrees = request.ulysses_degree or request.ring_degree
        context = devices if degrees else _longest_context(devices, tokens, micro_batches)
    if context is None:
        context = max(1, devices // (data or 1))
    if data is None:
        data = math.gcd(max(1, devices // context), micro_batches)
    if context > devices:
        raise InputError(f"a context of {_counted(context)} does not fit {devices}; use at most {devices}")
    if data * context > devices:
        raise InputError(
            f"--data-parallel-size {data} times a context of {context} needs {_counted(data * context)}, but there are "
            f"{devices}; lower one of the two"
        )
    if micro_batches % data:
        raise InputError(
            f"--data-parallel-size {data} does not divide --gradient-accumulation-steps {micro_batches}; use "
            f"--gradient-accumulation-steps {-(-micro_batches // data) * data}"
        )
    shortest_ring = 1 if most_tokens_of_a_head is None else -(-tokens // most_tokens_of_a_head)
    heads = _heads(request, context, devices_per_host, query_heads, kv_heads, shortest_ring)
    mesh = MeshShape(data, context // heads, heads)
    mesh.local_tokens(tokens)
    return mesh


def _longest_context(devices: int, tokens: int, micro_batches: int) -> int:
    """The devices that share a sequence where nothing is requested; see `choose_mesh`."""
    fitting = max(n for n in _divisors(devices) if n == 1 or tokens // n >= LEAST_TOKENS)
    # Devices without a micro-batch of their own share a sequence, however short it is.
    return next(n for n in _divisors(devices) if n >= fitting and micro_batches % (devices // n) == 0)


def _heads(
    request: MeshRequest, context: int, devices_per_host: int, query_heads: int, kv_heads: int, shortest_ring: int
) -> int:
    """The part of the context that exchanges tokens for heads; the rest is the ring."""
    if request.ulysses_degree is None and request.ring_degree is None:
        inside = math.gcd(context, devices_per_host)
        possible = [n for n in _divisors(inside) if divides_heads(n, query_heads, kv_heads)]
        return max((n for n in possible if context // n >= shortest_ring), default=1)
    name = "ring_degree" if request.ulysses_degree is None else "ulysses_degree"
    given = getattr(request, name)
    if context % given:
        raise InputError(f"{flag(name)} {given} does not divide a context of {_counted(context)}; omit it")
    heads = given if request.ulysses_degree else context // given
    if not divides_heads(heads, query_heads, kv_heads):
        raise InputError(
            f"{flag(name)} {given}: {query_heads} query heads with {kv_heads} key/value heads cannot be divided between "
            f"{heads} devices; use --ring-degree {context} instead of it"
        )
    return heads


def choose_shard_axes(
    request: MeshRequest, mesh: MeshShape, devices_per_host: int, rows: set[int], *, needed: bool
) -> MeshShape:
    """The mesh with the axes inside of a host along which the weights are cut.

    Args:
      rows: the numbers of rows of all matrices.
      needed: whether the weights are cut if the request leaves it open.

    Raises:
      InputError: the request cannot be met, because the rows of a matrix do not divide.
    """
    if request.shard_weights == "none" or (request.shard_weights == "auto" and not needed):
        return mesh
    axes, devices = [], 1
    for axis in reversed(AXES):  # devices along `heads` are adjacent, then those along `ring`
        devices *= getattr(mesh, axis)
        if devices > devices_per_host:
            break
        axes.insert(0, axis)
    cut = dataclasses.replace(mesh, shard_axes=tuple(axis for axis in axes if getattr(mesh, axis) > 1))
    uneven = sorted(count for count in rows if count % cut.shards)
    if not uneven:
        return cut
    if request.shard_weights == "auto":
        return mesh
    raise InputError(
        f"--shard-weights layers: {cut.shards} GPUs cannot have equal parts of a matrix with {uneven[0]:,} rows; use "
        "--shard-weights none, or another number of GPUs"
    )


def divides_heads(parts: int, query_heads: int, kv_heads: int) -> bool:
    """Whether every one of `parts` devices can have the same number of heads.

    If there are more devices than key/value heads, several devices have the same ones.
    """
    return query_heads % parts == 0 and (query_heads // kv_heads) % copies_of_kv(parts, kv_heads) == 0


def copies_of_kv(parts: int, kv_heads: int) -> int:
    """How many copies of every key/value head make their number divisible by `parts`."""
    return parts // math.gcd(parts, kv_heads)


def _counted(devices: int) -> str:
    return "1 device" if devices == 1 else f"{devices} devices"


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
