# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Messages a second through the filters and through submission, beside bare Postfix and LMTP.

On one host in one run, in turns, from first connection to the last message in its mailbox. The bare
path is a second smtpd of the same Postfix without filters. Then what each service has in memory:
the sum of PSS, which shares what processes share. Run by `make bench` on a provisioned host.
"""

from __future__ import annotations

import json
import smtplib
import ssl
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / ".cache" / "lab"
VISITOR, ALICE, BOB = "visitor@pebble.test", "alice@example.test", "bob@example.test"
BARE = 2525
SESSIONS, MESSAGES, ROUNDS = 8, 400, 3
ADDRESS = json.loads((LAB / "lab.json").read_text())["address4"]["mx1.example.test"]
# A bench sends more than anybody may.
UNLIMITED = "-o smtpd_client_connection_rate_limit=0 -o smtpd_client_message_rate_limit=0"

PSS = r"""
services=$(systemctl list-units --type=service --state=running --plain --no-legend | cut -d' ' -f1)
for unit in $services; do
  group=/sys/fs/cgroup$(systemctl show --value -p ControlGroup "$unit")
  sum=0
  for pid in $(find "$group" -name cgroup.procs -exec cat {} +); do
    pss=$(awk '/^Pss:/ {print $2}' /proc/$pid/smaps_rollup 2>/dev/null)
    sum=$((sum + ${pss:-0}))
  done
  echo "$sum $unit"
done
"""


def on_host(command: str) -> str:
    argv = ["ssh", "-F", str(LAB / "ssh_config"), "mx1", command]
    return subprocess.run(argv, text=True, capture_output=True, check=True).stdout


def mail(sender: str, number: int) -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, BOB, f"Bench {number}"
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="pebble.test")
    message.set_content("A line of an ordinary letter, of ordinary length.\r\n" * 60)
    return message.as_bytes()


def session(port: int, password: str | None) -> None:
    sender = ALICE if password else VISITOR
    with smtplib.SMTP(ADDRESS, port, local_hostname="pebble.test", timeout=300) as smtp:
        if password:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            smtp.starttls(context=context)
            smtp.login(ALICE, password)
        for number in range(MESSAGES // SESSIONS):
            smtp.sendmail(sender, BOB, mail(sender, number))


def rate(port: int, password: str | None = None) -> float:
    before = delivered()
    start = time.monotonic()
    with ThreadPoolExecutor(SESSIONS) as pool:
        list(pool.map(lambda _number: session(port, password), range(SESSIONS)))
    while delivered() < before + MESSAGES:
        time.sleep(0.1)
    return MESSAGES / (time.monotonic() - start)


def delivered() -> int:
    return int(on_host("find /var/vmail/example.test/bob/Maildir/new | wc -l"))


def memory() -> list[tuple[int, str]]:
    rows = [line.split() for line in on_host(PSS).splitlines()]
    return sorted(((int(size), unit) for size, unit in rows), reverse=True)


def show(title: str) -> None:
    rows = memory()
    print(f"{title}: {sum(size for size, _unit in rows) / 1024:.0f} MiB (PSS of all services)")
    for size, unit in rows:
        if size >= 1024:
            print(f"  {size / 1024:6.1f} MiB  {unit}")


def main() -> None:
    variables = yaml.safe_load((ROOT / "inventories/demo/group_vars/mail.yml").read_text())
    password = variables["demo_passwords"][ALICE]
    show("idle host")
    on_host(
        f"postconf -M '{BARE}/inet={BARE} inet n - n - - smtpd -o smtpd_milters= {UNLIMITED}'"
        " && systemctl reload postfix"
    )
    try:
        paths: dict[str, tuple[int, str | None]] = {
            "bare": (BARE, None),
            "filtered inbound": (25, None),
            "submission": (587, password),
        }
        rates: dict[str, list[float]] = {name: [] for name in paths}
        for _round in range(ROUNDS):
            for name, (port, secret) in paths.items():
                rates[name].append(rate(port, secret))
    finally:
        on_host(f"postconf -MX {BARE}/inet && systemctl reload postfix")
    for name, found in rates.items():
        ratios = [one / bare for one, bare in zip(found, rates["bare"], strict=True)]
        each = ", ".join(f"{one:.0f}" for one in found)
        print(f"{name}: {each} messages/s; {statistics.median(ratios):.2f} times bare")
    show("after that")


if __name__ == "__main__":
    main()
