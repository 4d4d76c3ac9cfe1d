# SPDX-License-Identifier: MIT
"""What becomes of text before it is made into tokens; docs/data.md says the same in words."""

from __future__ import annotations

import re
import unicodedata

# Vertical tab, form feed, next line, line and paragraph separators end lines, too.
_LINE_END = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# Control characters but tab and line feed; the byte order mark; noncharacters.
_REMOVED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_TRAILING = re.compile(r"[^\S\n]+$", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\n{3,}")
_REPEATED = re.compile(r"^(.+\n)\1{2,}", re.MULTILINE)


def clean(raw: bytes) -> str:
    r"""Return text as UTF-8 says it, normalised; it ends with a line feed unless it is empty.

    In this order: bytes that are not UTF-8 become U+FFFD; line ends of every kind become \n;
    control characters except tab are removed; canonical composition (NFC); blanks at line ends are
    removed; of several empty lines in a row one stays, of three and more equal lines in a row two;
    empty lines at both ends go.
    """
    text = raw.decode("utf-8", errors="replace")
    text = _REMOVED.sub("", _LINE_END.sub("\n", text))
    text = _TRAILING.sub("", unicodedata.normalize("NFC", text))
    text = _EMPTY_LINES.sub("\n\n", text.strip("\n"))
    text = _REPEATED.sub(r"\1\1", text + "\n")
    return text if text != "\n" else ""
