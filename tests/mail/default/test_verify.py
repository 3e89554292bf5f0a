# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""verify.yml passes on a sound host, and names the proof that fails on a broken one."""

from __future__ import annotations

import re

# What may stand in the journal after all proofs, and why.
EXPLAINED = (
    r"SASL \w+ authentication failed",  # one proof is that a wrong password opens nothing
    r"pam_env\(sshd:session\): Unable to open env file: /etc/default/locale",  # a minimal Debian
)
KEY = "/var/lib/rspamd/dkim/example.test.r1.key"


def failed_proofs(output: str) -> set[str]:
    return {
        line.split("fail", 1)[1].split()[0]
        for line in output.splitlines()
        if line.strip().startswith("- fail ")
    }


def test_every_proof_passes_on_a_sound_host_and_leaves_no_warning(host, run_playbook):
    cursor = host.check_output("journalctl -n 0 --show-cursor").split("cursor: ")[1]
    run = run_playbook("playbooks/verify.yml")
    assert run.returncode == 0, run.output
    assert failed_proofs(run.output) == set()
    assert " 0 failed, 0 skipped" in run.output
    journal = host.check_output(
        "journalctl -q -p warning -o cat --no-pager --after-cursor=%s", cursor
    )
    explained = re.compile("|".join(EXPLAINED))
    assert [line for line in journal.splitlines() if not explained.search(line)] == []


def test_a_stopped_filter_is_named(host, run_playbook):
    host.check_output("systemctl stop rspamd")
    try:
        run = run_playbook("playbooks/verify.yml", "-e", "verify_timeout=10")
    finally:
        host.check_output("systemctl start rspamd")
    assert run.returncode != 0
    assert "local.delivery" in failed_proofs(run.output)
    assert "roundtrip.465" in failed_proofs(run.output)
    assert "imap.login" not in failed_proofs(run.output)


def test_a_key_that_is_not_the_published_one_is_named(host, run_playbook):
    host.check_output(f"cp -a {KEY} {KEY}.kept")
    try:
        # Written in place: owner and mode stay.
        host.check_output(f"openssl genrsa 2048 2>/dev/null > {KEY}; systemctl restart rspamd")
        run = run_playbook("playbooks/verify.yml")
    finally:
        host.check_output(f"mv {KEY}.kept {KEY}; systemctl restart rspamd")
    assert run.returncode != 0
    assert "roundtrip.dkim_two_signatures" in failed_proofs(run.output)
    assert "local.delivery" not in failed_proofs(run.output)
