"""What a file is by its first bytes: never what its name or its sender says."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_stack import OFFICE, START_BYTES, content_type_of, dimensions


class Unseekable(io.BytesIO):
    """What a ZIP archive is streamed into: sizes then stand behind the contents."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise OSError


def zipped(*files: tuple[str, str], buffer: io.BytesIO | None = None) -> bytes:
    buffer = buffer or io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files:
            archive.writestr(name, text)
    return buffer.getvalue()


DOCX = [("[Content_Types].xml", ""), ("word/document.xml", "x" * 99)]
ODF = "application/vnd.oasis.opendocument."
XLSX = [("xl/workbook.xml", "x"), ("_rels/.rels", "y")]


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + zlib.crc32(header).to_bytes(4)


def jpeg(width: int, height: int, before: bytes = b"") -> bytes:
    frame = struct.pack(">BBHBHHB", 0xFF, 0xC2, 17, 8, height, width, 3)
    tables = b"\xff\xc4\x00\x03\x00"  # a Huffman table, whose marker lies among the frames'
    app = b"\xff\xe0" + struct.pack(">H", 2 + len(before)) + before
    return b"\xff\xd8" + app + tables + b"\xff\xff" + frame + b"\0" * 12 + b"\xff\xd9"


def webp(chunk: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def tiff(order: str, width: int, height: int) -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = [(254, 4, 0), (256, 4, width), (257, 3, height)]
    body = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        shown = (
            struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
        )
        body += struct.pack(f"{order}HHI", tag, kind, 1) + shown
    return mark + struct.pack(f"{order}I", 8) + body


def bmp(width: int, height: int) -> bytes:
    return b"BM" + b"\0" * 8 + struct.pack("<IIii", 54, 40, width, height) + b"\0" * 28


def ftyp(brand: bytes, rest: bytes = b"") -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0" * 12 + rest


FILES = [
    (b"", "application/x-empty", (0, 0)),
    (png(640, 480), "image/png", (640, 480)),
    (jpeg(1024, 768), "image/jpeg", (1024, 768)),
    (jpeg(1, 2, b"\xff\xc0" * 8_000), "image/jpeg", (1, 2)),
    (jpeg(5, 5)[:12], "image/jpeg", (0, 0)),
    (b"GIF89a" + struct.pack("<HH", 10, 20), "image/gif", (10, 20)),
    (bmp(30, 40), "image/bmp", (30, 40)),
    (bmp(30, -40), "image/bmp", (30, 40)),
    (webp(b"VP8 " + b"\0" * 10 + struct.pack("<HH", 50, 60)), "image/webp", (50, 60)),
    (webp(b"VP8L\0\0\0\0\x2f" + struct.pack("<I", 69 | 79 << 14)), "image/webp", (70, 80)),
    (webp(b"VP8X" + b"\0" * 8 + b"\x59\0\0\x63\0\0"), "image/webp", (90, 100)),
    (tiff("<", 11, 12), "image/tiff", (11, 12)),
    (tiff(">", 13, 14), "image/tiff", (13, 14)),
    (ftyp(b"avif", b"ispe" + struct.pack(">III", 0, 15, 16)), "image/avif", (15, 16)),
    (ftyp(b"heic"), "image/heic", (0, 0)),
    (ftyp(b"isom"), "video/mp4", (0, 0)),
    (ftyp(b"qt  "), "video/quicktime", (0, 0)),
    (b"%PDF-1.7\n\xe2\xe3", "application/pdf", (0, 0)),
    (b"\x1f\x8b\x08\0rest", "application/gzip", (0, 0)),
    (b"BZh91AY&SY\0", "application/x-bzip2", (0, 0)),
    (tarred(), "application/x-tar", (0, 0)),
    (b"\x7fELF\2\1\1\0", "application/x-elf", (0, 0)),
    (b"MZ\x90\0\3\0", "application/vnd.microsoft.portable-executable", (0, 0)),
    (b"MZ is how this text begins", "text/plain", (0, 0)),
    (b"SQLite format 3\0", "application/vnd.sqlite3", (0, 0)),
    (b"\x1a\x45\xdf\xa3" + b"\0" * 20 + b"webm", "video/webm", (0, 0)),
    (b"\x1a\x45\xdf\xa3" + b"\0" * 20 + b"matroska", "video/matroska", (0, 0)),
    (b"RIFF\0\0\0\0WAVEfmt ", "audio/wav", (0, 0)),
    (b"ID3\3\0", "audio/mpeg", (0, 0)),
    (zipped(), "application/zip", (0, 0)),
    (zipped(("a", "x")), "application/zip", (0, 0)),
    (zipped(("word/a", "a folder that is called word")), "application/zip", (0, 0)),
    (zipped(("a.docx", zipped(*DOCX).decode("latin-1"))), "application/zip", (0, 0)),
    (zipped(*DOCX), f"{OFFICE}wordprocessingml.document", (0, 0)),
    (zipped(*DOCX, buffer=Unseekable()), f"{OFFICE}wordprocessingml.document", (0, 0)),
    (zipped(*XLSX), f"{OFFICE}spreadsheetml.sheet", (0, 0)),
    (zipped(("META-INF/MANIFEST.MF", ""), ("a", "")), "application/java-archive", (0, 0)),
    (zipped(("mimetype", "application/epub+zip"), ("a", "b")), "application/epub+zip", (0, 0)),
    (zipped(("mimetype", f"{ODF}text"), ("a", "b")), f"{ODF}text", (0, 0)),
    (zipped(("mimetype", "no type")), "application/zip", (0, 0)),
    (zipped(("mimetype", "image/png"), ("a.exe", "MZ")), "application/zip", (0, 0)),
    (zipped(("mimetype", f"{ODF}x/../y")), "application/zip", (0, 0)),
    (b"hello\n", "text/plain", (0, 0)),
    ("żółć".encode(), "text/plain", (0, 0)),
    ("żółć".encode("utf-16"), "text/plain", (0, 0)),
    ("où".encode("latin-1"), "text/plain", (0, 0)),
    (b"a,b,c\n1,2,3\n", "text/csv", (0, 0)),
    (b"one, line", "text/plain", (0, 0)),
    (b'\xef\xbb\xbf {"a": [1]}\n', "application/json", (0, 0)),
    (b'{"a": [1}', "text/plain", (0, 0)),
    (b"17", "text/plain", (0, 0)),
    (b"<!-- x -->\n<!DOCTYPE html><p>", "text/html", (0, 0)),
    (b"<?xml version='1.0'?><a/>", "application/xml", (0, 0)),
    (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "image/svg+xml", (0, 0)),
    (bytes(range(256)), "application/octet-stream", (0, 0)),
]


@pytest.mark.parametrize(("start", "content_type", "size"), FILES, ids=[x[1] for x in FILES])
def test_a_file_is_what_its_bytes_say(
    start: bytes, content_type: str, size: tuple[int, int]
) -> None:
    assert content_type_of(start, whole=True) == content_type
    assert dimensions(content_type, start) == size


def test_a_text_that_is_cut_in_a_character_or_a_value_is_still_that_text() -> None:
    euros = ("€" * START_BYTES).encode()[:START_BYTES]
    assert content_type_of(euros, whole=False) == "text/plain"
    assert content_type_of(euros[:100], whole=True) == "text/plain"
    rows = json.dumps([{"a": "b"}] * 10_000).encode()
    assert content_type_of(rows[:START_BYTES], whole=False) == "application/json"
    assert content_type_of(b"a,b\n1,2\n3", whole=False) == "text/csv"
    assert content_type_of(b"[section]\n" * 9_000, whole=False) == "text/plain"


@given(st.binary(max_size=300), st.sampled_from([each[0] for each in FILES]), st.booleans())
def test_no_bytes_break_it(noise: bytes, start: bytes, whole: bool) -> None:
    for cut in (noise, start + noise, start[: len(noise)], start[: len(start) // 2] + noise):
        width, height = dimensions(content_type_of(cut, whole), cut)
        assert width >= 0 <= height


@given(st.integers(1, 2**14 - 1), st.integers(1, 2**14 - 1))
def test_dimensions_are_the_headers(width: int, height: int) -> None:
    for made, kind in ((png, "image/png"), (jpeg, "image/jpeg"), (bmp, "image/bmp")):
        assert dimensions(kind, made(width, height)) == (width, height)
