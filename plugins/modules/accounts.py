#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import sqlite3
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hikyaku.mail.plugins.module_utils.directory import (
    DirectoryError,
    Sqlite,
    reconcile,
)
from ansible_collections.hikyaku.mail.plugins.module_utils.model import parse_site


def main() -> None:
    dicts = {"type": "list", "elements": "dict"}
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            # no_log keeps hashes out of the journal, and thousands of names as well.
            "domains": {**dicts, "required": True, "no_log": True},
            "accounts": {**dicts, "default": [], "no_log": True},
            "aliases": {**dicts, "default": [], "no_log": True},
            "update_password": {
                "choices": ["on_create", "always"],
                "default": "on_create",
                "no_log": False,
            },
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    params = module.params
    # no_log makes a secret of each address too. So what we return is clean by construction, and
    # the arguments, which are what Ansible would clean, are not returned.
    module.no_log_values.clear()
    nouns = ("domains", "accounts", "aliases")
    invocation = {"module_args": {k: v for k, v in params.items() if k not in nouns}}

    site, faults = parse_site({f"mail_{noun}": params[noun] for noun in nouns})
    if faults:
        texts = [str(fault) for fault in faults]
        module.fail_json(msg="\n".join(texts), faults=texts, invocation=invocation)
    always_set = params["update_password"] == "always"
    driver = Sqlite(params["path"], dry_run=module.check_mode)
    try:
        report = reconcile(driver, site, always_set_passwords=always_set)
    except (DirectoryError, sqlite3.Error, OSError) as error:
        module.fail_json(msg=f"{params['path']}: {error}", invocation=invocation)
    changed = report.changed
    if Path(params["path"]).exists():
        arguments = module.load_file_common_arguments(params)
        changed = module.set_fs_attributes_if_different(arguments, changed)
    module.exit_json(
        changed=changed,
        counts=report.counts,
        left=report.left,
        revoked=report.revoked,
        schema_version=report.schema[1],
        diff={"before": report.before, "after": report.after},
        invocation=invocation,
    )


if __name__ == "__main__":
    main()
