# SPDX-License-Identifier: MIT
"""Text to tokens: cleaning, the file, equal output for any number of processes, the data set."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pycomm import UsageError
from pycomm.__main__ import main
from pycomm.data import (
    ShardedLoader,
    ShardedSampler,
    TokenDataset,
    load_tokenizer,
    prepare_text,
)
from pycomm.data.cleaning import clean
from pycomm.data.pieces import Piece
from pycomm.data.token_file import read_header, verify

LIBRARY = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Half a megabyte of real text, and what real text has: no line end at the end, CRLF, UTF-8."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "mixed.py").write_bytes("Zürich <|endoftext|> 東京 🙂\r\n".encode() * 50 + b"end")
    (folder / "empty.py").write_bytes(b"")
    return [
        *(LIBRARY / name for name in ("argparse.py", "ast.py", "inspect.py", "typing.py")),
        folder / "mixed.py",
        folder / "empty.py",
    ]


# ---- cleaning


@pytest.mark.parametrize(
    "raw, cleaned",
    [
        (b"a\r\nb\rc\x0bd\x0ce\xc2\x85f\xe2\x80\xa8g\xe2\x80\xa9h", "a\nb\nc\nd\ne\nf\ng\nh\n"),
        (b"\xef\xbb\xbfa\x00\x07b\x7f\tc", "ab\tc\n"),
        ("e\u0301".encode(), "\u00e9\n"),
        (b"a  \nb\t \n", "a\nb\n"),
        (b"\n\n a\n\n\n\n\nb\n\n\n", " a\n\nb\n"),
        (b"x\nx\nx\nx\ny\ny\n", "x\nx\ny\ny\n"),
        (b"a\xffb", "a\ufffdb\n"),
        (b"", ""),
        (b" \n\x00\r\n", ""),
    ],
)
def test_cleaning(raw: bytes, cleaned: str) -> None:
    assert clean(raw) == cleaned


@given(st.text())
def test_cleaned_text_is_clean(text: str) -> None:
    once = clean(text.encode("utf-8", errors="replace"))
    assert clean(once.encode()) == once


@given(st.lists(st.binary(max_size=30), max_size=30), st.integers(1, 40))
def test_pieces_of_a_file_are_its_lines_each_once(lines: list[bytes], size: int) -> None:
    data = b"\n".join(lines)
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        ends = [*range(size, len(data), size), len(data)]
        pieces = [
            Piece(file.name, begin, end, end == len(data)).read()
            for begin, end in zip([0, *ends[:-1]], ends, strict=True)
        ]
    assert b"".join(pieces) == data
    last = max((number for number, piece in enumerate(pieces) if piece), default=0)
    assert all(not piece or piece.endswith(b"\n") for piece in pieces[:last])


# ---- the file


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_what_is_prepared_is_the_same_for_any_number_of_processes(
    kind: str, sources: list[Path], tmp_path: Path
) -> None:
    made = {}
    for processes in (1, 2, 3):
        out = tmp_path / f"{processes}.tokens"
        prepared = prepare_text(
            sources, out, tokenizer=kind, vocab_size=600, processes=processes, progress=False
        )
        made[processes] = (
            out.read_bytes(),
            (tmp_path / f"{processes}.tokens.tokenizer.json").read_bytes(),
        )
        assert prepared.header == verify(out)
    assert made[1] == made[2] == made[3]
    assert sorted(os.listdir(tmp_path)) == sorted(
        name for n in (1, 2, 3) for name in (f"{n}.tokens", f"{n}.tokens.tokenizer.json")
    )


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_tokens_are_the_cleaned_text(kind: str, sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "all.tokens"
    made = prepare_text(sources, out, tokenizer=kind, vocab_size=600, validation=0, progress=False)
    tokens = TokenDataset(out, 1, "train").tokens
    assert made.header.train_tokens == made.header.tokens == len(tokens)
    assert made.header.documents == 5 == (tokens == made.tokenizer.end_of_text).sum()
    tokenizer = load_tokenizer(out)
    ends = np.flatnonzero(tokens == tokenizer.end_of_text)
    documents = [
        tokenizer.decode(part[part != tokenizer.end_of_text].tolist())
        for part in np.split(tokens, ends + 1)[:-1]
    ]
    # Cuts may take an empty line along, so what is compared is the lines that are not.
    full = [path for path in sources if path.stat().st_size]
    for document, path in zip(documents, full, strict=True):
        want = [line for line in clean(path.read_bytes()).split("\n") if line]
        assert [line for line in document.split("\n") if line] == want


def test_validation_text_is_apart_and_the_tokenizer_has_not_seen_it(
    sources: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "t.tokens"
    header = prepare_text(sources, out, tokenizer="byte", validation=0.2, progress=False).header
    assert 0.1 < 1 - header.train_tokens / header.tokens < 0.3
    train, held_out = TokenDataset(out, 64, "train"), TokenDataset(out, 64, "validation")
    assert len(train) + len(held_out) <= len(TokenDataset(out, 64, "all"))
    assert len(train.tokens) == header.train_tokens
    assert len(held_out.tokens) == header.tokens - header.train_tokens


def test_a_large_vocabulary_has_tokens_of_four_bytes(tmp_path: Path) -> None:
    text = tmp_path / "all.txt"
    text.write_text("".join(chr(i) + "\n" for i in range(0x4E00, 0x4E00 + 20000)))
    (tmp_path / "more.txt").write_text("".join(chr(i) for i in range(0x20000, 0x20000 + 50000)))
    header = prepare_text(
        tmp_path, tmp_path / "t.tokens", tokenizer="char", validation=0, progress=False
    ).header
    assert header.vocab_size > 1 << 16 and header.dtype == np.uint32
    assert verify(tmp_path / "t.tokens") == header


def test_damage_is_found_and_named(sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "t.tokens"
    prepare_text(sources, out, tokenizer="byte", progress=False)
    whole = out.read_bytes()
    for damaged, text in (
        (whole[:-1], "expected .* it is cut off"),
        (whole + b"x", "expected .* it is cut off or was appended to"),
        (b"y" + whole[1:], "is not a token file"),
        (whole[:20] + b"y" + whole[21:], "header is damaged"),
        (whole[:50], "header is damaged"),
        (b"", "is not a token file"),
    ):
        out.write_bytes(damaged)
        with pytest.raises(UsageError, match=text):
            TokenDataset(out, 8)
    out.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    TokenDataset(out, 8)
    with pytest.raises(UsageError, match="the tokens are damaged"):
        verify(out)


def test_a_tokenizer_of_other_tokens_is_refused(sources: list[Path], tmp_path: Path) -> None:
    for name, kind in (("a", "byte"), ("b", "char")):
        prepare_text(sources, tmp_path / name, tokenizer=kind, progress=False)
    os.replace(tmp_path / "b.tokenizer.json", tmp_path / "a.tokenizer.json")
    with pytest.raises(UsageError, match="is not the tokenizer of"):
        load_tokenizer(tmp_path / "a")
    assert load_tokenizer(tmp_path / "a.tokenizer.json").kind == "char"


def test_a_run_that_fails_leaves_the_old_files(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t.tokens"
    prepare_text(sources, out, tokenizer="byte", progress=False)
    before = out.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        prepare_text(sources, out, tokenizer="char", progress=False)
    assert out.read_bytes() == before and load_tokenizer(out).kind == "byte"
    assert sorted(os.listdir(tmp_path)) == ["t.tokens", "t.tokens.tokenizer.json"]


# ---- the data set


def test_samples_are_blocks_and_what_comes_next(sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "t.tokens"
    prepare_text(sources, out, tokenizer="byte", progress=False)
    data = TokenDataset(out, 100)
    tokens = torch.from_numpy(data.tokens.astype(np.int64))
    for index in (0, 1, len(data) - 1):
        inputs, targets = data[index]
        assert inputs.dtype == targets.dtype == torch.int64 and len(inputs) == 100
        assert torch.equal(inputs, tokens[100 * index : 100 * index + 100])
        assert torch.equal(targets, tokens[100 * index + 1 : 100 * index + 101])
    with pytest.raises(IndexError):
        data[len(data)]
    assert len(pickle.dumps(data)) < 500
    assert torch.equal(pickle.loads(pickle.dumps(data))[3][0], data[3][0])


@pytest.mark.parametrize("way", ["fork", "forkserver"])
def test_workers_of_a_loader_read_the_data_set(
    way: str, sources: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "t.tokens"
    prepare_text(sources, out, tokenizer="byte", progress=False)
    data = TokenDataset(out, 4096)
    context = multiprocessing.get_context(way)
    sampler = ShardedSampler(data, 0, 1, batch_size=3, shuffle=False)
    loader = ShardedLoader(data, sampler, num_workers=2, multiprocessing_context=context)
    got = [inputs for inputs, _ in loader]
    want = [inputs for inputs, _ in DataLoader(data, batch_size=3)]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# ---- errors and the command


def test_arguments_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("word\n" * 3000)
    for how, message in (
        ({"tokenizer": "words"}, "expected one of bpe, byte, char"),
        ({"vocab_size": 256}, "expected 257 or more"),
        ({"processes": 0}, "expected 1 or more"),
        ({"validation": 1.0}, "expected 0 to below 1"),
        ({"paths": tmp_path / "b.txt"}, "does not exist"),
        ({"paths": tmp_path, "pattern": "*.md"}, "no file in"),
        ({"out": tmp_path / "no" / "t"}, "the folder .* is missing"),
    ):
        arguments: dict[str, Any] = {"paths": text, "out": tmp_path / "t", "progress": False} | how
        with pytest.raises(UsageError, match=message):
            prepare_text(**arguments)
    text.write_text("short")
    with pytest.raises(UsageError, match="too few to split off validation"):
        prepare_text(text, tmp_path / "t", progress=False)


def test_without_the_package_tokenizers_the_error_says_what_to_install(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match="pip install tokenizers"):
        prepare_text(sources, tmp_path / "t", progress=False)
    prepare_text(sources, tmp_path / "t", tokenizer="char", progress=False)
    assert not list(tmp_path.glob("*.part"))


def test_the_command_prepares_and_shows(
    tmp_path: Path, sources: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.tokens"
    line = [sys.executable, "-m", "pycomm", "data", "prepare", *map(str, sources)]
    line += ["--out", str(out), "--vocab-size", "400", "--processes", "2"]
    made = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    assert "vocabulary 400" in made.stdout and "tokens/s" in made.stdout
    assert main(["data", "show", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == made.stdout.splitlines()[0]
    assert read_header(out).vocab_size == 400
    out.write_bytes(out.read_bytes()[:-2])
    assert main(["data", "show", str(out)]) == 2
    assert "cut off" in capsys.readouterr().err
