"""The table of shapes: the combinations that it covers, and the repetition of shapes."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import math
import sys
from pathlib import Path

from lcjax_scripts.verify import cases


def test_the_matrix_covers_every_pair_of_values():
    rows = [name.split(maxsplit=5)[1:] for name in cases.default_matrix() if name.startswith("attention ")]
    axes = [{row[n] for row in rows} for n in range(5)]
    assert [len(axis) for axis in axes] == [3, 5, 4, 5, len(cases.MASKS)]
    for a, b in itertools.combinations(range(5), 2):
        assert {(row[a], row[b]) for row in rows} == set(itertools.product(axes[a], axes[b]))
    ropes = [shape for shape in cases.default_matrix().values() if isinstance(shape, cases.RopeShape)]
    for a, b in itertools.combinations(("dtype", "head_dim", "gqa_ratio", "positions"), 2):
        pairs = {(getattr(shape, a), getattr(shape, b)) for shape in ropes}
        assert len(pairs) == len({x for x, _ in pairs}) * len({y for _, y in pairs})


def test_the_full_matrix_covers_every_triple_of_values():
    full = cases.full_matrix()
    attention = {tuple(name.split(maxsplit=5)[1:]) for name in full if name.startswith("attention ")}
    longest = f"x{cases.LENGTHS[-1]}"
    shorter = {row for row in attention if row[3] != longest}
    rope = {
        (s.dtype, s.head_dim, s.gqa_ratio, s.tokens, s.positions, 2 * s.pair_count < s.head_dim)
        for s in full.values()
        if isinstance(s, cases.RopeShape)
    }
    lengths = [len(cases.DTYPES), len(cases.HEAD_DIMS), len(cases.GQA_RATIOS), len(cases.LENGTHS)]
    of_shorter = [*lengths[:3], lengths[3] - 1, len(cases.MASKS)]
    for rows, sizes in ((shorter, of_shorter), (rope, [*lengths, len(cases.POSITIONS), 2])):
        for axes in itertools.combinations(range(len(sizes)), 3):
            assert len({tuple(row[n] for n in axes) for row in rows}) >= math.prod(sizes[n] for n in axes)
    for axis, size in ((0, lengths[0]), (1, lengths[1]), (2, lengths[2]), (4, len(cases.MASKS))):
        assert len({row[axis] for row in attention - shorter}) == size


def test_the_matrix_is_large_and_the_full_one_larger():
    default, full = cases.default_matrix(), cases.full_matrix()
    assert sum(len(shape.tensors) for shape in default.values()) >= 400
    assert default.items() <= full.items()
    assert len(full) >= 4 * len(default)
    assert {shape.tokens for shape in default.values()} >= set(cases.LENGTHS)


def test_a_covering_is_small_and_deterministic():
    rows = cases.covering(2, "abc", range(4), (True, False))
    assert rows == cases.covering(2, "abc", range(4), (True, False))
    assert 12 <= len(rows) < 18
    assert {row[:2] for row in rows} == set(itertools.product("abc", range(4)))
    assert cases.covering(3, "ab", "cd", "ef") != list(itertools.product("ab", "cd", "ef"))  # mixed
    assert len(cases.covering(3, "ab", "cd", "ef")) == 8


def test_few_rows_are_repeated():
    for shape in cases.full_matrix().values():
        repeated = cases.with_rows(shape, 8192)
        if not isinstance(shape, cases.AttentionShape):
            assert repeated is shape
            continue
        assert isinstance(repeated, cases.AttentionShape)
        assert dataclasses.replace(repeated, batch=shape.batch) == shape
        most = shape.head_dim * max(shape.tokens * shape.heads, shape.key_count * shape.kv_heads)
        assert repeated.batch * shape.tokens * shape.heads >= 8192 or (repeated.batch + 1) * most > 2**23
        assert repeated.batch == shape.batch or repeated.batch * most <= 2**23
        assert cases.with_rows(shape, 1) == shape
        fewer = cases.with_rows(shape, 8192, largest_heads=256)
        assert fewer.batch == min(repeated.batch, max(256 // shape.heads, shape.batch))


def test_cases_need_the_standard_library_only():
    files = list(Path(cases.__file__).parent.glob("*.py"))
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    others = {name for name in modules if not name.startswith("lcjax_scripts.verify.cases.")}
    assert others < modules
    assert {name.split(".")[0] for name in others} <= sys.stdlib_module_names


def test_samples_lie_at_the_ends_and_across_the_boundary():
    for shape in cases.long_matrix().values():
        elements = shape.tokens * shape.heads * shape.head_dim
        assert {0, shape.tokens - shape.rows} <= set(shape.samples)
        row = 2**31 / (shape.heads * shape.head_dim)
        assert (elements > 2**31) == any(start < row < start + shape.rows for start in shape.samples)
