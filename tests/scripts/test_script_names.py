"""The packages and modules of scripts/ do not hide what other projects import.

`python scripts/NAME.py` puts scripts/ first on the path, and libraries look for optional packages
by name. For example, transformers and bitsandbytes look for `kernels`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = sorted(path.stem for path in SCRIPTS.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())


@pytest.mark.parametrize("name", ["kernels", "steps"])
def test_the_name_of_another_package_finds_nothing_of_ours(name):
    assert str(SCRIPTS) in map(str, map(Path, sys.path))  # by pytest's `pythonpath`
    found = importlib.util.find_spec(name)
    assert found is None or SCRIPTS not in Path(str(found.origin)).parents


def test_packages_of_scripts_have_our_name():
    packages = [name for name in NAMES if (SCRIPTS / name).is_dir()]
    assert packages == ["lcjax_scripts"]


def test_no_installed_package_has_a_name_of_a_script():
    installed = importlib.metadata.packages_distributions()
    assert [name for name in NAMES if name in installed or name in sys.stdlib_module_names] == []
