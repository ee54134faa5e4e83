"""
A backup's manifest: what belongs to the backup, and what each file's bytes must be. Pure.

It is JSON, ``{"sha256": ..., "manifest": {...}}``, the digest being that of the bytes of the
inner document, and it is written last: a directory without it holds no finished backup.
docs/reference/formats.md.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated, Final

import msgspec

from tallybook.errors import FormatError

__all__ = [
    "BackupDamaged",
    "BackupManifest",
    "StoredFile",
    "encode_manifest",
    "read_manifest",
    "stored_name",
]

_VERSION: Final = 1
_DIGEST_CHARS: Final = 16
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Id = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
# A plain name: whoever writes a manifest must not choose where a restore writes.
_Name = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,200}$")]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class BackupDamaged(FormatError):
    """Something in a backup is missing, or is not what its manifest says."""


class StoredFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    A file of the backup.

    Attributes:
        name: What it is called in a ledger's directory.
        file: What it is called here: the name and the beginning of the digest.
        sha256: Of its bytes, in hex.
        bytes: Its length.
    """

    name: _Name
    file: _Name
    sha256: _Digest
    bytes: _Count


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What a backup holds.

    Attributes:
        version: 1.
        ledger: Whose.
        incarnation: Of its branch.
        branch: The branch that the last entry is of.
        position: The last entry.
        chain: The chain's head behind it, in hex.
        made_at: Microseconds since 1970 UTC, by the server's clock.
        journal: The journal's copy.
        segments: Every segment that the journal names.
    """

    version: int
    ledger: _Id
    incarnation: Annotated[int, msgspec.Meta(ge=1)]
    branch: _Id
    position: Annotated[int, msgspec.Meta(ge=1)]
    chain: _Digest
    made_at: int
    journal: StoredFile
    segments: list[StoredFile]

    @property
    def where(self) -> str:
        """The position, as people write it."""
        return f"{self.incarnation}.{self.position}"


class _Sealed(msgspec.Struct):
    sha256: str
    manifest: msgspec.Raw


def stored_name(name: str, digest: str) -> str:
    """
    What the file *name* with this digest is called in a backup.

    The digest is part of it, so that a file of another branch, which has the same name and
    other content, never takes the place of one that the last backup still needs.
    """
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}-{digest[:_DIGEST_CHARS]}{dot}{suffix}"


def encode_manifest(manifest: BackupManifest) -> bytes:
    """The manifest's bytes."""
    inner = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    return b'{"sha256": "%s", "manifest": %s}\n' % (sha256(inner).hexdigest().encode(), inner)


def read_manifest(data: bytes) -> BackupManifest:
    """
    The manifest in *data*.

    Raises:
        BackupDamaged: A byte of it has changed, or it is of a version that is not known.
    """
    try:
        sealed = _sealed.decode(data)
        inner = bytes(sealed.manifest)
        if sha256(inner).hexdigest() != sealed.sha256:
            raise BackupDamaged("the backup's manifest has changed: its SHA-256 does not hold")
        version = _version.decode(inner).version
        if version != _VERSION:
            raise BackupDamaged(
                f"the backup's manifest has version {version}, this tallybook knows {_VERSION}"
            )
        return _manifest.decode(inner)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BackupDamaged(f"the backup's manifest cannot be read: {error}") from None


class _Version(msgspec.Struct):
    version: int


_sealed: Final = msgspec.json.Decoder(_Sealed)
_version: Final = msgspec.json.Decoder(_Version)
_manifest: Final = msgspec.json.Decoder(BackupManifest)
