"""Service accounts of Google for tests: their key files, and who a bearer token is of."""

from __future__ import annotations

import base64
import binascii
import json
import time
from dataclasses import dataclass
from functools import cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


@dataclass(frozen=True)
class ServiceAccount:
    """An account and its key."""

    email: str
    key: RSAPrivateKey

    @property
    def private_key(self) -> str:
        """Its key in PEM."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    def key_file(self, address: str) -> str:
        """Returns the JSON that Google hands out, for a store at another address than Google's."""
        return json.dumps(
            {
                "type": "service_account",
                "client_email": self.email,
                "private_key_id": "the-key-id",
                "private_key": self.private_key,
                "gcs_base_url": address,
            }
        )

    def signed(self, authorization: str) -> bool:
        """Whether a header has a token of this account that holds now.

        The token is one that the account signed itself, see AIP-4111 and RFC 7523.
        """
        try:
            signed, _, signature = authorization.removeprefix("Bearer ").rpartition(".")
            claims = json.loads(_decoded(signed.partition(".")[2]))
            self.key.public_key().verify(_decoded(signature), signed.encode(), PKCS1v15(), SHA256())
        except (InvalidSignature, ValueError, binascii.Error):
            return False
        return bool(
            claims["iss"] == self.email
            and claims["iat"] - 60 <= time.time() < claims["exp"]
            and "https://www.googleapis.com/auth/cloud-platform" in claims["scope"]
        )


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


@cache
def service_account(holder: str) -> ServiceAccount:
    """Returns the trainer's account with somebody's key, the same for the same holder."""
    return ServiceAccount("trainer@a-project.iam.example", generate_private_key(65537, 2048))
