"""Certificates for TLS tests: an authority and pairs signed by it, in files.

Always holds: every pair is for localhost and 127.0.0.1, valid for a day around now.
"""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """Signs pairs into a folder: NAME.pem and NAME.key; its own certificate is NAME.pem."""

    def __init__(self, folder: Path, name: str = "ca"):
        self.folder = folder
        self.file = folder / f"{name}.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        built = _builder(self._name, self._name, self._key.public_key())
        built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.file.write_bytes(built.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def pair(self, name: str, common_name: str = "localhost") -> tuple[Path, Path]:
        """(certificate, key) files; written whole at once, so that a reader never finds half a file."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        built = _builder(_named(common_name), self._name, key.public_key()).add_extension(names, critical=False)
        cert = built.sign(self._key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        for file, data in zip(files, (cert.public_bytes(serialization.Encoding.PEM), private), strict=True):
            aside = file.with_suffix(file.suffix + ".new")
            aside.write_bytes(data)
            aside.replace(file)
        return files


def serial_of(certificate: bytes) -> int:
    """The serial number of a PEM certificate."""
    return x509.load_pem_x509_certificate(certificate).serial_number


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
    )
