#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hikyaku.mail.plugins.module_utils.dkim_files import find_keys


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": []},
            "path_template": {"type": "path"},
        },
        supports_check_mode=True,
        required_one_of=[("paths", "path_template")],
    )
    found = find_keys(module.params["paths"], module.params["path_template"], time.time())
    answer = {"dkim_keys": found.keys, "shared": found.shared, "faults": found.faults}
    if found.faults:
        module.fail_json(msg="\n".join(found.faults), **answer)
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
