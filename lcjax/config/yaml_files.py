"""YAML files with the settings of a run: strict reading, and writing that reads back the same.

Numbers, booleans and null are those of YAML 1.2's core schema: `1e-4` is a number, and `no` and
dates are text. No tag makes Python objects. Merge keys (`<<`) are text, and aliases share a value
without a copy, so that a small file cannot become a large one.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

LARGEST = 2**20
"""Bytes of the largest file that is read."""

_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
        """The mapping; its keys are texts, and none occurs twice."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem="a key is not text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key} occurs twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that YAML 1.1, or this module, would read as something else."""

    def ignore_aliases(self, data):
        return True


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _SCALARS:
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)


def parse_yaml(content: bytes) -> Any:
    """The value of a YAML document.

    Raises:
      ValueError: it is not valid, too large, has a key twice, or asks for Python objects; the
        message is one line.
    """
    if len(content) > LARGEST:
        raise ValueError(f"it has {len(content):,} bytes; settings have at most {LARGEST:,}")
    try:
        return yaml.load(content, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(" ".join(f"{line}{', '.join(filter(None, (error.context, error.problem)))}".split())) from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # PyYAML does not check these.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise ValueError("a value is not of the type that its tag (!!) names, or has thousands of digits") from None


def as_yaml(value: Any) -> str:
    """The YAML text of a value that consists of dictionaries, lists, texts, numbers and None."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)
