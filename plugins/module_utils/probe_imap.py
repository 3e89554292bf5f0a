# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""IMAP as far as a probe needs it (RFC 9051, 3501)."""

from __future__ import annotations

import re
import ssl

from .probe_wire import LONGEST_REPLY, ProbeError, Wire


class Imap:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._number = 0
        greeting = wire.line()
        if not greeting.upper().startswith(("* OK", "* PREAUTH")):
            raise ProbeError(f"port {wire.port}: not IMAP: {greeting[:80]!r}")

    def capabilities(self) -> set[str]:
        lines, _literals = self.command("CAPABILITY")
        found = [line for line in lines if line.upper().startswith("* CAPABILITY ")]
        return {word.upper() for line in found for word in line.split()[2:]}

    def starttls(self, context: ssl.SSLContext) -> None:
        self.command("STARTTLS")
        self._wire.secure(context)

    def login(self, user: str, password: str) -> None:
        self.command(
            f"LOGIN {_quoted(user)} {_quoted(password)}", shown=f"LOGIN [{user}, password]"
        )

    def select(self, mailbox: str) -> bool:
        """Whether the mailbox is there."""
        return self._ask(f"SELECT {_quoted(mailbox)}")[2]

    def search(self, subject: str) -> list[str]:
        self.command("NOOP")  # new mail is announced with it
        lines, _literals = self.command(f"UID SEARCH SUBJECT {_quoted(subject)}")
        found = [line.split()[2:] for line in lines if line.upper().startswith("* SEARCH")]
        return [uid for uids in found for uid in uids if uid.isdigit()]

    def fetch(self, uid: str) -> bytes:
        _lines, literals = self.command(f"UID FETCH {uid} (BODY.PEEK[])")
        if not literals:
            raise ProbeError(f"port {self._wire.port}: message {uid} was not sent")
        return literals[0]

    def delete(self, uids: list[str]) -> None:
        self.command(f"UID STORE {','.join(uids)} +FLAGS.SILENT (\\Deleted)")
        self.command("EXPUNGE")

    def command(self, command: str, shown: str | None = None) -> tuple[list[str], list[bytes]]:
        lines, literals, good = self._ask(command, shown)
        if not good:
            verb = command.split(" ")[0]
            raise ProbeError(f"port {self._wire.port}: {verb} was answered: {lines[-1]}")
        return lines, literals

    def _ask(self, command: str, shown: str | None = None) -> tuple[list[str], list[bytes], bool]:
        """All lines of the answer, its literals, and whether it is OK."""
        self._number += 1
        tag = f"a{self._number}"
        self._wire.send(f"{tag} {command}", shown and f"{tag} {shown}")
        lines: list[str] = []
        literals: list[bytes] = []
        while len(lines) < LONGEST_REPLY:
            line = self._wire.line()
            lines.append(line)
            if line.startswith(f"{tag} "):
                return lines, literals, line[len(tag) :].upper().startswith(" OK")
            if literal := re.search(r"\{([0-9]{1,10})\}$", line):
                literals.append(self._wire.take(int(literal[1])))
        raise ProbeError(f"port {self._wire.port}: an answer of more than {LONGEST_REPLY} lines")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
