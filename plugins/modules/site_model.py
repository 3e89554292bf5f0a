# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: site_model
short_description: Check the site's variables and the host before anything changes
description:
  - Parses the site nouns on the controller, checks them against each other and looks whether the
    host is fit for them. It fails with everything that is wrong at once, one line each - the
    variable, its value and what is allowed.
  - Password hashes and passwords never appear in the result.
author: The hikyaku.mail contributors (@hikyaku)
version_added: 0.1.0
options:
  site:
    description:
      - The site nouns. One that is left out isn't judged; one that is null counts as forgotten
        if it is needed.
      - Without this option the host's variables of these names are read. That is much faster with
        tens of thousands of accounts, since Ansible needn't pass them on.
      - Host names and domains may have letters beyond ASCII if the controller has the Python
        library C(idna); A-labels (C(xn--)) work without it.
    type: dict
    suboptions:
      mail_hostname:
        description: The host's fully qualified name, at most 64 characters. No mail domain itself.
        type: str
      mail_profile:
        description:
          - V(public) - a mail host of the Internet.
          - V(relay) - one that keeps no mailboxes and so has no accounts and aliases.
          - V(private) - one without public DNS that listed networks only may log in to.
        type: str
        choices: [public, relay, private]
        default: public
      mail_postmaster:
        description: An address that an account or alias of this site receives mail for.
        type: str
      mail_domains:
        description: The domains that this host receives mail for.
        type: list
        elements: dict
        suboptions:
          name:
            description: The domain. Letters beyond ASCII are kept as A-labels.
            type: str
            required: true
          dmarc_policy:
            description: What others are asked to do with mail that claims to come from here.
            type: str
            choices: [none, quarantine, reject]
            default: quarantine
          address_format:
            description: A regular expression that the domain's local parts match as a whole.
            type: str
          catch_all:
            description: An account or alias that takes the mail to addresses that don't exist.
            type: str
      mail_accounts:
        description: Who has a mailbox, or may send.
        type: list
        elements: dict
        suboptions:
          address:
            description:
              - The address, which is the login name as well. Letters, digits, hyphen, underscore
                and dots before the C(@). What follows a C(+) is a detail that every address has.
            type: str
            required: true
          password_hash:
            description:
              - A hash of the schemes C(ARGON2ID), C(ARGON2I), C(BLF-CRYPT), C(SHA512-CRYPT) or
                C(SHA256-CRYPT), with or without the C({SCHEME}) before it. bcrypt has a cost of 10
                to 16, SHA-crypt 5,000 to 5,000,000 rounds, Argon2 7 to 256 MiB.
              - Make one with C(doveadm pw -s ARGON2ID) or C(openssl passwd -6).
              - Required unless O(site.mail_accounts[].state) is V(disabled) or V(absent).
            type: str
          quota:
            description: Bytes, or a size such as V(5G). V(0) and V(none) mean no limit.
            type: raw
            default: 0
          aliases:
            description: Further addresses of the account.
            type: list
            elements: str
            default: []
          send_only:
            description: Whether the account may only send. Mail to it is refused.
            type: bool
            default: false
          state:
            description:
              - V(disabled) refuses the login and keeps everything else.
              - V(absent) is the same as leaving the account out.
            type: str
            choices: [present, disabled, absent]
            default: present
      mail_aliases:
        description: Addresses that lead to others, here or elsewhere.
        type: list
        elements: dict
        suboptions:
          address:
            description: The address.
            type: str
            required: true
          to:
            description: Where its mail goes.
            type: list
            elements: str
            required: true
      mail_login_networks:
        description: Networks that may log in. Never all of them with the profile V(private).
        type: list
        elements: str
        default: ["0.0.0.0/0", "::/0"]
      mail_smarthost:
        description: The host that all outgoing mail is sent through. Empty for none.
        type: dict
        suboptions:
          host:
            description: Its name.
            type: str
            required: true
          port:
            description: Its port.
            type: int
            default: 587
          username:
            description: The name to log in with. Goes with O(site.mail_smarthost.password).
            type: str
          password:
            description: The password to log in with.
            type: str
      mail_antivirus:
        description: Whether ClamAV checks all mail. The host needs 1536 MiB more memory for it.
        type: bool
        default: false
  other_variables:
    description:
      - Variables of your own that begin with C(mail_). Any other such name is taken for a misspelt
        noun.
    type: list
    elements: str
    default: []
  target:
    description:
      - Options of M(hikyaku.mail.target_info), which runs on the host. The time is added.
      - Without it only the site is checked, and the host isn't connected to.
    type: dict
attributes:
  check_mode:
    support: full
    description: Does the same in check mode, since it changes nothing.
  diff_mode:
    support: none
    description: There is nothing to show a difference of.
  idempotent:
    support: full
    description: Changes nothing.
seealso:
  - module: hikyaku.mail.target_info
  - plugin: hikyaku.mail.site_model
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Check the inventory and the host
  hikyaku.mail.site_model:
    target:
      min_memory_mib: 2048

- name: Check a site that isn't in the inventory
  hikyaku.mail.site_model:
    site:
      mail_hostname: mx1.example.com
      mail_profile: public
      mail_postmaster: postmaster@example.com
      mail_domains:
        - name: example.com
      mail_accounts:
        - address: alice@example.com
          password_hash: "{{ vault_alice }}"
          aliases: [postmaster@example.com]
      mail_aliases: []
"""

RETURN = r"""
msg:
  description: Every fault, one line each with the variable, its value and what is allowed.
  returned: failure
  type: str
  sample: |-
    Nothing was changed; faults: 2
    - mail_profile: 'privat'; allowed: public, relay or private
    - memory: 512 MiB; allowed: at least 1024 MiB (min_memory_mib)
site:
  description: The nouns in normal form, without accounts, aliases and smart host.
  returned: success
  type: dict
  sample: {mail_hostname: mx1.example.com, mail_domains: [{name: xn--bcher-kva.example}]}
ansible_facts:
  description: What was found on the host.
  returned: success
  type: dict
  contains:
    packages:
      description: The installed packages, as M(ansible.builtin.package_facts) has them.
      returned: when O(target) is given
      type: dict
accounts:
  description: How many accounts could be read.
  returned: success
  type: int
aliases:
  description: How many aliases could be read.
  returned: success
  type: int
"""
