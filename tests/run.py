# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Run the named stages (lint, unit, molecule), go on after a failure, and count at the end.

The last line is 'N passed, N failed'. A tool counts as one; a pytest run counts each of its tests.
"""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
LAB = "molecule/shared/lab"


@dataclass(frozen=True)
class Step:
    name: str
    argv: list[str]
    junit: str = ""  # the pytest report of this step, if it makes one


def lint() -> Iterator[Step]:
    yield Step("yamllint", ["yamllint", "--strict", "."])
    yield Step("ruff check", ["ruff", "check", "."])
    yield Step("ruff format", ["ruff", "format", "--check", "."])
    yield Step("mypy", ["mypy"])
    yield Step("ansible-lint", ["ansible-lint", "--offline"])
    yield Step("ansible-test sanity", [sys.executable, "tests/sanity.py"])


def unit() -> Iterator[Step]:
    yield Step(
        "unit tests", ["pytest", "-q", "tests/unit", "--junitxml=.cache/junit/unit.xml"], "unit"
    )


def molecule() -> Iterator[Step]:
    yield Step("lab setup", [LAB, "setup"])
    for scenario in ("default", "options"):  # the second goes on where the first one ends
        argv = [LAB, "run", "molecule", "test", "--no-command-borders", "-s", scenario]
        yield Step(f"molecule {scenario}", argv, scenario)


STAGES = {"lint": lint, "unit": unit, "molecule": molecule}


def count(report: Path) -> tuple[int, int]:
    """Passed and failed tests of a JUnit report."""
    suites = ET.parse(report).getroot().iter("testsuite")
    total = failed = 0
    for suite in suites:
        total += int(suite.get("tests", 0)) - int(suite.get("skipped", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return total - failed, failed


def main(names: list[str]) -> int:
    (CACHE / "junit").mkdir(parents=True, exist_ok=True)
    passed, failed, summary = 0, 0, []
    for step in (step for name in names for step in STAGES[name]()):
        report = CACHE / "junit" / f"{step.junit}.xml"
        if step.junit:
            report.unlink(missing_ok=True)
        print(f"\n=== {step.name}", flush=True)
        start = time.monotonic()
        good = subprocess.run(step.argv, cwd=ROOT, check=False).returncode == 0
        if step.junit and report.exists():
            tests_passed, tests_failed = count(report)
            passed, failed = passed + tests_passed, failed + tests_failed
            good = good or tests_failed > 0  # its tests are counted already
        passed, failed = passed + good, failed + (not good)
        summary.append(
            f"{'ok    ' if good else 'FAILED'} {step.name}: {time.monotonic() - start:.0f} s"
        )
    print("\n" + "\n".join(summary))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
