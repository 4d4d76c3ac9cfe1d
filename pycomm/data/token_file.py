# SPDX-License-Identifier: MIT
"""The file of tokens: a header of 128 bytes, then the tokens to train on, then to validate with.

Little-endian. The header has the magic, a version, the bytes of a token (2 or 4), the size of the
vocabulary, the numbers of tokens and documents, the SHA-256 of all tokens and of the tokenizer's
file, and its own CRC-32.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pycomm.data.tokenizer import Tokenizer, beside, from_json
from pycomm.durable import replace
from pycomm.errors import UsageError

MAGIC = b"PYCOMTOK"
VERSION = 1
# Magic, version, bytes of a token, vocabulary, reserved, tokens, those to train on, documents, and
# the hashes of tokens and tokenizer.
_FIELDS = struct.Struct("<8sIIIIQQQ32s32s")
_HEADER_BYTES = 128
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Header:
    """What a token file says of itself.

    Attributes:
        token_bytes: 2 or 4: uint16 or uint32.
        vocab_size: Every token is below it.
        tokens: In the file.
        train_tokens: The first of them; the others are for validation.
        documents: Ended by an end-of-text token each.
        sha256: Of the tokens' bytes.
        tokenizer_sha256: Of the tokenizer's file.
    """

    token_bytes: int
    vocab_size: int
    tokens: int
    train_tokens: int
    documents: int
    sha256: bytes
    tokenizer_sha256: bytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of a token."""
        return np.dtype("<u2" if self.token_bytes == 2 else "<u4")

    def pack(self) -> bytes:
        """Return the header's bytes."""
        packed = _FIELDS.pack(
            MAGIC,
            VERSION,
            self.token_bytes,
            self.vocab_size,
            0,
            self.tokens,
            self.train_tokens,
            self.documents,
            self.sha256,
            self.tokenizer_sha256,
        ).ljust(_HEADER_BYTES - 4, b"\0")
        return packed + struct.pack("<I", zlib.crc32(packed))


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return a token file's header; it and the file's size are checked.

    Raises:
        UsageError: the file is not a whole token file; the text says why.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(_HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}); make it with: python -m pycomm data prepare"
        ) from error
    if raw[:8] != MAGIC:
        raise UsageError(f"{path} is not a token file: it begins with {raw[:8]!r}, not {MAGIC!r}")
    if len(raw) < _HEADER_BYTES or zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise UsageError(f"{path}: the header is damaged; prepare the text again")
    _, version, token_bytes, vocab, _, *counts, digest, of_tokenizer = _FIELDS.unpack_from(raw)
    if version != VERSION:
        raise UsageError(
            f"{path} has format version {version}, this pycomm reads {VERSION}; prepare it again"
        )
    tokens, train, documents = counts
    header = Header(token_bytes, vocab, tokens, train, documents, digest, of_tokenizer)
    if size != _HEADER_BYTES + tokens * token_bytes:
        raise UsageError(
            f"{path} has {size} bytes, expected {_HEADER_BYTES + tokens * token_bytes} for "
            f"{tokens} tokens; it is cut off or was appended to: prepare the text again"
        )
    return header


def map_tokens(path: str | os.PathLike[str], header: Header) -> npt.NDArray[np.unsignedinteger]:
    """Return all tokens of a file, mapped read-only."""
    if header.tokens == 0:
        return np.empty(0, header.dtype)
    return np.memmap(path, header.dtype, "r", offset=_HEADER_BYTES, shape=(header.tokens,))


def verify(path: str | os.PathLike[str]) -> Header:
    """Read all of a token file and compare it with its checksum; return its header.

    Raises:
        UsageError: it is damaged.
    """
    header = read_header(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(_HEADER_BYTES)
        while data := file.read(_READ_BYTES):
            digest.update(data)
    if digest.digest() != header.sha256:
        raise UsageError(
            f"{path}: the tokens are damaged: their checksum is another; prepare it again"
        )
    return header


def write(
    path: Path,
    tokenizer: Tokenizer,
    train: Iterable[npt.NDArray[np.uint32]],
    validation: Iterable[npt.NDArray[np.uint32]],
) -> Header:
    """Write a token file, whole or not at all; return its header."""
    token_bytes = 2 if tokenizer.vocab_size <= 1 << 16 else 4
    dtype = np.dtype("<u2" if token_bytes == 2 else "<u4")
    digest, counts, documents = hashlib.sha256(), [0, 0], 0
    part = path.with_name(path.name + f".{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(bytes(_HEADER_BYTES))
            for number, arrays in enumerate((train, validation)):
                for tokens in arrays:
                    data = tokens.astype(dtype).tobytes()
                    digest.update(data)
                    file.write(data)
                    counts[number] += len(tokens)
                    documents += int((tokens == tokenizer.end_of_text).sum())
            header = Header(
                token_bytes,
                tokenizer.vocab_size,
                sum(counts),
                counts[0],
                documents,
                digest.digest(),
                hashlib.sha256(tokenizer.to_json().encode()).digest(),
            )
            file.seek(0)
            file.write(header.pack())
        replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return header


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Return the tokenizer of a token file.

    Args:
        path: The token file, or a tokenizer's own file (.json), which may be one that the package
            tokenizers has written.

    Raises:
        UsageError: the tokenizer beside the token file is another's, or there is none.
    """
    tokens = Path(path)
    file = tokens if tokens.suffix == ".json" else beside(tokens)
    try:
        description = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: the tokenizer cannot be read ({error.strerror})") from error
    if file != tokens:
        digest = hashlib.sha256(description.encode()).digest()
        if digest != read_header(tokens).tokenizer_sha256:
            raise UsageError(f"{file} is not the tokenizer of {tokens}; prepare the text again")
    return from_json(description)
