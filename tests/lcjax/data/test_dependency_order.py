"""The order of a repository's files: imports first, in every language that has a rule."""

import json

import pytest

from lcjax.data.joining.order import dependency_order


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.py": "import z\nimport os, b", "b.py": "", "z.py": "from b import x"}, "b.py z.py a.py"),
        ({"p/__init__.py": "from .a import A", "p/a.py": "from . import c", "p/c.py": ""}, "p/c.py p/a.py p/__init__.py"),
        ({"p/__init__.py": "X = 1", "p/a.py": "from p import X"}, "p/__init__.py p/a.py"),
        ({"t.py": "from p.q import r", "src/p/q/__init__.py": "", "src/p/q/r.py": ""},
         "src/p/q/r.py t.py src/p/q/__init__.py"),
        ({"p/a/x.py": "from ..b import y", "p/b.py": ""}, "p/b.py p/a/x.py"),
        # Inside a package, `import types` is not the module next to the file.
        ({"p/__init__.py": "", "p/a.py": "import types", "p/types.py": ""}, "p/__init__.py p/a.py p/types.py"),
        # Python 2 is not parsed; its lines are matched.
        ({"a.py": "import c\nprint 'x'", "b.py": "", "c.py": "from b import (d)\nprint 'y'"}, "b.py c.py a.py"),
        ({"main.c": '#include "lib/u.h"\n#include <stdio.h>', "include/lib/u.h": ""}, "include/lib/u.h main.c"),
        ({"a/x.cpp": '# include "y.hpp"', "a/y.hpp": "", "b/y.hpp": ""}, "a/y.hpp a/x.cpp b/y.hpp"),
        ({"a.ts": 'import { b } from "./lib";\nimport "react";', "lib/index.ts": 'export * from "../z.js"', "z.ts": ""},
         "z.ts lib/index.ts a.ts"),
        ({"a.js": "const b = require('./b')", "b.js": ""}, "b.js a.js"),
        ({"cmd/main.go": 'import (\n\t"fmt"\n\t"x.org/m/util"\n)', "util/a.go": "", "util/a_test.go": ""},
         "util/a.go cmd/main.go util/a_test.go"),
        ({"src/main.rs": "mod a;\nuse crate::b::c::Item;", "src/a.rs": "", "src/b/mod.rs": "pub mod c;",
          "src/b/c.rs": "use super::super::a;"}, "src/a.rs src/b/c.rs src/main.rs src/b/mod.rs"),
        ({"A.java": "import org.x.B;\nimport static org.x.C.d;\nimport org.y.*;", "s/org/x/B.java": "",
          "s/org/x/C.java": "", "s/org/x/D.java": "", "s/org/y/E.java": ""},
         "s/org/x/B.java s/org/x/C.java s/org/y/E.java A.java s/org/x/D.java"),
        ({"README.md": "import a", "a.py": ""}, "README.md a.py"),
    ],
)  # fmt: skip
def test_what_is_imported_comes_first(files, expected):
    assert dependency_order(files) == expected.split()


def test_cycles_are_broken_at_the_file_that_is_first():
    cycle = {"a.py": "import b", "b.py": "import c", "c.py": "import a"}
    assert dependency_order(cycle) == ["c.py", "b.py", "a.py"]
    assert dependency_order(dict(reversed(cycle.items()))) == ["b.py", "a.py", "c.py"]


def test_a_long_chain_of_imports():
    files = {f"m{number}.py": f"import m{number + 1}" for number in range(3000)}
    assert dependency_order(files) == list(reversed(files))


def test_odd_files_are_read(recwarn):
    odd = {"a.py": "x = '\\d'\nimport b", "b.py": "\0", "c.py": "(" * 5000, "d.py": "import " + json.dumps("b")}
    assert dependency_order(odd) == ["b.py", "a.py", "c.py", "d.py"]
    assert not recwarn.list
