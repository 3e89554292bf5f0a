# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""How much an account may send: busy@example.test, two mails and four recipients an hour."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Iterator

import pytest
from conftest import MailHost
from mailclient import DIRECTORY, Imap, eventually, message, submit, token
from testinfra.host import Host

ALICE, BOB, CAROL = "alice@example.test", "bob@example.test", "carol@second.test"
BUSY = "busy@example.test"
POSTMASTER = ALICE  # where postmaster@example.test leads
VALKEY = "valkey-cli -s /run/valkey/valkey.sock"

_ADD = """
import sqlite3, sys
path, busy, bob = sys.argv[1:]
with sqlite3.connect(path) as directory:
    for table in "address", "account":
        names = [row[1] for row in directory.execute(f"PRAGMA table_info({table})")][1:]
        rest = ", ".join(names)
        select = f"SELECT ?, {rest} FROM {table} WHERE address = ?"
        directory.execute(f"INSERT INTO {table} (address, {rest}) {select}", (busy, bob))
"""
_REMOVE = """
import sqlite3, sys
path, busy = sys.argv[1:]
with sqlite3.connect(path) as directory:
    for table in "account", "address":
        directory.execute(f"DELETE FROM {table} WHERE address = ?", (busy,))
"""


@pytest.fixture
def busy(
    host: Host, mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> Iterator[smtplib.SMTP]:
    """A session of an account that has sent nothing yet and has bob's password."""
    host.check_output(
        f"{VALKEY} --scan --pattern 'RL*' | xargs {VALKEY} del 'hikyaku_alert:{BUSY}'"
    )
    host.check_output("python3 -c %s %s %s %s", _ADD, DIRECTORY, BUSY, BOB)
    try:
        with submit(mx1, 465, tls, BUSY, accounts[BOB]) as session:
            yield session
    finally:
        host.check_output("python3 -c %s %s %s", _REMOVE, DIRECTORY, BUSY)


def over_limit(session: smtplib.SMTP, *recipients: str) -> None:
    with pytest.raises(smtplib.SMTPDataError) as refusal:
        session.send_message(message(BUSY, recipients[0], token()), to_addrs=recipients)
    assert refusal.value.smtp_code == 451
    assert b"sent too much in the last hour" in refusal.value.smtp_error


def test_over_its_limit_an_account_waits_and_the_postmaster_is_told_once(
    busy: smtplib.SMTP, host: Host, mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    start = host.check_output("date +%s")
    alert = f'"{BUSY} is over its sending limit"'
    with Imap(mx1, tls, POSTMASTER, accounts[POSTMASTER]) as inbox:
        before = len(inbox.find(alert))
        for _ in range(2):
            busy.send_message(message(BUSY, BOB, token()))
        over_limit(busy, BOB)
        over_limit(busy, BOB)
        eventually(lambda: len(inbox.find(alert)) > before, timeout=30)
        with submit(mx1, 465, tls, CAROL, accounts[CAROL]) as other:
            other.send_message(message(CAROL, BOB, token()))
        over_limit(busy, "postmaster@example.test")
        assert len(inbox.find(alert)) == before + 1
    journal = host.check_output("journalctl -u rspamd --since @%s", start.strip())
    assert f"account {BUSY} is over its sending limit: messages an hour" in journal


def test_recipients_count_too(busy: smtplib.SMTP) -> None:
    busy.send_message(message(BUSY, BOB, token()), to_addrs=[ALICE, BOB, CAROL])
    over_limit(busy, ALICE, BOB)


def test_without_valkey_mail_flows(busy: smtplib.SMTP, host: Host) -> None:
    host.check_output("systemctl stop valkey-server")
    try:
        for _ in range(3):
            busy.send_message(message(BUSY, BOB, token()))
    finally:
        host.check_output("systemctl start valkey-server")
