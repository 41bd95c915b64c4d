"""Runs every test, including the exhaustive ones, before a release, and records the result.

    make test-all        # or: python scripts/release_tests.py

Writes docs/measured/test-all.json: date, commit, versions, counts and seconds. The record says
whether the working tree had uncommitted changes. The exit code is that of pytest.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from importlib.metadata import version
from pathlib import Path
from typing import Any

TREE = Path(__file__).parents[1]
RECORD = TREE / "docs" / "measured" / "test-all.json"
PACKAGES = ("jax", "jaxlib", "numpy", "torch", "transformers", "pytest")
COUNTS = ("tests", "failures", "errors", "skipped")


def main(argv: list[str] | None = None) -> int:
    """Runs pytest, with the given arguments appended; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=RECORD, help="the file to write")
    arguments, others = parser.parse_known_args(argv)
    before = state_of_tree()  # before writing the record, which must not count as a change
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        pytest = [sys.executable, "-m", "pytest", "-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder"]
        # XLA optimizes as it does for users. By default, tests/conftest.py turns that off.
        environment = {**os.environ, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
        command = [*pytest, f"--junitxml={report}", *others]
        code = subprocess.run(command, cwd=TREE, env=environment, check=False).returncode
        if report.exists():
            record = {**before, **versions(), "exit_code": code, **counts_of(report)}
            arguments.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return code


def state_of_tree() -> dict[str, Any]:
    """Returns the date, the commit, and whether the tree has uncommitted changes."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=TREE, capture_output=True, text=True, check=True).stdout.strip()

    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.date().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
    }


def versions() -> dict[str, Any]:
    packages = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "packages": packages, "cores": os.cpu_count()}


def counts_of(report: Path) -> dict[str, Any]:
    """Returns the counts and the wall time in seconds from a JUnit report."""
    suites = xml.parse(report).getroot().iter("testsuite")
    rows = [suite.attrib for suite in suites]
    counts = {name: sum(int(row[name]) for row in rows) for name in COUNTS}
    return {**counts, "seconds": round(sum(float(row["time"]) for row in rows), 2)}


if __name__ == "__main__":
    sys.exit(main())
