"""Short messages that only those who share a secret can read or write.

The ranks of a run talk through a store that serves whoever connects. What they put there is
encrypted, and carries a code over its name and content: a stranger reads noise, and a message that
he writes, changes or moves to another name is refused. The keys are hashes (HMAC-SHA256) of a
secret that rank 0 makes up for each run.
"""

from __future__ import annotations

import hmac
import secrets

NONCE, CODE = 16, 32  # bytes


class Forged(ValueError):
    """A message that nobody who knows the secret has written under this name."""


class Seal:
    """Closes and opens messages; everyone who makes one from the same secret."""

    def __init__(self, secret: str):
        self._cipher_key = _hash(secret.encode(), b"cipher")
        self._code_key = _hash(secret.encode(), b"code")

    def close(self, name: str, text: str) -> bytes:
        """The message as it may lie about under ``name``."""
        nonce = secrets.token_bytes(NONCE)
        hidden = self._cipher(nonce, text.encode())
        return self._code(name, nonce + hidden) + nonce + hidden

    def open(self, name: str, message: bytes) -> str:
        """The text of a message that was closed under this name.

        Raises:
            Forged: it was not.
        """
        code, body = message[:CODE], message[CODE:]
        if len(body) < NONCE or not hmac.compare_digest(code, self._code(name, body)):
            raise Forged(f"{name} was not written by a rank of this run")
        return self._cipher(body[:NONCE], body[NONCE:]).decode()

    def _code(self, name: str, body: bytes) -> bytes:
        return _hash(self._code_key, len(name).to_bytes(4, "big") + name.encode() + body)

    def _cipher(self, nonce: bytes, text: bytes) -> bytes:
        """The text with a stream of hashes added to it; the same again takes it off."""
        stream = b""
        while len(stream) < len(text):
            stream += _hash(self._cipher_key, nonce + len(stream).to_bytes(8, "big"))
        return bytes(a ^ b for a, b in zip(text, stream, strict=False))


def new_secret() -> str:
    return secrets.token_hex(32)


def _hash(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, "sha256")
