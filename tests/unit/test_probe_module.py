# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""The module's glue and documentation, and the table of proofs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.hikyaku.mail.plugins.filter.proof_table import FilterModule
from ansible_collections.hikyaku.mail.plugins.module_utils.probe_proofs import CHECKS

ROOT = Path(__file__).resolve().parents[2]
MODULE = "ansible_collections.hikyaku.mail.plugins.modules.mail_probe_info"


def call(**arguments: Any) -> dict[str, Any]:
    """Run the module as Ansible does, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", MODULE],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env={"PYTHONPATH": str(ROOT / ".collections")},
        text=True,
        capture_output=True,
        check=False,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# Nobody listens on 127.0.0.9: each proof fails at once.
UNREACHABLE = {"host": "mx.example.test", "address": "127.0.0.9", "proofs": ["smtp.starttls"]}


def test_a_host_that_is_not_there_fails_with_names_and_reasons() -> None:
    answer = call(**UNREACHABLE)
    assert answer["failed"]
    assert answer["failed_proofs"] == ["smtp.starttls"]
    assert answer["msg"] == (
        "1 of 1 proofs failed on mx.example.test\n"
        "smtp.starttls: port 25: no connection: Connection refused"
    )


def test_it_need_not_fail_and_never_changes() -> None:
    answer = call(**UNREACHABLE, fail_on="never")
    assert (answer["changed"], answer.get("failed", False)) == (False, False)
    assert answer["proofs"][0]["result"] == "fail"


def test_mail_that_could_not_be_removed_is_told() -> None:
    account = {"address": "a@example.test", "password": "hidden"}
    answer = call(**UNREACHABLE, fail_on="never", account=account)
    assert "may be left: port 993: no connection" in answer["leftover"]
    assert "hidden" not in json.dumps(answer)


def test_an_unreadable_ca_file_is_the_callers_fault() -> None:
    assert "ca_file: /nowhere" in call(**UNREACHABLE, ca_file="/nowhere")["msg"]


def test_all_proofs_are_documented() -> None:
    documentation = yaml.safe_load((ROOT / "plugins/modules/mail_probe_info.yml").read_text())
    choices = documentation["DOCUMENTATION"]["options"]["proofs"]["choices"]
    assert choices == [check.id for check in CHECKS]


def proof(result: str, actual: str = "250 ok") -> dict[str, Any]:
    return {
        "id": f"smtp.{result}",
        "title": "Something",
        "result": result,
        "expected": "5xx",
        "actual": actual,
    }


@pytest.fixture
def table() -> Any:
    return FilterModule().filters()["proof_table"]


def test_the_table_names_what_fails_and_counts(table: Any) -> None:
    assert table([proof("pass"), proof("fail"), proof("skip", "no account given")]) == [
        "pass  smtp.pass  Something",
        "fail  smtp.fail  Something",
        "....  expected 5xx",
        "....  but 250 ok",
        "skip  smtp.skip  (no account given)",
        "1 passed, 1 failed, 1 skipped",
    ]


def test_the_table_wraps_long_reasons(table: Any) -> None:
    lines = table([proof("fail", "many words " * 20)], width=40)
    assert max(map(len, lines)) <= 40
    assert " ".join(lines).count("many") == 20


def test_an_empty_table(table: Any) -> None:
    assert table([]) == ["0 passed, 0 failed, 0 skipped"]
