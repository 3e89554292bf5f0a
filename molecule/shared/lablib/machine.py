# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""What the machine below the lab must have: tools, a cgroup2 hierarchy, a free network."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from lablib.layout import LABEL, NAMESPACE, NETWORK, NETWORK4, NETWORK6, ROOT, RUN, SHARED
from lablib.tools import LabError, exists, locked, podman, run, say

TOOLS = {  # program: Debian's package
    "podman": "podman",
    "runc": "runc",
    "netavark": "netavark",
    "aardvark-dns": "aardvark-dns",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "iptables": "iptables",
    "ip": "iproute2",
    "ssh": "openssh-client",
}

# Prints where the packages come from.
APT_SITES = ("apt-get", "indextargets", "--format", "$(SITE)")


def enter_namespace() -> None:
    """Re-enter this program where /sys/fs/cgroup is pure cgroup2, unless it is already.

    Debian 13's systemd refuses to boot on the old hybrid hierarchy. A named mount namespace hides
    it from the containers; podman's network namespaces live in it too, so everything that speaks
    to the lab's podman has to be in the same one.
    """
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return
    with locked():
        if not os.path.ismount(NAMESPACE):
            if not os.path.ismount(RUN):  # unshare can bind a namespace to a private mount only
                run("mount", "--bind", RUN, RUN)
                run("mount", "--make-private", RUN)
            NAMESPACE.touch()
            mount = "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup"
            run("unshare", f"--mount={NAMESPACE}", "sh", "-c", mount)
    program = [sys.executable, str(SHARED / "lab"), *sys.argv[1:]]
    os.execvp("nsenter", ["nsenter", f"--mount={NAMESPACE}", f"--wd={Path.cwd()}", *program])


def setup() -> None:
    """Install what the lab needs where apt can; elsewhere say what is missing."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin:/usr/lib/podman:/usr/libexec/podman"
    missing = [TOOLS[program] for program in TOOLS if not shutil.which(program, path=path)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise LabError(
            f"missing: {' '.join(missing)} (Debian's package names). Install them with this"
            " system's package manager, then run the same command again."
        )
    say(f"installing {' '.join(missing)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "-q", "update", env=environment)
    run("apt-get", "-qy", "--no-install-recommends", "install", *missing, env=environment)


def check_network() -> None:
    """Refuse a network that leads somewhere else already, above all to the package archive."""
    routes = json.loads(run("ip", "-json", "-4", "route")) + json.loads(
        run("ip", "-json", "-6", "route")
    )
    for route in routes:
        if route["dst"] == "default":
            continue
        taken = ipaddress.ip_network(route["dst"], strict=False)
        for variable, network in (("LAB_NETWORK4", NETWORK4), ("LAB_NETWORK6", NETWORK6)):
            if taken.version == network.version and taken.overlaps(network):
                raise LabError(
                    f"{network} collides with this machine's route to {taken} ({route.get('dev')}):"
                    f" set {variable} to a network that is free here"
                )
    targets = run(*APT_SITES) if shutil.which("apt-get") else ""
    for name, address in archives(targets).items():
        for variable, network in (("LAB_NETWORK4", NETWORK4), ("LAB_NETWORK6", NETWORK6)):
            if ipaddress.ip_address(address) in network:
                raise LabError(
                    f"{name} is {address} here, which is within {network}: set {variable} to"
                    " another network, or the hosts can't install anything"
                )


def archives(sites: str) -> dict[str, str]:
    """The addresses of the package archives by name, from what APT_SITES prints."""
    found = {}
    for name in {urlsplit(site).hostname for site in sites.split()} - {None}:
        try:
            addresses = socket.getaddrinfo(name, 80, socket.AF_INET, proto=socket.IPPROTO_TCP)
        except socket.gaierror:  # one that this machine can't reach either
            continue
        found[str(name)] = str(addresses[0][4][0])
    return found


def ensure_network() -> None:
    if exists("network", NETWORK):
        network = json.loads(podman("network", "inspect", NETWORK))[0]
        subnets = {subnet["subnet"] for subnet in network["subnets"]}
        if subnets != {str(NETWORK4), str(NETWORK6)}:
            raise LabError(f"the lab runs on {' and '.join(sorted(subnets))}: `lab destroy` first")
    else:
        check_network()
        podman(
            "network", "create", "--ipv6", "--disable-dns", "--label", f"{LABEL}={ROOT}",
            "--subnet", str(NETWORK4), "--subnet", str(NETWORK6), NETWORK,
        )  # fmt: skip
    # The hosts reach the package archive through this machine.
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    if forward.read_text().strip() != "1":
        forward.write_text("1\n")
