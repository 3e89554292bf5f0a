# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Much mail to one mailbox at once."""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor

from conftest import MailHost
from mailclient import VISITOR, Imap, Smtp, eventually, message, token

ALICE = "alice@example.test"


def test_a_burst_to_one_mailbox_is_delivered_and_not_deferred(
    mx1: MailHost, tls: ssl.SSLContext, accounts: dict[str, str]
) -> None:
    subject = token()

    def send(number: int) -> None:
        with Smtp(mx1) as session:
            for part in range(10):
                mail = message(VISITOR, ALICE, f"{subject} {number}.{part}")
                session.sendmail(VISITOR, ALICE, mail.as_bytes())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(8)))
    # What is deferred comes back after five minutes (minimal_backoff_time).
    with Imap(mx1, tls, ALICE, accounts[ALICE]) as session:
        eventually(lambda: len(session.find(subject)), lambda found: found == 80, timeout=90)
