# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""The lab's keys, the settings that others read, and the Debian image."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from lablib.layout import CACHE, HOSTS, IMAGES, LABEL, RUN, facts, v4
from lablib.tools import LabError, digest, exists, podman, run, say, write

RELEASE = os.environ.get("LAB_RELEASE", "13")
CODENAMES = {"12": "bookworm", "13": "trixie"}
# The Debian image: what a minimal installation with SSH has.
MMDEBSTRAP = (
    "mmdebstrap",
    "--quiet",
    "--variant=minbase",
    "--include=systemd,systemd-sysv,dbus,python3,python3-apt,iproute2,ca-certificates,openssh-server",
    "--skip=cleanup/apt/lists",  # a host fresh from the installer has them, too
    '--customize-hook=rm -f "$1"/etc/resolv.conf "$1"/etc/ssh/ssh_host_*',
)

CONTAINERS_CONF = """\
[containers]
# podman's default limits need CAP_SYS_RESOURCE, which not every machine gives.
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
pids_limit = 0
# The names of the machine itself are not the lab's.
base_hosts_file = "none"
[engine]
# crun raises RLIMIT_MEMLOCK and needs CAP_SYS_RESOURCE for it; runc does without.
runtime = "runc"
cgroup_manager = "cgroupfs"
[network]
network_backend = "netavark"
"""

APT_CONF = """\
// The lab's DNS knows nothing of the outer world, so don't ask it for SRV records of the archive.
Acquire::EnableSrvRecords "false";
Acquire::Languages "none";
"""


def keys() -> dict[str, str]:
    """The lab's SSH key and the host key that all its hosts share, made once; public halves."""
    public = {}
    for name in ("id_ed25519", "ssh_host_ed25519_key"):
        path = CACHE / name
        if not path.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "hikyaku-lab", "-f", path)
        public[name] = path.with_suffix(".pub").read_text().strip()
    return public


def write_settings() -> None:
    """The files that podman, ssh, Ansible and the tests read."""
    public = keys()["ssh_host_ed25519_key"].rsplit(" ", 1)[0]
    write(CACHE / "containers.conf", CONTAINERS_CONF)
    known = (f"{','.join([host.name, *host.addresses])} {public}\n" for host in HOSTS.values())
    write(CACHE / "known_hosts", "".join(known))
    blocks = [
        f"Host {host.name} {v4(host.number)}\n  HostName {v4(host.number)}\n"
        for host in HOSTS.values()
    ]
    common = f"""\
Host *
  User root
  IdentityFile {CACHE}/id_ed25519
  IdentitiesOnly yes
  UserKnownHostsFile {CACHE}/known_hosts
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
  ControlMaster auto
  ControlPath {RUN}/ssh-%h-%p-%r
  ControlPersist 60s
"""
    write(CACHE / "ssh_config", "".join(blocks) + common)
    write(CACHE / "lab.json", json.dumps(facts(), indent=1) + "\n")


def base_image() -> str:
    """The name of the Debian image, built if it isn't there."""
    if RELEASE not in CODENAMES:
        raise LabError(f"LAB_RELEASE is {RELEASE!r}; allowed: {', '.join(CODENAMES)}")
    public = keys()
    recipe = digest(CODENAMES[RELEASE], APT_CONF, *MMDEBSTRAP, *public.values())
    image = f"{IMAGES}/debian-{RELEASE}:{recipe}"
    if exists("image", image):
        return image
    say(f"building {image}")
    with tempfile.TemporaryDirectory(prefix="hikyaku-lab-") as name:
        work = Path(name)
        overlay = work / "overlay"
        write(overlay / "root/.ssh/authorized_keys", public["id_ed25519"] + "\n", 0o600)
        (overlay / "root/.ssh").chmod(0o700)
        (overlay / "root").chmod(0o700)
        for suffix, mode in (("", 0o600), (".pub", 0o644)):
            key = f"ssh_host_ed25519_key{suffix}"
            write(overlay / f"etc/ssh/{key}", (CACHE / key).read_text(), mode)
        write(overlay / "etc/apt/apt.conf.d/90lab", APT_CONF)
        hook = f"--customize-hook=sync-in {overlay} /"
        run(*MMDEBSTRAP, hook, CODENAMES[RELEASE], work / "base.tar")
        changes = ("--change", 'CMD ["/sbin/init"]', "--change", f"LABEL {LABEL}=1")
        podman("import", "--quiet", *changes, work / "base.tar", image)
    return image
