"""What tests of the node share: the small engine, a node with films to look at, certificates."""

from __future__ import annotations

import pytest
from node_process import example, page_node, send, wait_for


@pytest.fixture(scope="session")
def engine_file(tiny_engine, tmp_path_factory):
    path = tmp_path_factory.mktemp("engine") / "tiny.ptxengine"
    path.write_bytes(tiny_engine)
    return path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A folder of PEM files: an authority, what it signed for 127.0.0.1, and a stranger's."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder = tmp_path_factory.mktemp("certificates")

    def make(name, issuer=None):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.timezone.utc)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        signer, signing_key = issuer or (subject, key)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(signer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .add_extension(identifier, critical=False)
            .add_extension(authority, critical=False)
            .add_extension(x509.KeyUsage(True, False, False, False, False, issuer is None, False, False, False), True)
            .sign(signing_key, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return subject, key

    authority = make("authority")
    make("node", authority)
    make("modality", authority)
    make("stranger")
    return folder


@pytest.fixture(scope="session")
def shown(tmp_path_factory):
    """A node with the engine that ships, a flagged film, one that is not, and one that was refused."""
    folder = tmp_path_factory.mktemp("web")
    with page_node(folder) as made:
        made.folder = folder
        assert send(made.port, example("00017098_003", 1)) == 0
        assert send(made.port, example("00029943_001", 2)) == 0
        assert send(made.port, example("00017098_003", 3, ViewPosition="LL")) == 0
        made.wait_done(2, 60)
        wait_for(lambda: made.events("refused"), 20)
        made.film = made.events("scored", outcome="flagged")[0]["film"]
        made.plain = made.events("scored", outcome="not_flagged")[0]["film"]
        made.refused = made.events("refused")[0]["film"]
        yield made
