#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hikyaku.mail.plugins.module_utils.probe import Account, Session
from ansible_collections.hikyaku.mail.plugins.module_utils.probe_proofs import CHECKS, run
from ansible_collections.hikyaku.mail.plugins.module_utils.probe_wire import (
    ProbeError,
    Target,
    trust,
)

_ARGUMENTS = {
    "host": {"type": "str", "required": True},
    "address": {"type": "str"},
    "ca_file": {"type": "path"},
    "account": {
        "type": "dict",
        "options": {
            "address": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
        },
    },
    "second_account": {"type": "str"},
    "relay_target": {"type": "str"},
    "echo_address": {"type": "str"},
    "timeout": {"type": "int", "default": 30},
    "proofs": {"type": "list", "elements": "str", "choices": [check.id for check in CHECKS]},
    "fail_on": {"type": "str", "choices": ["fail", "never"], "default": "fail"},
}


def main() -> None:
    module = AnsibleModule(argument_spec=_ARGUMENTS, supports_check_mode=True)
    params = module.params
    try:
        trusted = trust(params["ca_file"])
    except OSError as exc:  # ssl.SSLError is one
        module.fail_json(msg=f"ca_file: {params['ca_file']}: {exc}")
    session = Session(
        Target(params["host"], params["address"] or params["host"], trusted),
        timeout=params["timeout"],
        account=Account(**params["account"]) if params["account"] else None,
        **{name: params[name] for name in ("second_account", "relay_target", "echo_address")},
    )
    proofs = run(session, params["proofs"])
    result = {
        "proofs": [proof.as_dict() for proof in proofs],
        "failed_proofs": [proof.id for proof in proofs if proof.result == "fail"],
        "leftover": "",
    }
    try:
        session.begin()
        if session.account:
            session.clean_up()
    except ProbeError as exc:
        result["leftover"] = f"the run's own mail ({session.run}) may be left: {exc}"
    if result["failed_proofs"] and params["fail_on"] == "fail":
        reasons = [f"{p.id}: {p.actual}" for p in proofs if p.result == "fail"]
        failed = f"{len(reasons)} of {len(proofs)} proofs failed on {params['host']}"
        module.fail_json(msg="\n".join([failed, *reasons]), **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
