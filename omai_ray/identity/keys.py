"""API keys: `omai-sk-<id>_<secret>_<checksum>`.

The id finds the row, the secret proves the caller, and the checksum keeps typing errors away from
the database. Only an HMAC-SHA256 of the secret is stored.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
import zlib
from dataclasses import dataclass, field

from omai_ray.identity.peppers import Peppers
from omai_ray.store import ApiKey

PREFIX = "omai-sk-"
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
ID_LENGTH = 12
SECRET_LENGTH = 43  # 62 ** 43 > 2 ** 256
CHECKSUM_LENGTH = 6  # 62 ** 6 > 2 ** 33
KEY_LENGTH = len(PREFIX) + ID_LENGTH + SECRET_LENGTH + CHECKSUM_LENGTH + 2
_ALLOWED = frozenset(ALPHABET)


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A well-formed key: its id, and the secret that has yet to be verified."""

    key_id: str
    secret: str = field(repr=False)


def generate() -> tuple[ParsedKey, str]:
    """Return a new key in parts, and as the text that its owner sees once."""
    parsed = ParsedKey(random_text(ID_LENGTH), random_text(SECRET_LENGTH))
    body = f"{parsed.key_id}_{parsed.secret}"
    return parsed, f"{PREFIX}{body}_{_checksum(body)}"


def parse(text: str) -> ParsedKey | None:
    """Return the parts of a key whose checksum holds, else None. Costs no secret comparison."""
    if len(text) != KEY_LENGTH or not text.startswith(PREFIX):
        return None
    body, _, checksum = text.removeprefix(PREFIX).rpartition("_")
    key_id, _, secret = body.partition("_")
    if len(key_id) != ID_LENGTH or not _ALLOWED.issuperset(key_id + secret):
        return None
    return ParsedKey(key_id, secret) if checksum == _checksum(body) else None


def compute_mac(parsed: ParsedKey, pepper: bytes) -> str:
    """Return the hex HMAC-SHA256 of id and secret, so that no row's mac fits another row."""
    message = f"{parsed.key_id}_{parsed.secret}".encode("ascii")
    return hmac.new(pepper, message, hashlib.sha256).hexdigest()


def matches(parsed: ParsedKey, row: ApiKey | None, peppers: Peppers) -> bool:
    """Whether the secret is the row's, in the same time for every wrong secret and no row."""
    pepper = peppers.get(row.pepper_version) if row else None
    mac = compute_mac(parsed, pepper or peppers.current)
    expected = row.mac if row and pepper else _NO_MAC
    return hmac.compare_digest(mac, expected) and expected is not _NO_MAC


def redact(text: str) -> str:
    """Return what may be shown of a wrong key: its last four characters, if it looks like one."""
    return f"{PREFIX}...{text[-4:]}" if text.startswith(PREFIX) and len(text) >= 40 else ""


def random_text(length: int) -> str:
    """Return that many random letters and digits."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    """Return the CRC-32 in base 62: any one wrong character changes it.

    With its 33rd bit set, every number has the same size, and so takes the same time.
    """
    value = zlib.crc32(body.encode("ascii")) | 1 << 32
    digits = []
    for _ in range(CHECKSUM_LENGTH):
        value, digit = divmod(value, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))


_NO_MAC = secrets.token_hex(32)
