# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Hosts: started, provisioned if they play the internet, removed."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

from lablib.images import base_image
from lablib.layout import (
    APT_VOLUME,
    CACHE,
    HOSTS,
    IMAGES,
    LABEL,
    NETWORK,
    NETWORK4,
    NETWORK6,
    ROOT,
    SHARED,
    Host,
    v4,
    v6,
)
from lablib.machine import APT_SITES, archives
from lablib.tools import LabError, digest, exists, podman, poll, say, write


def inspect(host: Host) -> dict[str, str] | None:
    if not exists("container", host.name):
        return None
    found = json.loads(podman("container", "inspect", host.name))[0]
    state = found["State"]["Status"]
    if state in ("running", "stopping") and not Path(f"/proc/{found['State']['Pid']}").exists():
        state = "dead"  # killed together with what watches it, so that podman hasn't noticed
    return {
        "owner": found["Config"]["Labels"].get(LABEL, ""),
        "state": state,
        "image": found["ImageName"],
    }


def foreign(found: dict[str, str]) -> bool:
    """Whether a host belongs to somebody else: no lab at all, or another checkout's that runs."""
    owner, running = found["owner"], found["state"] == "running"
    return owner != str(ROOT) and (not owner or (running and Path(owner).exists()))


def claim(host: Host) -> dict[str, str] | None:
    """What this checkout has of a host. Leftovers, which can't be started or are nobody's, go."""
    found = inspect(host)
    if not found:
        return None
    if foreign(found):
        owner = found["owner"] or "something else"
        raise LabError(f"the container {host.name} belongs to {owner}: destroy it there first")
    if found["owner"] == str(ROOT) and found["state"] != "dead":
        return found
    remove_host(host)
    return None


def name_service(host: Host) -> str:
    """Shell commands that give a new host its resolver, its name, and a way to the archive.

    The lab's DNS ends at the lab, so the addresses of the package archives stand in /etc/hosts.
    """
    names = f"{host.hostname} {host.name}"
    sites = archives(podman("exec", host.name, *APT_SITES))
    lines = "\n".join(f"{address} {name} # package archive" for name, address in sites.items())
    return f"""\
[ -e /etc/resolv.conf ] || cat > /etc/resolv.conf <<END
nameserver {host.resolver}
options edns0 trust-ad
END
grep -q '{names}' /etc/hosts || cat > /etc/hosts <<END
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
{v4(host.number)} {names}
{v6(host.number)} {names}
END
sed -i '/# package archive$/d' /etc/hosts
cat >> /etc/hosts <<END
{lines}
END
"""


def ensure_host(host: Host, image: str) -> None:
    """Make sure that the host runs with all its addresses and answers on SSH."""
    found = claim(host)
    if not found:
        podman(
            "run", "--detach", "--name", host.name, "--hostname", host.hostname,
            "--label", f"{LABEL}={ROOT}", "--systemd=always", "--cap-add=NET_ADMIN",
            # As root of a real host, preflight may look who holds a port.
            "--cap-add=SYS_PTRACE",
            "--network", NETWORK, "--ip", v4(host.number), "--ip6", v6(host.number),
            # Files of the host's own, as elsewhere: podman would put its own back at every start.
            "--dns", "none", "--no-hosts",
            "--volume", f"{APT_VOLUME}:/var/cache/apt/archives", image,
        )  # fmt: skip
    elif found["state"] != "running":
        podman("start", host.name)
    podman("exec", host.name, "sh", "-c", name_service(host))
    have = podman("exec", host.name, "ip", "-oneline", "address", "show", "dev", "eth0")
    for number in host.names:
        for address, prefix in ((v4(number), NETWORK4), (v6(number), NETWORK6)):
            if f" {address}/" not in have:
                # At once usable, but never the source that the kernel chooses by itself.
                flags = ["nodad", "preferred_lft", "0"] if ":" in address else []
                target = f"{address}/{prefix.prefixlen}"
                podman("exec", host.name, "ip", "address", "add", target, "dev", "eth0", *flags)

    def greets() -> bytes:
        with socket.create_connection((v4(host.number), 22), timeout=1) as connection:
            return connection.recv(4)

    poll(f"SSH on {host.name}", 60, greets)


def remove_host(host: Host) -> None:
    config = CACHE / "ssh_config"
    if config.exists():  # an SSH master would cling to the host that is gone
        command = ["ssh", "-F", str(config), "-O", "exit", host.name]
        subprocess.run(command, capture_output=True)
    podman("rm", "--force", "--ignore", "--time", "0", "--volumes=false", host.name)


# ---- internet: provisioned once, then kept as an image


def internet_image() -> str:
    """The image's name: a hash of what is in it, the Debian image included.

    Plugins don't count: they decide how files land, not which. Each new image has new keys, and the
    mail host has to be told of its trust anchor.
    """
    sources = [SHARED / "internet.yml", *(SHARED / "internet").rglob("*")]
    sources += [ROOT / f"inventories/demo/{name}.yml" for name in ("hosts", "group_vars/demo")]
    for role in ("resolver", "nameserver"):
        sources += (ROOT / "roles" / role).glob("[!Rm]*/**/*")  # neither README.md nor meta
    texts = [path.read_text() for path in sorted(sources) if path.is_file()]
    return f"{IMAGES}/internet:{digest(base_image(), *texts)}"


def up_internet() -> None:
    host = HOSTS["internet"]
    image = internet_image()
    found = claim(host)
    if not exists("image", image):
        if found and found["image"] != base_image():  # else an earlier try, which may go on
            remove_host(host)
        ensure_host(host, base_image())
        say("provisioning internet")
        programs = [ROOT / ".cache/venv/bin/ansible-playbook", Path("ansible-playbook")]
        program = programs[0] if programs[0].exists() else programs[1]
        playbook = [program, "-i", "inventories/demo", SHARED / "internet.yml"]
        done = subprocess.run([str(word) for word in playbook], cwd=ROOT, stdout=sys.stderr)
        if done.returncode:
            raise LabError("internet.yml failed: see above; `lab up internet` tries again")
        podman("stop", host.name)
        label = f"{LABEL}.internet={ROOT}"
        if old := podman("images", "--quiet", "--no-trunc", "--filter", f"label={label}").split():
            podman("rmi", "--force", *dict.fromkeys(old))
        podman("commit", "--quiet", "--change", f"LABEL {label}", host.name, image)
    found = inspect(host)
    if found and found["image"] != image:
        remove_host(host)
    ensure_host(host, image)
    fetch_trust()


def fetch_trust() -> None:
    """What the others trust: the lab's own CA, Pebble's root and the DNSSEC anchors."""
    write(CACHE / "ca.pem", podman("exec", "internet", "cat", "/etc/hikyaku-lab/ca.pem") + "\n")
    context = ssl.create_default_context(cafile=str(CACHE / "ca.pem"))
    url = f"https://{v4(2)}:15000/roots/0"

    def root() -> bytes:
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            return bytes(answer.read())

    # Pebble keeps its keys in memory only: every start makes a new root. All roots since the last
    # `lab destroy` are kept, so that certificates from before a restart stay good.
    roots = CACHE / "acme-root.pem"
    known = roots.read_text() if roots.exists() else ""
    if (current := poll("Pebble on internet", 30, root).decode()) not in known:
        write(roots, known + current)
    anchors = podman("exec", "internet", "/usr/local/bin/trust-anchors")
    write(CACHE / "trust-anchors", anchors + "\n")
