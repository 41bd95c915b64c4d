"""Which files of its repository a file imports, by simple rules for each language.

| language | what counts | where the file is looked for |
| --- | --- | --- |
| Python | `import a.b`, `from a import b` | `a/b.py`, `a/b/__init__.py`, `a.py` |
| C, C++, CUDA | `#include "a/b.h"` and `<a/b.h>` | next to the file, then above it |
| JavaScript, TypeScript | `from "./a"`, `import "./a"`, `require("./a")` | relative to the file |
| Go | `import "module/a"` | every file of folder `a`, except tests |
| Rust | `mod a;`, `use crate::a::b` (`self`, `super`) | `a.rs`, `a/mod.rs`, `a/b.rs` |
| Java, Kotlin, Scala | `import a.b.C` | `a/b/C.java`; for `a.b.*`, every file of the folder |

Python is parsed; if it cannot be (Python 2), and for other languages, whole lines are matched. A
rule may miss an import, or find one in a comment; then only the order of files is different.
"""

from __future__ import annotations

import ast
import itertools
import posixpath
import re
import warnings
from collections.abc import Callable, Iterator

from lcjax.data.joining.paths import RepositoryPaths, above

_PYTHON = (".py", "/__init__.py")
_SCRIPT_SUFFIXES = (".ts", ".tsx", ".d.ts", ".js", ".jsx", ".mjs", ".cjs", ".vue")
_SCRIPT = ("", *_SCRIPT_SUFFIXES, *(f"/index{suffix}" for suffix in _SCRIPT_SUFFIXES))
_JVM = (".java", ".kt", ".scala")

_BODIES = ("body", "orelse", "finalbody", "handlers", "cases")
_PYTHON_LINE = re.compile(
    r"^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+\(?([\w, \t*]+)|import[ \t]+([\w., \t]+))", re.MULTILINE
)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*(?:include|import)[ \t]*[<"]([^>"\n]+)[>"]', re.MULTILINE)
_FROM = re.compile(r"""(?:\bfrom|\bimport|\brequire[ \t]*\(|\bimport[ \t]*\()[ \t]*["'](\.{1,2}(?:/[^"'\n]*)?)["']""")
_GO_BLOCK = re.compile(r'^import[ \t]*(?:\(([^)]*)\)|(?:[\w.]+[ \t]+)?("[^"\n]+"))', re.MULTILINE)
_QUOTED = re.compile(r'"([^"\n]+)"')
_RUST_MOD = re.compile(r"^[ \t]*(?:pub(?:\([^)]*\))?[ \t]+)?mod[ \t]+(\w+)[ \t]*;", re.MULTILINE)
_RUST_USE = re.compile(
    r"^[ \t]*(?:pub(?:\([^)]*\))?[ \t]+)?use[ \t]+((?:crate|self|super)(?:::\w+)+)(?:::\{([^;]*)\})?", re.MULTILINE
)
_JVM_IMPORT = re.compile(r"^[ \t]*import[ \t]+(?:static[ \t]+)?(\w+(?:\.\w+)*(?:\.\*)?)", re.MULTILINE)


def imports(path: str, text: str, paths: RepositoryPaths) -> set[str]:
    """The files of a repository that one of its files imports, possibly including itself.

    Args:
      path: of the file, relative to the root, with slashes.
      text: of the file.
      paths: all files of the repository.
    """
    rule = _RULES.get(posixpath.splitext(path)[1].lower())
    return set() if rule is None else {found for found in rule(path, text, paths) if found is not None}


def _python(path: str, text: str, paths: RepositoryPaths) -> Iterator[str | None]:
    for module, names in _python_imports(text):
        name = module.lstrip(".")
        level, relative = len(module) - len(name), name.replace(".", "/")
        members = [_python_file(path, level, posixpath.join(relative, member), paths) for member in names]
        yield from members
        # `from a import b` needs a's own file only if b is not a module.
        if not members or not all(members):
            yield _python_file(path, level, relative, paths)


def _python_file(importer: str, level: int, relative: str, paths: RepositoryPaths) -> str | None:
    """The file of a module; `level` counts the leading dots, one for the importer's own package."""

    def is_package(folder: str) -> bool:
        return paths.at(folder, "__init__.py") is not None

    if not level:
        return paths.nearest(importer, relative, _PYTHON, lambda folder: not is_package(folder)) if relative else None
    folder = next(itertools.islice(above(importer), level - 1, None), None)
    if folder is None:
        return None
    return paths.at(folder, relative, _PYTHON) if relative else paths.at(folder, "__init__.py")


def _python_imports(text: str) -> Iterator[tuple[str, list[str]]]:
    """Modules, with leading dots, and the names imported from them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        for origin, names, modules in _PYTHON_LINE.findall(text):
            for module in modules.split(","):
                if words := module.split():
                    yield words[0], []
            if origin:
                yield origin, [name.split()[0] for name in names.split(",") if name.split()]
        return
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        # Imports are statements, so expressions need no look.
        nodes += [inner for field in _BODIES for inner in getattr(node, field, ())]
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names]


def _c(path: str, text: str, paths: RepositoryPaths) -> Iterator[str | None]:
    for header in _INCLUDE.findall(text):
        yield paths.nearest(path, header)


def _script(path: str, text: str, paths: RepositoryPaths) -> Iterator[str | None]:
    folder = posixpath.dirname(path)
    for target in _FROM.findall(text):
        # TypeScript names the compiled file: "./a.js" is a.ts.
        stem, end = posixpath.splitext(target)
        yield paths.at(folder, target, _SCRIPT) or (
            paths.at(folder, stem, _SCRIPT[1:]) if end in (".js", ".jsx", ".mjs") else None
        )


def _go(path: str, text: str, paths: RepositoryPaths) -> Iterator[str | None]:
    for block, single in _GO_BLOCK.findall(text):
        for package in _QUOTED.findall(block or single):
            parts = package.split("/")
            # The module's own name comes first and is not a folder.
            tails = ("/".join(parts[start:]) for start in range(len(parts)))
            folder = next((tail for tail in tails if "/" in package and paths.directly_in(tail, ".go")), None)
            if folder is not None:
                yield from (file for file in paths.directly_in(folder, ".go") if not file.endswith("_test.go"))


def _rust(path: str, text: str, paths: RepositoryPaths) -> Iterator[str | None]:
    folder, name = posixpath.split(path)
    own = folder if name in ("mod.rs", "lib.rs", "main.rs") else path.removesuffix(".rs")
    endings = (".rs", "/mod.rs")
    for module in _RUST_MOD.findall(text):
        yield paths.at(own, module, endings)
    roots = (outer for outer in above(path) if paths.at(outer, "lib.rs") or paths.at(outer, "main.rs"))
    root = next(roots, "")
    for use, group in _RUST_USE.findall(text):
        first, *parts = use.split("::")
        base = {"crate": root, "self": own, "super": posixpath.dirname(own)}[first]
        while parts and parts[0] == "super":
            base, parts = posixpath.dirname(base), parts[1:]
        for member in [word.split("::")[0].strip() for word in group.split(",")] if group else [""]:
            # The last parts may be items of the module before them.
            names = [*parts, member] if member else parts
            tries = (paths.at(base, "/".join(names[:stop]), endings) for stop in range(len(names), 0, -1))
            yield next((found for found in tries if found), None)


def _jvm(path: str, text: str, paths: RepositoryPaths) -> Iterator[str | None]:
    for name in _JVM_IMPORT.findall(text):
        parts = name.split(".")
        if parts[-1] == "*":
            for folder in paths.folders("/".join(parts[:-1])):
                yield from (file for end in _JVM for file in paths.directly_in(folder, end))
            continue
        # A static import or a nested class has the file's name earlier.
        tries = (paths.nearest(path, "/".join(parts[:stop]), _JVM) for stop in (len(parts), len(parts) - 1))
        yield next((found for found in tries if found), None)


_Rule = Callable[[str, str, RepositoryPaths], Iterator[str | None]]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys((".py", ".pyi", ".pyx"), _python),
    **dict.fromkeys((".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx", ".inl", ".cu", ".cuh", ".m", ".mm"), _c),
    **dict.fromkeys((".js", ".jsx", ".mjs", ".cjs", ".ts", ".tsx", ".mts", ".cts", ".vue", ".svelte"), _script),
    ".go": _go,
    ".rs": _rust,
    **dict.fromkeys(_JVM, _jvm),
}  # fmt: skip
