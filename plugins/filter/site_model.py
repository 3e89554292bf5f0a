# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from collections.abc import Callable, Mapping

from ansible.errors import AnsibleFilterError
from ansible_collections.hikyaku.mail.plugins.module_utils import model


def site_model(nouns: object) -> dict[str, object]:
    if not isinstance(nouns, Mapping):
        raise AnsibleFilterError("site_model takes a mapping of site nouns, such as mail_domains")
    site, faults = model.parse_site(nouns)
    if faults:
        raise AnsibleFilterError("\n".join(map(str, faults)))
    return {noun: value for noun, value in site.nouns().items() if noun in nouns}


class FilterModule:
    def filters(self) -> dict[str, Callable[[object], dict[str, object]]]:
        return {"site_model": site_model}
