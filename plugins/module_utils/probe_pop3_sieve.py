# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""POP3 (RFC 1939) and ManageSieve (RFC 5804) as far as a probe needs them."""

from __future__ import annotations

import base64
import ssl

from .probe_wire import LONGEST_REPLY, ProbeError, Wire


class Pop3:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._good("the greeting")

    def login(self, user: str, password: str) -> str:
        self._wire.send(f"USER {user}")
        self._good("USER")
        self._wire.send(f"PASS {password}", shown="PASS [password]")
        return self._good("PASS")

    def _good(self, said: str) -> str:
        line = self._wire.line()
        if not line.startswith("+OK"):
            raise ProbeError(f"port {self._wire.port}: {said} was answered: {line[:80]}")
        return line


class Sieve:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.capabilities = self._answer("the greeting")

    def starttls(self, context: ssl.SSLContext) -> None:
        self._wire.send("STARTTLS")
        self._answer("STARTTLS")
        self._wire.secure(context)
        self.capabilities = self._answer("TLS")  # told anew (section 2.2)

    def login(self, user: str, password: str) -> str:
        secret = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        self._wire.send(
            f'AUTHENTICATE "PLAIN" "{secret}"', shown=f'AUTHENTICATE "PLAIN" [{user}, password]'
        )
        return self._answer("AUTHENTICATE")[-1]

    def _answer(self, said: str) -> list[str]:
        lines: list[str] = []
        while len(lines) < LONGEST_REPLY:
            lines.append(self._wire.line())
            verdict = lines[-1].split(" ")[0].upper()
            if verdict == "OK":
                return lines
            if verdict in ("NO", "BYE"):
                raise ProbeError(f"port {self._wire.port}: {said} was answered: {lines[-1][:80]}")
        raise ProbeError(f"port {self._wire.port}: an answer of more than {LONGEST_REPLY} lines")
