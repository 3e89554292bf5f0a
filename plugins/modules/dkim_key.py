#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import grp
import pwd

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hikyaku.mail.plugins.module_utils.dkim_files import (
    REGENERATE,
    Access,
    ensure_keys,
    read_specs,
)

_LIST = {"type": "list", "elements": "str"}
_KEY = {
    "selector": {"type": "str", "required": True},
    "type": {"type": "str", "choices": ["rsa", "ed25519"], "default": "rsa"},
    "bits": {"type": "int", "choices": [2048, 3072, 4096], "default": 2048},
    "format": {"type": "str", "choices": ["pkcs8", "pkcs1", "ed25519_seed"]},
    "record": {
        "type": "dict",
        "options": {"h": _LIST, "s": _LIST, "t": _LIST, "n": {"type": "str"}},
    },
}
_ARGUMENTS = {
    "keys": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "no_log": False,
        "options": {**_KEY, "domain": {"type": "str", "required": True}, "path": {"type": "path"}},
    },
    "domains": {**_LIST, "default": []},
    "selectors": {"type": "list", "elements": "dict", "default": [], "options": _KEY},
    "path_template": {"type": "path"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "regenerate": {"type": "str", "choices": list(REGENERATE), "default": "fail"},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "mode": {"type": "str", "default": "0640"},
    "backup": {"type": "bool", "default": False},
    "threads": {"type": "int", "default": 0},
}


def main() -> None:
    module = AnsibleModule(argument_spec=_ARGUMENTS, supports_check_mode=True)
    params = module.params
    specs, faults = read_specs(
        params["keys"], params["domains"], params["selectors"], params["path_template"]
    )
    ids = {"owner": -1, "group": -1}
    for option, find in (("owner", _uid), ("group", _gid)):
        try:
            ids[option] = -1 if params[option] is None else find(params[option])
        except KeyError:
            if not module.check_mode:  # there it may only not exist yet
                faults.append(f"{option}: {params[option]}; allowed: one that exists")
    try:
        mode = int(params["mode"], 8)
    except ValueError:
        faults.append(f"mode: {params['mode']}; allowed: octal such as '0640'")
    if faults:
        module.fail_json(msg="\n".join(faults), faults=faults)
    result = ensure_keys(
        specs,
        Access(ids["owner"], ids["group"], mode),
        regenerate=params["regenerate"],
        present=params["state"] == "present",
        backup=params["backup"],
        threads=params["threads"],
        dry_run=module.check_mode,
    )
    answer = {
        "changed": result.changed,
        "dkim_keys": result.keys,
        "records": [{"name": key["name"], "txt": key["txt"]} for key in result.keys if key["txt"]],
        "diff": {"before": "".join(result.before), "after": "".join(result.after)},
    }
    if result.faults:
        module.fail_json(msg="\n".join(result.faults), faults=result.faults, **answer)
    module.exit_json(**answer)


def _uid(name: str) -> int:
    return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid


if __name__ == "__main__":
    main()
