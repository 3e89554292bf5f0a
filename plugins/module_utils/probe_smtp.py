# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""SMTP as far as a probe needs it (RFC 5321, 3207, 4954)."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterable
from dataclasses import dataclass

from .probe_wire import LONGEST_REPLY, ProbeError, Wire


@dataclass(frozen=True, slots=True)
class Reply:
    code: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.code} {' / '.join(self.lines)}".strip()

    @property
    def refused(self) -> bool:
        return 500 <= self.code < 600


class Refused(ProbeError):
    """An answer that isn't the one wanted."""

    def __init__(self, said: str, reply: Reply) -> None:
        super().__init__(f"{said}: {reply}")
        self.reply = reply
        self.temporary = 400 <= reply.code < 500


class Smtp:
    def __init__(self, wire: Wire, name: str) -> None:
        self._wire, self._name = wire, name
        self._wanted("the greeting", self.reply(), (220,))

    def ask(self, command: str, shown: str | None = None) -> Reply:
        self._wire.send(command, shown)
        return self.reply()

    def command(
        self, command: str, wanted: Iterable[int] = (250,), shown: str | None = None
    ) -> Reply:
        verb = (shown or command).split(":")[0].split(" ")[0]
        return self._wanted(verb, self.ask(command, shown), wanted)

    def ehlo(self) -> dict[str, str]:
        """The extensions and their parameters."""
        lines = self.command(f"EHLO {self._name}").lines[1:]
        return {
            word.upper(): rest for word, _space, rest in (line.partition(" ") for line in lines)
        }

    def starttls(self, context: ssl.SSLContext) -> None:
        self.command("STARTTLS", (220,))
        self._wire.secure(context)

    def login(self, user: str, password: str) -> None:
        secret = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        self.command(f"AUTH PLAIN {secret}", (235,), shown=f"AUTH PLAIN [{user}, password]")

    def deliver(self, message: bytes, sender: str, recipient: str) -> Reply:
        self.command(f"MAIL FROM:<{sender}>")
        self.command(f"RCPT TO:<{recipient}>")
        self.command("DATA", (354,))
        self.send_message(message)
        return self._wanted("the message", self.reply(), (250,))

    def send_message(self, message: bytes) -> None:
        """What follows DATA, up to the dot."""
        lines = message.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
        stuffed = [b"." + line if line.startswith(b".") else line for line in lines]
        self._wire.send_bytes(b"\r\n".join([*stuffed, b".", b""]))

    def reply(self) -> Reply:
        lines: list[str] = []
        while len(lines) < LONGEST_REPLY:
            line = self._wire.line()
            code, mark = line[:3], line[3:4]
            if not (code.isascii() and code.isdigit() and mark in ("", " ", "-")):
                raise ProbeError(f"port {self._wire.port}: not SMTP: {line[:80]!r}")
            lines.append(line[4:])
            if mark != "-":
                return Reply(int(code), tuple(lines))
        raise ProbeError(f"port {self._wire.port}: a reply of more than {LONGEST_REPLY} lines")

    def _wanted(self, said: str, reply: Reply, wanted: Iterable[int]) -> Reply:
        if reply.code not in wanted:
            raise Refused(f"port {self._wire.port}: {said} was answered", reply)
        return reply
