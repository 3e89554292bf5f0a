# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""accounts as Ansible calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.hikyaku.mail.plugins.modules import accounts

SALT = "abcdefghijklmnop"
HASH = f"{{SHA512-CRYPT}}$6$rounds=100000${SALT}${'a' * 86}"
OTHER = f"{{SHA512-CRYPT}}$6$rounds=100000${SALT}${'b' * 86}"
SITE = {
    "domains": [{"name": "example.test", "catch_all": "alice@example.test"}],
    "accounts": [
        {"address": "alice@example.test", "password_hash": HASH, "quota": "5G"},
        {"address": "noreply@example.test", "password_hash": OTHER, "send_only": True},
    ],
    "aliases": [{"address": "sales@example.test", "to": ["alice@example.test"]}],
}


class Runner:
    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self.capsys = capsys

    def __call__(self, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        arguments = {"path": str(self.path), **SITE, **arguments}
        options = {"_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments | options), pytest.raises(SystemExit):
            accounts.main()
        output = self.capsys.readouterr().out
        assert SALT not in output
        result: dict[str, Any] = json.loads(output)
        return result


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(tmp_path / "directory.sqlite", capsys)


def test_check_run_again_and_again_with_check(run: Runner) -> None:
    predicted = run(check=True, mode="0640")
    assert not run.path.exists()
    done = run(mode="0640")
    assert predicted["changed"] and done["changed"]
    assert predicted["diff"] == done["diff"]
    assert done["counts"]["account"] == {"added": 2, "updated": 0, "removed": 0}
    assert run.path.stat().st_mode & 0o777 == 0o640
    assert not run(mode="0640")["changed"]
    assert not run(mode="0640", check=True)["changed"]


def test_permissions_are_a_change_of_their_own(run: Runner) -> None:
    run(mode="0640")
    run.path.chmod(0o644)
    assert run(mode="0640", check=True)["changed"]
    assert run.path.stat().st_mode & 0o777 == 0o644
    assert run(mode="0640")["changed"]
    assert run.path.stat().st_mode & 0o777 == 0o640


def test_all_faults_at_once_and_nothing_changed(run: Runner) -> None:
    run()
    before = run.path.read_bytes()
    result = run(
        accounts=[
            {"address": "bob@elsewhere.test", "password_hash": HASH},
            {"address": "alice@example.test", "password_hash": "plain", "qouta": "5G"},
        ]
    )
    assert result["failed"]
    assert len(result["faults"]) >= 3
    assert result["msg"] == "\n".join(result["faults"])
    assert run.path.read_bytes() == before


def test_neither_result_nor_journal_has_a_hash(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal: list[str] = []
    monkeypatch.setattr(
        accounts.AnsibleModule,
        "log",
        lambda _self, message, log_args=None: journal.append(f"{message} {log_args}"),
    )
    result = run()  # Runner looks for hashes in the result
    assert "accounts" not in result.get("invocation", {}).get("module_args", {})
    assert journal
    assert SALT not in "".join(journal)
    assert result["diff"]["after"].startswith("account alice@example.test state=present")


def test_a_file_that_is_no_directory_is_told(run: Runner) -> None:
    run.path.write_text("my poems" * 100)
    result = run()
    assert result["failed"]
    assert str(run.path) in result["msg"]


def test_update_password(run: Runner) -> None:
    changed = [{**SITE["accounts"][0], "password_hash": OTHER}, SITE["accounts"][1]]
    run()
    assert run(accounts=changed)["revoked"] == ["alice@example.test"]
    assert not run(accounts=changed, update_password="always")["changed"]
