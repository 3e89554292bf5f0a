# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks the site nouns here and the host by target_info. The module has the documentation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
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
ANTIVIRUS_MIB = 1536  # the signatures, and what a scan needs besides
SHOWN = 200  # more lines than that help nobody


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        args: dict[str, Any] = self._task.args
        if not args.keys() <= ARGUMENTS:
            raise AnsibleActionFail(f"what may be given is {', '.join(sorted(ARGUMENTS))}")
        templates = _Templates(self._templar)
        if "site" in args:
            nouns = args["site"]
        else:
            nouns = {noun: templates.render(noun, task_vars.get(noun)) for noun in model.NOUNS}
            # What can't be rendered as a whole isn't judged, nor what depends on it.
            nouns = {noun: nouns[noun] for noun in nouns if noun not in templates.paths}
        if not isinstance(nouns, Mapping):
            raise AnsibleActionFail("site is a mapping of site nouns")
        site, faults = model.parse_site(nouns)
        faults = templates.faults + [fault for fault in faults if fault.path not in templates.paths]
        faults += _foreign_variables(task_vars, args.get("other_variables") or [])
        facts = {}
        if args.get("target") is not None:
            target = dict(args["target"])
            more = ANTIVIRUS_MIB if site.antivirus and "min_memory_mib" in target else 0
            if more:
                target["min_memory_mib"] = int(target["min_memory_mib"]) + more
            found = self._look(target, faults, task_vars)
            for fault in found["faults"]:
                if more and fault["path"] == "memory":
                    fault["allowed"] += f", {more} MiB of it since mail_antivirus is true"
            faults += [model.Fault(**fault) for fault in found["faults"]]
            facts = {"packages": _as_package_facts(found.get("packages", {}))}
        if faults:
            return result | {"failed": True, "msg": _message(faults)}
        return result | {
            "changed": False,
            "ansible_facts": facts,
            # The normal form, as far as it may be shown: the number of accounts, not their hashes.
            "site": {noun: value for noun, value in site.nouns().items() if noun in RETURNED},
            "accounts": len(site.accounts),
            "aliases": len(site.aliases),
        }

    def _look(
        self, limits: dict[str, Any], known: list[model.Fault], task_vars: dict[str, Any]
    ) -> dict[str, Any]:
        """What target_info finds; that it can't run is a fault as well."""
        try:
            found: dict[str, Any] = self._execute_module(
                module_name="hikyaku.mail.target_info",
                module_args=limits | {"controller_time": time.time()},
                task_vars=task_vars,
            )
        except AnsibleConnectionFailure as error:
            if known:  # they are worth knowing although the host can't be reached
                raise AnsibleActionFail(f"{_message(known)}\n{error}") from error
            raise
        if found.get("failed"):
            fault = model.Fault("host", str(found.get("msg")), "one that target_info runs on")
            return {"faults": [asdict(fault)]}
        return found


class _Templates:
    """Renders what is a template and leaves the rest alone.

    Ansible would look at each string of a task's arguments again for each variable on the way to
    it, and copy them all to validate them: for 100,000 accounts a minute, and this half a second.
    """

    def __init__(self, templar: Any) -> None:
        self.templar = templar
        self.faults: list[model.Fault] = []
        self.paths: set[str] = set()

    def render(self, path: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.render(f"{path}.{key}", item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.render(f"{path}[{index}]", item) for index, item in enumerate(value)]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str) and not any(mark in value for mark in ("{{", "{%", "{#")):
            return value
        try:  # a template, or a value of Ansible Vault
            return self.templar.template(value)
        except AnsibleError as error:
            self.paths.add(path)
            self.faults.append(model.Fault(path, "a template", f"one that renders: {error}"))
            return None


def _foreign_variables(task_vars: dict[str, Any], others: list[str]) -> list[model.Fault]:
    """A misspelt noun would otherwise be a variable that nobody reads."""
    known = {*model.NOUNS, *others}
    return [
        fault
        for name in sorted(task_vars)
        if name.startswith("mail_") and name not in known
        for fault in model.parse_site({name: None})[1]
    ]


def _as_package_facts(packages: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """In the form of ansible.builtin.package_facts, which takes a second to find the same."""
    return {
        name: [{"name": name, "version": version, "source": "apt"}]
        for name, version in packages.items()
    }


def _message(faults: list[model.Fault]) -> str:
    lines = [f"Nothing was changed; faults: {len(faults)}"]
    lines += [f"- {fault}" for fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        lines.append(f"- and {len(faults) - SHOWN} more")
    return "\n".join(lines)
