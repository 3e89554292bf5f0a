# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.errors import (
    AnsibleActionFail,
    AnsibleConnectionFailure,
    AnsibleError,
    AnsibleFilterError,
)
from ansible_collections.hikyaku.mail.plugins.action import site_model as action
from ansible_collections.hikyaku.mail.plugins.filter.site_model import FilterModule
from ansible_collections.hikyaku.mail.plugins.module_utils import model
from ansible_collections.hikyaku.mail.plugins.modules import site_model as module

HASH = f"{{BLF-CRYPT}}$2y$12${'e' * 53}"
SITE: dict[str, Any] = {
    "mail_hostname": "MX1.example.com",
    "mail_postmaster": "alice@example.com",
    "mail_domains": [{"name": "Example.com"}],
    "mail_accounts": [{"address": "alice@example.com", "password_hash": HASH}],
    "mail_smarthost": {"host": "smtp.example.net", "username": "me", "password": "hunter2"},
}
PORT = {"path": "port 25", "value": "held by exim4 (pid 812)", "allowed": "nobody but master"}


class Templar:
    """Knows one variable, and counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def template(self, value: Any) -> Any:
        self.asked.append(value)
        if value != "{{ vault_alice }}":
            raise AnsibleError(f"{value} is undefined")
        return HASH


class Action(action.ActionModule):
    """The action plugin without a connection."""

    def __init__(self, args: dict[str, Any], found: dict[str, Any] | Exception) -> None:
        self._task = SimpleNamespace(args=args, async_val=0, check_mode=True, diff=False)
        self._task.delegate_to = self._task.action = None
        self._connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/nowhere"))
        self._templar = Templar()
        self.found = found
        self.called: dict[str, Any] = {}

    def _execute_module(self, **call: Any) -> dict[str, Any]:
        self.called = call
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def run(
    task_vars: dict[str, Any],
    found: dict[str, Any] | Exception | None = None,
    **args: Any,
) -> tuple[Action, dict[str, Any]]:
    plugin = Action(args, found or {"faults": []})
    return plugin, plugin.run(task_vars=task_vars)


def test_a_good_site_comes_back_without_secrets() -> None:
    plugin, result = run(SITE | {"other": 1, "ansible_mail_x": 2})
    assert not result.get("failed") and result["changed"] is False
    assert result["site"]["mail_hostname"] == "mx1.example.com"
    assert (result["accounts"], result["aliases"]) == (1, 0)
    assert "hunter2" not in str(result) and HASH not in str(result)
    assert plugin.called == {} and plugin._templar.asked == []


def test_the_host_is_looked_at_with_the_controllers_time() -> None:
    plugin, result = run(SITE, target={"min_memory_mib": 4096})
    assert not result.get("failed")
    assert plugin.called["module_name"] == "hikyaku.mail.target_info"
    assert plugin.called["module_args"].keys() == {"min_memory_mib", "controller_time"}


def test_an_antivirus_needs_more_memory_and_the_fault_names_the_noun() -> None:
    little = {"path": "memory", "value": "2000 MiB", "allowed": "at least 2560 MiB"}
    target = {"min_memory_mib": 1024}
    plugin, result = run(SITE | {"mail_antivirus": True}, {"faults": [little]}, target=target)
    assert plugin.called["module_args"]["min_memory_mib"] == 1024 + action.ANTIVIRUS_MIB
    assert "1536 MiB of it since mail_antivirus is true" in result["msg"]
    plugin, _result = run(SITE | {"mail_antivirus": False}, target=target)
    assert plugin.called["module_args"]["min_memory_mib"] == 1024


def test_faults_of_site_variables_and_host_come_together() -> None:
    _plugin, result = run(
        SITE | {"mail_hostname": "mx1", "mail_acounts": []}, {"faults": [PORT]}, target={}
    )
    assert result["failed"]
    assert result["msg"].splitlines() == [
        "Nothing was changed; faults: 3",
        "- mail_hostname: 'mx1'; allowed: a fully qualified host name such as mx1.example.com, "
        "of at least two labels",
        "- mail_acounts: unknown; allowed: mail_hostname, mail_profile, mail_postmaster, "
        "mail_domains, mail_accounts, mail_aliases, mail_login_networks, mail_smarthost and "
        "mail_antivirus; did you mean mail_accounts?",
        "- port 25: held by exim4 (pid 812); allowed: nobody but master",
    ]


def test_c106_forgotten_nouns_are_faults() -> None:
    _plugin, result = run({})
    paths = [line.split(":")[0] for line in result["msg"].splitlines()[1:]]
    assert paths == ["- mail_hostname", "- mail_postmaster", "- mail_domains"]


def test_other_variables_of_the_users_own() -> None:
    _plugin, result = run(SITE | {"mail_team": "x"}, other_variables=["mail_team"])
    assert not result.get("failed")


def test_only_templates_are_rendered() -> None:
    accounts = [{"address": "alice@example.com", "password_hash": "{{ vault_alice }}"}]
    plugin, result = run(SITE | {"mail_accounts": accounts})
    assert not result.get("failed") and plugin._templar.asked == ["{{ vault_alice }}"]


def test_c106_a_template_that_fails_is_one_fault_among_others() -> None:
    accounts = [{"address": "alice@example.com", "password_hash": "{{ nix }}", "quota": "5X"}]
    _plugin, result = run(SITE | {"mail_accounts": accounts})
    assert result["msg"].splitlines()[1:] == [
        "- mail_accounts[0].password_hash: a template; "
        "allowed: one that renders: {{ nix }} is undefined",
        f"- mail_accounts[0].quota: '5X'; allowed: {model.QUOTA}",
    ]


def test_c106_a_noun_that_fails_as_a_whole_has_no_echoes() -> None:
    _plugin, result = run(SITE | {"mail_domains": "{{ nix }}"})
    assert [line.split(";")[0] for line in result["msg"].splitlines()[1:]] == [
        "- mail_domains: a template"
    ]


def test_c108_an_unreachable_host_hides_no_fault_of_the_site() -> None:
    away = AnsibleConnectionFailure("no route to host")
    with pytest.raises(AnsibleConnectionFailure):
        run(SITE, away, target={})
    with pytest.raises(AnsibleActionFail, match=r"mail_profile: 'x'.*\n.*no route to host"):
        run(SITE | {"mail_profile": "x"}, away, target={})


def test_c108_a_host_without_python_is_a_fault() -> None:
    _plugin, result = run(SITE, {"failed": True, "msg": "no python"}, target={})
    assert "- host: no python; allowed: " in result["msg"]


def test_a_given_site_goes_before_the_hosts_variables() -> None:
    _plugin, result = run(SITE, site={"mail_hostname": "mx2.example.com"})
    assert result["site"]["mail_hostname"] == "mx2.example.com" and result["accounts"] == 0


@pytest.mark.parametrize("args", [{"site": []}, {"site": None}, {"sites": {}}])
def test_wrong_arguments(args: dict[str, Any]) -> None:
    with pytest.raises(AnsibleActionFail):
        run(SITE, **args)


def test_thousands_of_faults_stay_readable() -> None:
    accounts = [{"address": f"u{n}@elsewhere.example", "password_hash": HASH} for n in range(999)]
    _plugin, result = run(SITE | {"mail_accounts": accounts, "mail_postmaster": "x@elsewhere.test"})
    lines = result["msg"].splitlines()
    assert len(lines) == action.SHOWN + 2 and lines[-1] == "- and 800 more"


def test_the_documentation_has_every_key() -> None:
    options = yaml.safe_load(module.DOCUMENTATION)["options"]["site"]["suboptions"]
    assert tuple(options) == model.NOUNS
    for noun, keys in {
        "mail_domains": model.DOMAIN_KEYS,
        "mail_accounts": model.ACCOUNT_KEYS,
        "mail_aliases": model.ALIAS_KEYS,
        "mail_smarthost": model.SMARTHOST_KEYS,
    }.items():
        assert tuple(options[noun]["suboptions"]) == keys
    assert tuple(options["mail_profile"]["choices"]) == model.PROFILES
    accounts, domains = options["mail_accounts"], options["mail_domains"]
    assert tuple(accounts["suboptions"]["state"]["choices"]) == model.STATES
    policies = domains["suboptions"]["dmarc_policy"]["choices"]
    assert tuple(policies) == model.DMARC_POLICIES


def test_filter_gives_the_nouns_it_got_in_normal_form() -> None:
    site_model = FilterModule().filters()["site_model"]
    assert site_model({"mail_domains": [{"name": "Bücher.example."}]}) == {
        "mail_domains": [
            {
                "name": "xn--bcher-kva.example",
                "dmarc_policy": "quarantine",
                "address_format": None,
                "catch_all": None,
            }
        ]
    }


@pytest.mark.parametrize("nouns", [[], "x", None, {"mail_domains": 7}, {"mail_x": 1}])
def test_filter_refuses(nouns: object) -> None:
    with pytest.raises(AnsibleFilterError):
        FilterModule().filters()["site_model"](nouns)
