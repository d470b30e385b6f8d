"""The web environment's certificate authority on this machine, for databases and balancers."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from taplocal.state import write_private

AUTHORITY_DAYS, DAYS = 3_650, 90
KEY_USAGES = (
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
    "key_cert_sign crl_sign encipher_only decipher_only"
).split()


class Authority:
    """A certificate authority below a folder, made if it is not there.

    `ca` is what clients trust, in place of the authorities of RDS and ACM.
    """

    def __init__(self, folder: Path):
        self.folder, self.ca = folder, folder / "ca.pem"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _days_left(folder / "authority.pem") < DAYS:
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "taplocal, this machine")])
            key = ec.generate_private_key(ec.SECP256R1())
            may = [each == "key_cert_sign" for each in KEY_USAGES]
            usage = x509.KeyUsage(**dict(zip(KEY_USAGES, may, strict=True)))
            made = (
                _builder(name, name, key, AUTHORITY_DAYS)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(usage, critical=True)
                .sign(key, hashes.SHA256())
            )
            write_private(folder / "authority.pem", _pem(key) + _pem(made))
        text = (folder / "authority.pem").read_bytes()
        self._certificate = x509.load_pem_x509_certificate(text)
        self._key: Any = serialization.load_pem_private_key(text, None)
        write_private(self.ca, _pem(self._certificate))

    def issue(self, *names: str) -> Path:
        """A file (0600) with the key and the certificate for these names and addresses.

        The same one until a third of its life is left: ask again before use.
        """
        path = self.folder / f"{names[0].replace('*', '_')}.pem"
        if _days_left(path, self._certificate, names) < DAYS / 3:
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
            issuer = self._certificate.subject
            signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
            server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
            certificate = (
                _builder(subject, issuer, key, DAYS)
                .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                .add_extension(signer, critical=False)
                .add_extension(server, critical=False)
                .add_extension(
                    x509.SubjectAlternativeName([_name(each) for each in names]), critical=False
                )
                .sign(self._key, hashes.SHA256())
            )
            write_private(path, _pem(key) + _pem(certificate))
        return path


def _builder(subject: x509.Name, issuer: x509.Name, key: Any, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _days_left(
    path: Path, issuer: x509.Certificate | None = None, names: tuple[str, ...] = ()
) -> float:
    """How long the certificate in a file is good; 0 if it is another's or for other names."""
    if not path.exists():
        return 0
    found = x509.load_pem_x509_certificate(path.read_bytes())
    if issuer:
        with contextlib.suppress(InvalidSignature, ValueError):
            found.verify_directly_issued_by(issuer)
            issuer = None
        wanted = x509.SubjectAlternativeName([_name(each) for each in names])
        if issuer or found.extensions.get_extension_for_class(type(wanted)).value != wanted:
            return 0
    left = found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left / datetime.timedelta(days=1)


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(made: Any) -> str:
    """A certificate or a private key as a file has it."""
    if isinstance(made, x509.Certificate):
        return made.public_bytes(serialization.Encoding.PEM).decode()
    kind, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return bytes(made.private_bytes(serialization.Encoding.PEM, kind, none)).decode()
