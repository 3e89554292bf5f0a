# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""A second run changes nothing, restarts nothing, tells the truth, and nobody notices it."""

from __future__ import annotations

import socket
import threading

SERVICES = ("unbound", "rspamd", "valkey-server", "dovecot", "postsrsd", "postfix")
MOST_TASKS = 70


def started(host) -> dict[str, str]:
    """When each service was last started and reloaded, as systemd has it."""
    return {
        unit: host.check_output(
            f"systemctl show -p InvocationID -p ExecMainStartTimestampMonotonic {unit}"
        )
        for unit in SERVICES
    }


def refused(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            return not connection.recv(1) if port == 25 else False
    except OSError:
        return True


def test_c103_second_run_changes_nothing_and_nobody_notices(host, mx1, run_playbook):
    before, stop, refusals, tries = started(host), threading.Event(), [], [0]

    def knock() -> None:
        while not stop.wait(0.2):
            tries[0] += 1
            refusals.extend(port for port in (25, 993) if refused(mx1.ipv4, port))

    knocker = threading.Thread(target=knock)
    knocker.start()
    try:
        run = run_playbook("site.yml")
    finally:
        stop.set()
        knocker.join()
    assert run.returncode == 0, run.output
    assert run.count("changed") == 0, run.output
    assert run.count("ok") <= MOST_TASKS
    assert "[DEPRECATION WARNING]" not in run.output
    assert "[WARNING]" not in run.output
    assert started(host) == before
    assert tries[0] > 10
    assert refusals == []


def test_c103_check_on_a_converged_host_predicts_no_change(run_playbook):
    run = run_playbook("site.yml", "--check", "--diff")
    assert run.returncode == 0, run.output
    assert run.count("changed") == 0, run.output
    assert "[DEPRECATION WARNING]" not in run.output
