#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hikyaku.mail.plugins.module_utils import target


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "releases": {"type": "list", "elements": "str", "default": ["13"]},
            "min_memory_mib": {"type": "int", "default": 1024},
            "min_disk_mib": {"type": "int", "default": 2048},
            "disk_path": {"type": "path", "default": "/var"},
            "controller_time": {"type": "float"},
            "max_clock_difference": {"type": "int", "default": 60},
            "resolve": {"type": "str"},
            "ports": {
                "type": "list",
                "elements": "int",
                "default": [25, 53, 80, 143, 465, 587, 993, 995, 4190],
            },
        },
        supports_check_mode=True,
    )
    args = module.params
    root = Path("/")
    faults = target.check_release(
        (root / "etc/os-release").read_text(encoding="utf-8"), args["releases"]
    )
    faults += target.check_memory(root, args["min_memory_mib"])
    faults += target.check_disk(args["disk_path"], args["min_disk_mib"])
    if args["controller_time"] is not None:
        faults += target.check_clock(args["controller_time"], args["max_clock_difference"])
    if args["resolve"]:
        faults += target.check_name(args["resolve"])
    faults += target.check_ports(root, args["ports"])
    module.exit_json(
        changed=False,
        faults=[asdict(fault) for fault in faults],
        packages=target.packages(root),
    )


if __name__ == "__main__":
    main()
