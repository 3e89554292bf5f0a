# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Render the trees of a task and send them to the module of the same name in one piece."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible_collections.hikyaku.mail.plugins.module_utils import config_tree_task

# As ansible.builtin.template has it, so that a template means the same in both.
_OVERRIDES = {"trim_blocks": True, "lstrip_blocks": False}


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None
    ) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        variables = task_vars or {}
        if "content" in self._task.args:
            raise AnsibleActionFail("content: set by the action plugin, not by a task")
        checked = ArgumentSpecValidator(config_tree_task.ARGUMENT_SPEC).validate(self._task.args)
        if checked.error_messages:
            raise AnsibleActionFail("\n".join(checked.error_messages))
        arguments = checked.validated_parameters
        sources = [self._find(tree["src"]) for tree in arguments["trees"]]
        laid, faults = config_tree_task.resolve(
            arguments["name"],
            arguments["trees"],
            sources,
            arguments["build"],
            arguments["validate"],
        )
        if faults:
            raise AnsibleActionFail("\n".join(faults))
        contents = self._read(laid, variables)
        return t.cast(
            "dict[str, t.Any]",
            self._execute_module(
                module_name="hikyaku.mail.config_tree",
                module_args={**self._task.args, "content": config_tree_task.pack(laid, contents)},
                task_vars=variables,
            ),
        )

    def _find(self, src: str) -> Path | None:
        try:
            found = Path(self._find_needle("templates", src))
        except AnsibleError:
            return None
        return found if found.is_dir() else None

    def _read(
        self, laid: list[config_tree_task.Laid], variables: dict[str, t.Any]
    ) -> dict[str, bytes]:
        """The content of each file; what is wrong with any template is told of all at once."""
        contents: dict[str, bytes] = {}
        errors: list[str] = []
        for file in laid:
            if not file.source:
                continue
            try:
                contents[file.path] = (
                    self._render(file, variables)
                    if file.source.endswith(".j2")
                    else self._literal(file.source)
                )
            except AnsibleError as error:
                errors.append(f"{file.source}: {error}")
        if errors:
            raise AnsibleActionFail("\n".join(errors))
        return contents

    def _literal(self, source: str) -> bytes:
        plain = self._loader.get_real_file(source)  # decrypts what ansible-vault encrypted
        try:
            return Path(plain).read_bytes()
        finally:
            self._loader.cleanup_tmp_file(plain)

    def _render(self, file: config_tree_task.Laid, variables: dict[str, t.Any]) -> bytes:
        source = Path(file.source)
        roots = [*self._task.get_search_path(), self._loader.get_basedir(), str(source.parent)]
        templar = self._templar.copy_with_new_env(
            searchpath=[path for root in roots for path in (f"{root}/templates", root)],
            available_variables={
                "ansible_managed": "Ansible managed",
                **variables,
                "template_path": str(source),
                "template_destpath": file.path,
            },
        )
        text = templar.template(
            trust_as_template(self._loader.get_text_file_contents(str(source))),
            escape_backslashes=False,
            overrides=_OVERRIDES,
        )
        return b"" if text is None else str(text).encode()
