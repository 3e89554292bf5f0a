# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any


def proof_table(proofs: Sequence[dict[str, Any]], width: int = 74) -> list[str]:
    """One line per proof, the reason below one that fails, and the count at the end."""
    longest = max((len(proof["id"]) for proof in proofs), default=0)
    lines = []
    for proof in proofs:
        note = f"({proof['actual']})" if proof["result"] == "skip" else proof["title"]
        lines.append(f"{proof['result']}  {proof['id']:{longest}}  {note}"[:width])
        if proof["result"] == "fail":
            for reason in (f"expected {proof['expected']}", f"but {proof['actual']}"):
                lines += textwrap.wrap(
                    reason, width, initial_indent="....  ", subsequent_indent="....    "
                )
    counts = Counter(proof["result"] for proof in proofs)
    lines.append(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped")
    return lines


class FilterModule:
    def filters(self) -> dict[str, Callable[..., list[str]]]:
        return {"proof_table": proof_table}
