"""The signature of a release, in the form of OpenSSF Model Signing (OMS) 1.0: a Sigstore bundle around a DSSE envelope
around an in-toto statement that names each file with its sha256.

Anybody can check it without Refit: `model_signing verify key FOLDER --signature FOLDER/model.sig --public_key PUB`
(PyPI `model-signing`). That package itself is not used: with what it needs for certificates and transparency logs it
is 94 MB; of that, a signature with a key of one's own takes `cryptography` alone. Sources: the OMS specification
(github.com/ossf/model-signing-spec), model-signing 1.1.1 (`_signing/signing.py`, `_signing/sign_ec_key.py`), DSSE
(github.com/secure-systems-lab/dsse, protocol.md). In `make judges` model-signing itself judges what is
made here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from refit.files import sha256, write_text

FILE = "model.sig"
VARIABLE = "REFIT_SIGNING_KEY"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


class SigningError(Exception):
    """A key that cannot be used, or a signature that does not hold; the message never has anything of a private key."""


class Unsigned(SigningError):
    """There is no signature at all."""


@dataclass(frozen=True)
class Signed:
    """What a good signature says: the model's name, and file -> sha256."""

    name: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Keys:
    """The two halves of the key that signs."""

    private: ec.EllipticCurvePrivateKey
    public: ec.EllipticCurvePublicKey

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.public)

    @classmethod
    def of(cls, public: str) -> Keys:
        """The public half as the pipeline names it, the private one as the runner hands it over; that is taken out of
        the environment, so that no child has it. Raises SigningError."""
        text = os.environ.pop(VARIABLE, "")
        if not text:
            raise SigningError(f"there is no signing key ({VARIABLE}); the secret of release.signing must hold one")
        keys = cls(private_key(text), public_key(public))
        if fingerprint(keys.private.public_key()) != keys.fingerprint:
            raise SigningError("release.signing.public_key is not the public half of the key in its secret")
        return keys


def private_key(pem: str) -> ec.EllipticCurvePrivateKey:
    """The key in a Secret. Raises SigningError."""
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # their texts are not shown: they may quote the key
        raise SigningError(
            "the signing key cannot be read: it must be an unencrypted EC key as PEM, "
            "as `openssl ecparam -name prime256v1 -genkey -noout` makes it"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise SigningError(f"the signing key must be an EC key on one of the curves {', '.join(_HASHES)}")
    return key


def public_key(pem: str) -> ec.EllipticCurvePublicKey:
    """A public key as PEM. Raises SigningError."""
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise SigningError(f"the public key is no PEM that can be read ({exc})") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise SigningError(f"the public key must be an EC key on one of the curves {', '.join(_HASHES)}")
    return key


def digests(folder: Path, left_out: frozenset[str]) -> dict[str, str]:
    """Every file below a folder, but those named, by its path -> sha256. Links are refused: they may lead anywhere."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise SigningError(f"{path}: is a link; a signed release holds plain files only")
        if path.is_file() and name.split("/")[0] not in left_out:
            found[name] = sha256(path)
    return found


def sign(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, left_out: frozenset[str]) -> None:
    """Write ``<folder>/model.sig`` for all files of a folder but those left out."""
    files = digests(folder, left_out | {FILE})
    resources = [{"name": n, "algorithm": "sha256", "digest": d} for n, d in sorted(files.items())]
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root(files)}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": sorted(left_out | {FILE}),
            },
            "resources": resources,
        },
    }
    payload = json.dumps(statement).encode()
    signature = key.sign(_pae(payload), ec.ECDSA(_HASHES[key.curve.name]))
    bundle = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": fingerprint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    write_text(folder / FILE, json.dumps(bundle))


def verify(folder: Path, key: ec.EllipticCurvePublicKey) -> Signed:
    """Hold ``<folder>/model.sig`` against the key, and say what was signed; the files are not looked at.

    Raises:
        Unsigned: there is no signature.
        SigningError: it is not one of this key, or it contradicts itself.
    """
    path = folder / FILE
    try:
        bundle: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        envelope = bundle["dsseEnvelope"]
        hint = bundle["verificationMaterial"]["publicKey"].get("hint")
        payload = base64.b64decode(envelope["payload"], validate=True)
        (signature,) = (base64.b64decode(s["sig"], validate=True) for s in envelope["signatures"])
    except FileNotFoundError:
        raise Unsigned(f"{path}: there is no signature") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise SigningError(f"{path}: is no signature bundle ({exc!r})") from None
    if hint and hint != fingerprint(key):
        raise SigningError(
            f"{path}: signed with another key ({hint[:12]}) than the public key ({fingerprint(key)[:12]})"
        )
    try:
        key.verify(signature, _pae(payload), ec.ECDSA(_HASHES[key.curve.name]))
    except InvalidSignature:
        raise SigningError(f"{path}: the signature does not hold: it, or what it signs, was changed") from None
    return _read(path, envelope.get("payloadType"), payload)


def _read(path: Path, kind: Any, payload: bytes) -> Signed:
    try:
        statement = json.loads(payload)
        types = (kind, statement["_type"], statement["predicateType"])
        (subject,) = statement["subject"]
        files = {r["name"]: r["digest"] for r in statement["predicate"]["resources"] if r["algorithm"] == "sha256"}
        root = subject["digest"]["sha256"]
    except (ValueError, KeyError, TypeError) as exc:
        raise SigningError(f"{path}: signs no model in the form of OMS 1.0 ({exc!r})") from None
    if types != (_PAYLOAD_TYPE, _STATEMENT_TYPE, _PREDICATE_TYPE) or root != _root(files):
        raise SigningError(f"{path}: signs no model in the form of OMS 1.0")
    return Signed(str(subject["name"]), files)


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """sha256 of a public key's PEM: what a bundle names its key by."""
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _root(files: Mapping[str, str]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in sorted(files.items()))).hexdigest()


def _pae(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return f"DSSEv1 {len(_PAYLOAD_TYPE)} {_PAYLOAD_TYPE} {len(payload)} ".encode() + payload
