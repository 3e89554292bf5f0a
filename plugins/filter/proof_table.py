# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any


def proof_table(proofs: Sequence[dict[str, Any]], width: int = 100) -> list[str]:
    """One line per proof, a reason below each that doesn't pass, and the count at the end."""
    longest = max((len(proof["id"]) for proof in proofs), default=0)
    lines = []
    for proof in proofs:
        lines.append(f"{proof['result']:4}  {proof['id']:{longest}}  {proof['title']}")
        if proof["result"] == "fail":
            lines += [f"      expected {proof['expected']}", f"      but      {proof['actual']}"]
        elif proof["result"] == "skip":
            lines[-1] += f" ({proof['actual']})"
    counts = Counter(proof["result"] for proof in proofs)
    total = f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped"
    return [line if len(line) <= width else f"{line[: width - 3]}..." for line in lines] + [total]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., list[str]]]:
        return {"proof_table": proof_table}
