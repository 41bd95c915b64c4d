"""Only lcjax.parallel refers to devices, memory kinds and processes."""

from __future__ import annotations

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lcjax
from lcjax.parallel.memories import is_on_host, moved
from lcjax.parallel.placement import abstract_like, committed, on_one, this_device
from lcjax.parallel.processes import writes_files

PACKAGE = Path(lcjax.__file__).parent
OWNED = {"NamedSharding", "SingleDeviceSharding", "PartitionSpec", "Mesh", "local_devices", "process_index", "Space"}
# Absent devices have separate shardings.
ELSEWHERE = {"plan/compiling/aot.py": {"NamedSharding", "PartitionSpec", "Mesh"}}
# A program that checks whether JAX starts.
STARTS_JAX = {"train/command.py": {"local_devices"}}
# The threads of a kernel's program.
OF_THREADS = {"pallas/mosaic/launch.py": {"Mesh"}}


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return attributes | imported


def test_no_other_module_places_arrays():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        allowed = set().union(*(table.get(name, set()) for table in (ELSEWHERE, STARTS_JAX, OF_THREADS)))
        if not name.startswith("parallel/") and (owned := (names_in(path) & OWNED) - allowed):
            found[name] = owned
    assert found == {}


def test_a_copy_to_the_other_memory_is_bitwise():
    x = jax.random.normal(jax.random.key(0), (3, 5))
    there = moved(x, on_host=True)
    assert is_on_host(there)
    assert moved(there, on_host=True) is there
    np.testing.assert_array_equal(moved(there, on_host=False), x)


def test_arrays_without_a_placement_get_none():
    shape = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert moved(shape, on_host=True) is shape
    placed = jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=on_one(this_device()))
    assert is_on_host(moved(placed, on_host=True))


def test_binding_arrays_to_their_device_changes_no_bit():
    tree = {"a": jnp.arange(5.0), "b": jnp.arange(3)}
    bound = committed(tree)
    assert all(x.committed for x in jax.tree.leaves(bound))
    assert jax.tree.all(jax.tree.map(np.array_equal, tree, bound))
    assert abstract_like(bound["a"]).sharding == on_one(this_device(), bound["a"].sharding.memory_kind)


def test_a_single_process_writes():
    assert writes_files()
