# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks the site nouns here and the host by target_info. The module has the documentation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.hikyaku.mail.plugins.module_utils import model

ARGUMENTS = {"site", "other_variables", "target"}
RETURNED = (
    "mail_hostname",
    "mail_profile",
    "mail_postmaster",
    "mail_domains",
    "mail_login_networks",
)
SHOWN = 200  # more lines than that help nobody


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        # No validate_argument_spec: it would copy the whole inventory to look at three names.
        args: dict[str, Any] = self._task.args
        if not isinstance(args.get("site"), Mapping) or not args.keys() <= ARGUMENTS:
            raise AnsibleActionFail(f"allowed are {', '.join(sorted(ARGUMENTS))}; site is required")
        site, faults = model.parse_site(args["site"])
        faults += _foreign_variables(task_vars, args.get("other_variables") or [])
        if args.get("target") is not None:
            faults += self._target_faults(args["target"], faults, task_vars)
        if faults:
            return result | {"failed": True, "msg": _message(faults)}
        return result | {
            "changed": False,
            # The normal form, as far as it may be shown: the number of accounts, not their hashes.
            "site": {noun: value for noun, value in site.nouns().items() if noun in RETURNED},
            "accounts": len(site.accounts),
            "aliases": len(site.aliases),
        }

    def _target_faults(
        self, limits: dict[str, Any], known: list[model.Fault], task_vars: dict[str, Any]
    ) -> list[model.Fault]:
        try:
            found = self._execute_module(
                module_name="hikyaku.mail.target_info",
                module_args=limits | {"controller_time": time.time()},
                task_vars=task_vars,
            )
        except AnsibleConnectionFailure as error:
            if known:  # they are worth knowing although the host can't be reached
                raise AnsibleActionFail(f"{_message(known)}\n{error}") from error
            raise
        if found.get("failed"):
            return [
                model.Fault(
                    "host", str(found.get("msg")), "one with Python 3 that target_info runs on"
                )
            ]
        return [model.Fault(**fault) for fault in found["faults"]]


def _foreign_variables(task_vars: dict[str, Any], others: list[str]) -> list[model.Fault]:
    """A misspelt noun would otherwise be a variable that nobody reads."""
    known = {*model.NOUNS, *others}
    return [
        fault
        for name in sorted(task_vars)
        if name.startswith("mail_") and name not in known
        for fault in model.parse_site({name: None})[1]
    ]


def _message(faults: list[model.Fault]) -> str:
    lines = [f"Nothing was changed; faults: {len(faults)}"]
    lines += [f"- {fault}" for fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        lines.append(f"- and {len(faults) - SHOWN} more")
    return "\n".join(lines)
