#!/usr/bin/python
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hikyaku.mail.plugins.module_utils import config_tree, config_tree_task
from ansible_collections.hikyaku.mail.plugins.module_utils.config_tree_landing import (
    Disk,
    LandingError,
)


def main() -> None:
    module = AnsibleModule(config_tree_task.ARGUMENT_SPEC, supports_check_mode=True)

    def run(argv: list[str], cwd: str) -> tuple[int, str, str]:
        rc, stdout, stderr = module.run_command(
            argv,
            cwd=cwd,
            umask=0o077,
            environ_update={"LC_ALL": "C.UTF-8", "PATH": config_tree.SEARCH_PATH},
            expand_user_and_vars=False,
            errors="replace",
        )
        return rc, stdout, stderr

    parameters: dict[str, t.Any] = dict(module.params)
    laid, contents = config_tree_task.unpack(parameters.pop("content"))
    request = config_tree.Request(**parameters, laid=laid, contents=contents)
    try:
        outcome = config_tree.deploy(request, Disk(), run, check=module.check_mode)
    except config_tree.ConfigTreeError as error:
        module.fail_json(msg=str(error), **error.details)
    except (LandingError, OSError) as error:
        module.fail_json(msg=str(error))
    result = dataclasses.asdict(outcome)
    if not module._diff:
        result.pop("diff")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
