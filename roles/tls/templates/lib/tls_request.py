# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: (c) 2026, hikyaku.mail contributors
"""Get the certificates that are missing or are no longer as wanted.

From ACME through certbot, or from the private CA that lives on this host.  What is wanted stands
in /etc/hikyaku/tls/tls.json; landing what we get is the duty of tls-deploy.  Renewal in time is
not ours for ACME: Debian's certbot.timer does it.  The private CA renews here, by its own timer.

Standard output is one JSON object; faults are on standard error too, for the journal.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tls_deploy import STATE_DIR, TLS_DIR, Fault, check_pair, lock, parse_pair, replace

LETSENCRYPT = Path("/etc/letsencrypt")
CERTBOT = "/usr/bin/certbot"
CERTBOT_LOG = Path("/var/log/letsencrypt/letsencrypt.log")


@dataclass
class Report:
    changed: bool = False
    requested: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def names_of(leaf: x509.Certificate) -> set[str]:
    extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return set(extension.value.get_values_for_type(x509.DNSName))


def key_type_of(key: Any) -> str:
    """As tls_key_type has it: rsa-2048, ecdsa-p256 and so on."""
    if isinstance(key, rsa.RSAPublicKey):
        return f"rsa-{key.key_size}"
    return f"ecdsa-p{key.key_size}" if isinstance(key, ec.EllipticCurvePublicKey) else "other"


def reason_for(leaf: x509.Certificate, names: list[str], key_type: str, spare: timedelta) -> str:
    """Why the certificate is no longer as wanted; empty if it is."""
    if leaf.not_valid_after_utc < datetime.now(UTC) + spare:
        return f"it ends on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if (have := names_of(leaf)) != set(names):
        return f"its names are {', '.join(sorted(have))}"
    if (have_type := key_type_of(leaf.public_key())) != key_type:
        return f"its key is {have_type}"
    return ""


# --- ACME ---------------------------------------------------------------------------------


def lineage_reason(certificate: dict[str, Any], config: dict[str, Any]) -> str:
    """Why certbot has to be asked; empty if its lineage is as wanted."""
    name, names = certificate["name"], certificate["names"]
    try:
        saved = renewal_settings((LETSENCRYPT / f"renewal/{name}.conf").read_text())
        key_pem = Path(certificate["private_key"]).read_bytes()
        pair = parse_pair(key_pem, Path(certificate["certificate"]).read_bytes())
    except FileNotFoundError:
        return "there is none"
    if reason := reason_for(pair.chain[0], names, config["key_type"], timedelta(0)):
        return reason
    # An ACME server of one's own that was made anew has another root and knows no account.
    if roots := config["trusted_roots"]:
        for fault in check_pair(pair, names, roots, datetime.now(UTC)):
            return fault
    if not any(LETSENCRYPT.glob(f"accounts/**/{saved.get('account', '')}/regr.json")):
        return "its account is gone"
    # certbot takes the settings of a renewal from what it saved when it last issued.  So changed
    # settings mean to issue once more: only then do renewals use them, and they are proven.
    differ = [key for key, value in config["renewal"].items() if saved.get(key, "") != value]
    return f"it is renewed with another {', '.join(differ)}" if differ else ""


def renewal_settings(text: str) -> dict[str, str]:
    """The `key = value` lines of certbot's renewal file; lists lose their closing comma."""
    lines = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {key.strip(): value.strip().rstrip(",") for key, equals, value in lines if equals}


def ask_certbot(certificate: dict[str, Any], config: dict[str, Any]) -> None:
    # All options stand in the file: EAB keys must not be seen in the list of processes.
    # The decision is made, so certbot shall not ask back: names may change, and so may the key
    # where its type does (--new-key beside reuse-key).
    command = [CERTBOT, "certonly", "--config", str(TLS_DIR / "certbot.ini")]
    command += ["--cert-name", certificate["name"], "--domains", ",".join(certificate["names"])]
    command += ["--force-renewal", "--renew-with-new-domains"]
    leaf = Path(certificate["certificate"])
    if leaf.exists():
        have = key_type_of(x509.load_pem_x509_certificate(leaf.read_bytes()).public_key())
        command += ["--new-key"] if have != config["key_type"] else []
    try:
        run_certbot(command, config)
    except Fault:
        # RFC 8555 section 6.7; the log has the type of the error, standard error hasn't.
        if "acme:error:accountDoesNotExist" not in CERTBOT_LOG.read_text():
            raise
        # The server was made anew: what is left of our account there is of no use to anybody.
        account = config["renewal"]["server"].partition("://")[2]
        shutil.rmtree(LETSENCRYPT / "accounts" / account)
        run_certbot(command, config)


def run_certbot(command: list[str], config: dict[str, Any]) -> None:
    bundle = config["ca_bundle"]
    environment = {**os.environ, **({"REQUESTS_CA_BUNDLE": bundle} if bundle else {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        words = (done.stdout + done.stderr).strip()
        if "Could not bind" in words:
            command = ["/usr/bin/ss", "-Hltnp", "sport = :80"]
            holder = subprocess.run(command, capture_output=True, text=True, check=False)
            words += f"\nPort 80 is held by: {holder.stdout.strip()}"
        raise Fault(f"certbot failed: {words}")


def request_acme(config: dict[str, Any], check: bool, report: Report) -> None:
    wanted = config["certificates"] if config["source"] == "acme" else []
    for certificate in wanted:
        if reason := lineage_reason(certificate, config):
            report.requested.append(f"{certificate['name']}: {reason}")
            try:
                if not check:
                    remember(certificate["name"], asked=True)
                    ask_certbot(certificate, config)
            except Fault as fault:
                report.errors.append(f"{certificate['name']} ({reason}): {fault}")
    # What we once asked for and is no longer listed would be renewed for ever, and that fails
    # as soon as its name is gone from the DNS.  The landed file stays: a daemon may still read it.
    for name in sorted(remembered() - {certificate["name"] for certificate in wanted}):
        report.deleted.append(name)
        if not check:
            if (LETSENCRYPT / f"renewal/{name}.conf").exists():
                run_certbot([CERTBOT, "delete", "--non-interactive", "--cert-name", name], config)
            remember(name, asked=False)


def remembered() -> set[str]:
    path = STATE_DIR / "requested.json"
    return set(json.loads(path.read_text())) if path.exists() else set()


def remember(name: str, *, asked: bool) -> None:
    names = remembered() | {name} if asked else remembered() - {name}
    replace(STATE_DIR / "requested.json", json.dumps(sorted(names)).encode(), 0o600)


# --- the private CA -----------------------------------------------------------------------


def request_private_ca(config: dict[str, Any], check: bool, report: Report) -> None:
    settings = config["private_ca"]
    ca_file, public_file = STATE_DIR / "private-ca.pem", TLS_DIR / "private-ca.crt"
    if not ca_file.exists():
        report.requested.append("private CA: there is none")
        if check:
            report.requested += [f"{c['name']}: there is none" for c in config["certificates"]]
            return
        replace(ca_file, new_ca(settings["name"], timedelta(days=settings["days"])), 0o600)
    ca_pem = ca_file.read_bytes()
    ca_key: Any = load_pem_private_key(ca_pem, password=None)
    ca = x509.load_pem_x509_certificate(ca_pem)
    if not public_file.exists() or public_file.read_bytes() != ca.public_bytes(Encoding.PEM):
        report.changed = True
        if not check:
            replace(public_file, ca.public_bytes(Encoding.PEM), 0o644)

    lifetime = timedelta(days=settings["certificate_days"])
    if ca.not_valid_after_utc < datetime.now(UTC) + lifetime:
        # Never replaced silently: each client has imported it.
        raise Fault(
            f"the private CA ends on {ca.not_valid_after_utc:%Y-%m-%d}, before a new certificate "
            f"would: remove {ca_file} for a new one, which clients have to import again"
        )
    for certificate in config["certificates"]:
        path = Path(certificate["private_key"])
        reason, key = "there is none", None
        if path.exists():
            leaf = x509.load_pem_x509_certificate(path.read_bytes())
            # The last third of its life, as certbot does.
            reason = reason_for(leaf, certificate["names"], config["key_type"], lifetime / 3)
            if not reason and leaf.issuer != ca.subject:
                reason = "another CA issued it"
            if config["reuse_key"] and key_type_of(leaf.public_key()) == config["key_type"]:
                key = load_pem_private_key(path.read_bytes(), password=None)
        if not reason:
            continue
        report.requested.append(f"{certificate['name']}: {reason}")
        if not check:
            key = key or new_key(config["key_type"])
            issued = issue(certificate["names"], key, ca, ca_key, lifetime)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            replace(path, key_pem(key) + issued.public_bytes(Encoding.PEM), 0o600)


def new_key(key_type: str) -> Any:
    algorithm, size = key_type.split("-")
    if algorithm == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=int(size))
    return ec.generate_private_key(ec.SECP384R1() if size == "p384" else ec.SECP256R1())


def key_pem(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def builder(subject: x509.Name, issuer: x509.Name, key: Any, life: timedelta) -> Any:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # An hour of grace for clients whose clock is slow.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )


def key_usage(*uses: str) -> x509.KeyUsage:
    every = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{use: use in uses for use in every.split()})


def new_ca(name: str, life: timedelta) -> bytes:
    """Key and certificate of a CA that signs leaves only (path length 0)."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    ca = (
        builder(subject, subject, key, life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(key_usage("key_cert_sign", "crl_sign"), True)
        .sign(key, hashes.SHA384())
    )
    return key_pem(key) + bytes(ca.public_bytes(Encoding.PEM))


def issue(
    names: list[str], key: Any, ca: x509.Certificate, ca_key: Any, life: timedelta
) -> x509.Certificate:
    # RFC 5280 section 4.2.1.6: without a subject the names stand in a critical subjectAltName.
    authority = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    uses = ["digital_signature"]
    if isinstance(key, rsa.RSAPrivateKey):
        uses.append("key_encipherment")
    certificate: x509.Certificate = (
        builder(x509.Name([]), ca.subject, key, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(key_usage(*uses), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), False
        )
        .sign(ca_key, hashes.SHA384())
    )
    return certificate


# --- the whole ----------------------------------------------------------------------------


def request(config: dict[str, Any], check: bool) -> Report:
    report = Report()
    try:
        request_acme(config, check, report)
        if config["source"] == "private_ca":
            request_private_ca(config, check, report)
    except (Fault, OSError, ValueError) as error:
        report.errors.append(str(error))
    report.changed |= bool(report.requested or report.deleted)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say what would be requested")
    parser.add_argument("--config", default=str(TLS_DIR / "tls.json"), help="file, - for stdin")
    arguments = parser.parse_args()
    text = sys.stdin.read() if arguments.config == "-" else Path(arguments.config).read_text()
    with nullcontext() if arguments.check else lock("request"):
        report = request(json.loads(text), arguments.check)
    print(json.dumps(asdict(report)))
    for error in report.errors:
        print(error, file=sys.stderr)
    return 1 if report.errors else 0


if __name__ == "__main__":
    sys.exit(main())
