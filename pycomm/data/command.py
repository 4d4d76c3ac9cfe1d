# SPDX-License-Identifier: MIT
"""Text as tokens: `python -m pycomm data prepare FILES --out text.tokens`, `data show FILE`."""

from __future__ import annotations

import argparse
import os
import sys
import time

from pycomm.data import token_file
from pycomm.data.prepare import prepare_text
from pycomm.data.tokenizer import KINDS
from pycomm.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    commands = parser.add_subparsers(required=True, metavar="prepare | show", dest="what")
    prepare = commands.add_parser("prepare", help="clean text files and write them as tokens")
    prepare.add_argument("paths", nargs="+", help="text files, or folders of them")
    prepare.add_argument("--out", required=True, help="the token file")
    prepare.add_argument("--tokenizer", choices=KINDS, default="bpe")
    prepare.add_argument("--vocab-size", type=int, default=4096, help="tokens of bpe (4096)")
    prepare.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="default: one for each core"
    )
    prepare.add_argument(
        "--validation", type=float, default=0.1, help="share kept for validation (0.1)"
    )
    prepare.add_argument("--pattern", default="*.txt", help="files of folders (*.txt)")
    show = commands.add_parser("show", help="print a token file's header and check its tokens")
    show.add_argument("paths", nargs="+", help="token files")


def run(given: argparse.Namespace) -> int:
    """Prepares or shows; returns the exit code."""
    try:
        if given.what == "show":
            for path in given.paths:
                print(_line(path, token_file.verify(path)))
            return 0
        begin = time.monotonic()
        made = prepare_text(
            given.paths,
            given.out,
            tokenizer=given.tokenizer,
            vocab_size=given.vocab_size,
            processes=given.processes,
            validation=given.validation,
            pattern=given.pattern,
        )
        print(_line(given.out, made.header))
        print(f"{made.header.tokens / (time.monotonic() - begin):,.0f} tokens/s")
        return 0
    except (UsageError, OSError) as error:
        print(f"data: {error}", file=sys.stderr)
        return 2


def _line(path: str, header: token_file.Header) -> str:
    return (
        f"{path}: {header.tokens:,} tokens of {header.dtype.name}, vocabulary {header.vocab_size:,}"
        f", {header.tokens - header.train_tokens:,} for validation, {header.documents:,} documents,"
        f" sha256 {header.sha256.hex()[:16]}"
    )
