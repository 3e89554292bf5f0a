# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""The interface of a role: argument_specs.yml and defaults/main.yml say the same.

An option without a sensible default is required and has none in either file. Any other has the
same default in both; where that is a site noun or another template, they have the same template.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
TYPES = {"str", "bool", "int", "float", "list", "dict", "path", "raw"}


def load(role: str, path: str) -> Any:
    file = ROOT / "roles" / role / path
    return yaml.safe_load(file.read_text(encoding="utf-8")) or {} if file.exists() else {}


def entry_points(role: str) -> dict[str, Any]:
    specs: dict[str, Any] = load(role, "meta/argument_specs.yml")
    return specs["argument_specs"]


def options(role: str) -> dict[str, Any]:
    return {
        name: option
        for spec in entry_points(role).values()
        for name, option in spec.get("options", {}).items()
    }


def nested(path: str, level: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, option in level.items():
        yield f"{path}{name}", option
        yield from nested(f"{path}{name}.", option.get("options", {}))


@pytest.mark.parametrize("role", ROLES)
def test_each_entry_point_is_a_task_file_and_says_what_it_does(role: str) -> None:
    assert "main" in entry_points(role)
    for name, spec in entry_points(role).items():
        assert (ROOT / "roles" / role / "tasks" / f"{name}.yml").exists(), name
        assert spec.get("short_description"), name


@pytest.mark.parametrize("role", ROLES)
def test_names_begin_with_the_roles(role: str) -> None:
    names = options(role).keys() | load(role, "defaults/main.yml").keys()
    assert [name for name in sorted(names) if not name.startswith(f"{role}_")] == []


@pytest.mark.parametrize("role", ROLES)
def test_specification_and_defaults_have_the_same_names(role: str) -> None:
    optional = {name for name, option in options(role).items() if not option.get("required")}
    assert optional == load(role, "defaults/main.yml").keys()


@pytest.mark.parametrize("role", ROLES)
def test_specification_and_defaults_have_the_same_values(role: str) -> None:
    defaults = load(role, "defaults/main.yml")
    specified = {name: option.get("default") for name, option in options(role).items()}
    assert {name: specified.get(name) for name in defaults} == defaults


@pytest.mark.parametrize("role", ROLES)
def test_what_is_required_has_no_default(role: str) -> None:
    for name, option in nested("", options(role)):
        assert not (option.get("required") and "default" in option), name


@pytest.mark.parametrize("role", ROLES)
def test_every_option_is_typed_and_described(role: str) -> None:
    for name, option in nested("", options(role)):
        assert option.get("description"), name
        assert option.get("type") in TYPES, name
        if option["type"] == "list":
            assert option.get("elements") in TYPES, name
        # What a site noun may contain is the model's to say, once: see ansible-doc site_model.
        noun = str(option.get("default")).startswith("{{ mail_")
        if "dict" in (option["type"], option.get("elements")) and not noun:
            assert option.get("options"), f"{name} needs its keys, or the type raw if they are free"
