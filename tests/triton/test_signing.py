"""Signatures of releases: what they catch, and that OpenSSF's own tool takes them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the tools environment is older than its lock: run `make setup`")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from refit.triton import lineage, signing
from refit.triton.signing import Keys, SigningError
from tests.judges import judge

LEFT_OUT = frozenset({"release.json"})


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


def public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*form).decode()


@pytest.fixture(params=[ec.SECP256R1, ec.SECP384R1])
def key(request: pytest.FixtureRequest) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(request.param())


@pytest.fixture
def folder(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    """A version's folder, signed."""
    made = tmp_path / "7"
    (made / "model").mkdir(parents=True)
    (made / "model" / "model.onnx").write_bytes(b"weights")
    (made / "card.json").write_text("{}")
    (made / "release.json").write_text("changes with every state")
    signing.sign(made, "plates:7", key, LEFT_OUT)
    return made


def test_what_was_signed_is_said(folder: Path, key: ec.EllipticCurvePrivateKey) -> None:
    (folder / "release.json").write_text("retired")
    signed = signing.verify(folder, key.public_key())
    assert signed.name == "plates:7"
    assert signed.files == signing.digests(folder, LEFT_OUT | {signing.FILE})
    assert set(signed.files) == {"card.json", "model/model.onnx"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b["dsseEnvelope"].update(payload="e30="), "the signature does not hold"),
        (lambda b: b["dsseEnvelope"]["signatures"][0].update(sig="AAAA"), "the signature does not hold"),
        (lambda b: b["verificationMaterial"]["publicKey"].update(hint="0" * 64), "signed with another key"),
        (lambda b: b["dsseEnvelope"].pop("payload"), "is no signature bundle"),
        (lambda b: b["dsseEnvelope"].update(payloadType="text/plain"), "signs no model in the form of OMS"),
    ],
)
def test_a_changed_signature_is_refused(
    folder: Path, key: ec.EllipticCurvePrivateKey, change: object, said: str
) -> None:
    file = folder / signing.FILE
    bundle = json.loads(file.read_text())
    change(bundle)  # type: ignore[operator]
    file.write_text(json.dumps(bundle))
    with pytest.raises(SigningError, match=said):
        signing.verify(folder, key.public_key())


def test_another_key_and_no_signature(folder: Path, key: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(SigningError, match="signed with another key"):
        signing.verify(folder, ec.generate_private_key(ec.SECP256R1()).public_key())
    (folder / signing.FILE).unlink()
    with pytest.raises(SigningError, match="there is no signature"):
        signing.verify(folder, key.public_key())


def test_a_link_among_the_files_is_refused(folder: Path) -> None:
    (folder / "model" / "more").symlink_to("/etc/hostname")
    with pytest.raises(SigningError, match="is a link"):
        signing.digests(folder, LEFT_OUT)


def test_keys_that_cannot_sign(monkeypatch: pytest.MonkeyPatch, key: ec.EllipticCurvePrivateKey) -> None:
    """Whatever is wrong with the private key, the message quotes nothing of it; and it leaves the environment."""
    broken = pem(key).replace("-----END", "QUJD\n-----END")
    for text, said in (
        ("", "there is no signing key"),
        (broken, "must be an unencrypted EC key as PEM"),
        (pem(rsa.generate_private_key(65537, 2048)), "must be an EC key on one of the curves"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "is not the public half"),
    ):
        monkeypatch.setenv(signing.VARIABLE, text)
        with pytest.raises(SigningError, match=said) as caught:
            Keys.of(public_pem(key))
        assert not any(line in str(caught.value) for line in text.splitlines() if len(line) > 16)
        assert signing.VARIABLE not in os.environ
    monkeypatch.setenv(signing.VARIABLE, pem(key))
    assert Keys.of(public_pem(key)).fingerprint == signing.fingerprint(key.public_key())


def test_openssfs_own_tool_takes_it(folder: Path, key: ec.EllipticCurvePrivateKey, tmp_path: Path) -> None:
    public = tmp_path / "key.pub"
    public.write_text(public_pem(key))
    command = [str(judge()), "-m", "model_signing", "verify", "key", str(folder)]
    command += ["--signature", str(folder / signing.FILE), "--public_key", str(public)]
    for path in sorted(lineage.LEFT_OUT):  # as docs/operating.md says; some come after the signature
        (folder / path).touch()
    for path in (*sorted(lineage.LEFT_OUT), signing.FILE):
        command += ["--ignore-paths", str(folder / path)]
    good = subprocess.run(command, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stdout + good.stderr
    (folder / "model" / "model.onnx").write_bytes(b"weighty")
    bad = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bad.returncode != 0
    assert "model.onnx" in bad.stdout + bad.stderr
