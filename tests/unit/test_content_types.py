"""What a file is by its first bytes: never what its name or its sender says."""

from __future__ import annotations

import csv
import io
import json
import struct
import tarfile
import zipfile
import zlib
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from content_types import PROGRAMS, REFINED, SIZED, Start, content_type_of, dimensions, signatures
from tap_stack import CONTENT_TYPE, START_BYTES, is_like

OFFICE = "application/vnd.openxmlformats-officedocument."


def begun(data: bytes, extension: str = "") -> Start:
    """A file as the function sees it: its first bytes, and one more read."""
    start = Start(data[:START_BYTES])
    start.whole, start.extension, reads = len(data) <= START_BYTES, extension, []

    def more(offset: int) -> bytes:
        reads.append(offset)
        return data[offset : offset + START_BYTES] if len(reads) == 1 else b""

    start.more = more
    return start


def what_is(data: bytes, extension: str = "") -> str:
    return content_type_of(begun(data, extension))


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height of a picture."""
    start = begun(data)
    return dimensions(content_type_of(start), start)


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
    parts = [before[x : x + 65_000] for x in range(0, len(before) or 1, 65_000)]
    app = b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(part)) + part for part in parts)
    return b"\xff\xd8" + app + tables + b"\xff\xff" + frame + b"\0" * 12 + b"\xff\xd9"


def webp(chunk: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def tiff(order: str, width: int, height: int, orientation: int = 1, at: int = 8) -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = [(254, 4, 0), (256, 4, width), (257, 3, height), (274, 3, orientation)]
    body = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        shown = (
            struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
        )
        body += struct.pack(f"{order}HHI", tag, kind, 1) + shown
    return (mark + struct.pack(f"{order}I", at)).ljust(at, b"\0") + body


def bmp(width: int, height: int) -> bytes:
    return b"BM" + b"\0" * 8 + struct.pack("<IIii", 54, 40, width, height) + b"\0" * 28


def box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + name + body


def ftyp(brand: bytes, *rest: bytes) -> bytes:
    return box(b"ftyp", brand, b"\0\0\0\0", b"mif1") + b"".join(rest)


def heif(brand: bytes, turn: int = 0, crop: tuple[int, int] = (0, 0), before: bytes = b"") -> bytes:
    """Two items: the first a tile of 512 x 512, the second, which is primary, of 4032 x 3024."""
    extents = [struct.pack(">III", 0, 512, 512), struct.pack(">III", 0, 4032, 3024)]
    clean = struct.pack(">8I", crop[0], 1, crop[1], 1, 0, 1, 0, 1)
    properties = [*(box(b"ispe", x) for x in extents), box(b"irot", bytes([turn]))]
    used = b"\x82\x03" + (b"\x84" if crop[0] else b"")
    properties += [box(b"clap", clean)] if crop[0] else []
    items = struct.pack(">IIHBB", 0, 2, 1, 1, 1) + struct.pack(">HB", 2, len(used)) + used
    meta = box(
        b"meta",
        b"\0\0\0\0",
        box(b"pitm", b"\0\0\0\0\0\2"),
        box(b"iprp", box(b"ipco", *properties), box(b"ipma", items)),
    )
    return ftyp(brand, before, meta)


def exif(orientation: int) -> bytes:
    return tiff(">", 1, 1, orientation)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + zlib.crc32(name + body).to_bytes(4)


def ole(*names: str, root: bytes = b"\0" * 16, beyond: bool = False) -> bytes:
    """An OLE2 file whose names are a list of siblings below its root."""
    sector = 200 if beyond else 1
    head = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 18 + struct.pack("<HHH", 3, 0xFFFE, 9)
    head = head.ljust(48, b"\0") + struct.pack("<I", sector)
    head = head.ljust(76, b"\0") + struct.pack("<I", 0)
    table = b"\xfe\xff\xff\xff" * 128
    nothing = 0xFFFFFFFF
    entries = ["Root Entry", *names]
    directory = b""
    for number, name in enumerate(entries):
        following = number + 1 if 0 < number < len(entries) - 1 else nothing
        links = struct.pack("<III", nothing, following, 1 if number == 0 else nothing)
        entry = name.encode("utf-16-le").ljust(64, b"\0") + b"\0\0\1\1" + links
        directory += (entry + (root if number == 0 else b"")).ljust(128, b"\0")
    return (head.ljust(512, b"\0") + table).ljust((sector + 1) * 512, b"\0") + directory


def ogg(*packets: bytes) -> bytes:
    """The pages with which streams begin."""
    pages = [b"OggS\0\2" + b"\0" * 20 + bytes([1, len(each)]) + each for each in packets]
    return b"".join(pages) + b"OggS\0\0"


def asf(kind: str) -> bytes:
    guid = bytes.fromhex(f"{kind}4d5bcf11a8fd00805f5c442b")
    return bytes.fromhex("3026b2758e66cf11") + b"\0" * 60 + guid


BIG_TIFF = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2)
BIG_TIFF += struct.pack("<HHQQ", 256, 16, 1, 70_000) + struct.pack("<HHQQ", 257, 3, 1, 4)
PSD = b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HII", 3, 200, 300)
ICO = b"\0\0\1\0\2\0" + b"\x20\x20\0\0" + struct.pack("<HHII", 1, 32, 9, 38)
ICO += b"\0\x80\0\0" + struct.pack("<HHII", 1, 32, 9, 47)
JP2 = b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"ftyp", b"jp2 ")
JP2 += box(b"jp2h", box(b"ihdr", struct.pack(">II", 400, 640)))
MSI = bytes.fromhex("84100c0000000000c000000000000046")
PROGRAM = "application/vnd.microsoft.portable-executable"
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
    (heif(b"avif"), "image/avif", (4032, 3024)),
    (heif(b"heic"), "image/heic", (4032, 3024)),
    (heif(b"heic", turn=1), "image/heic", (3024, 4032)),
    (heif(b"heic", turn=2), "image/heic", (4032, 3024)),
    (heif(b"heic", turn=3, crop=(4000, 3000)), "image/heic", (3000, 4000)),
    (heif(b"hevc", before=box(b"free", b"x" * 300)), "image/heic-sequence", (4032, 3024)),
    (heif(b"heic", before=box(b"mdat", b"x" * 200_000)), "image/heic", (4032, 3024)),
    (box(b"ftyp", b"mif1\0\0\0\0mif1heic"), "image/heic", (0, 0)),
    (jpeg(20, 10, b"Exif\0\0" + exif(6)), "image/jpeg", (10, 20)),
    (jpeg(20, 10, b"Exif\0\0" + exif(3)), "image/jpeg", (20, 10)),
    (jpeg(20, 10, b"Exif\0\0" + exif(8) + b"\0" * 100_000), "image/jpeg", (10, 20)),
    (png(6, 4) + png_chunk(b"IDAT", b"x" * 9) + png_chunk(b"eXIf", exif(5)), "image/png", (4, 6)),
    (
        webp(b"VP8X\x0a\0\0\0\x08\0\0\0\x59\0\0\x63\0\0EXIF\x56\0\0\0" + exif(7)),
        "image/webp",
        (100, 90),
    ),
    (tiff("<", 7, 9, orientation=5), "image/tiff", (9, 7)),
    (tiff(">", 7, 9, at=100_000), "image/tiff", (7, 9)),
    (BIG_TIFF, "image/tiff", (70_000, 4)),
    (PSD, "image/vnd.adobe.photoshop", (300, 200)),
    (ICO, "image/vnd.microsoft.icon", (256, 128)),
    (b"\0\0\1\0 and a number of other things", "application/octet-stream", (0, 0)),
    (JP2, "image/jp2", (640, 400)),
    (b"\xff\x4f\xff\x51\0\x2f\0\0" + struct.pack(">IIII", 50, 40, 20, 10), "image/j2c", (30, 30)),
    (b"<svg width='30px' height=\"20.4\">", "image/svg+xml", (30, 20)),
    (b"<svg width='100%' stroke-width='3' viewBox='0 -1 60.6 50' />", "image/svg+xml", (61, 50)),
    (b"<svg width='9mm' height='9mm'/>", "image/svg+xml", (0, 0)),
    (ftyp(b"crx "), "image/x-canon-cr3", (0, 0)),
    (ftyp(b"M4A "), "audio/mp4", (0, 0)),
    (ftyp(b"3g2a"), "video/3gpp2", (0, 0)),
    (b"\xff\xfb\x90\0" + b"\0" * 100, "audio/mpeg", (0, 0)),
    ((b"\xff\xf3\x90\0" + b"\1" * 413) * 9, "audio/mpeg", (0, 0)),
    ((b"\xff\xf1\x90\0" + b"\1" * 413) * 9, "audio/aac", (0, 0)),
    (b"\xff\xfb" + b"\1" * 9_000, "application/octet-stream", (0, 0)),
    (b"ID3\4\0\0\0\0\1\0" + b"\0" * 128 + b"fLaC", "audio/flac", (0, 0)),
    (b"\x0b\x77\0\0\0\x40" + b"\0" * 9, "audio/ac3", (0, 0)),
    (b"\x0b\x77\0\0\0\x80" + b"\0" * 9, "audio/eac3", (0, 0)),
    (b"FORM\0\0\0\0AIFFCOMM", "audio/x-aiff", (0, 0)),
    (asf("c0ef19bc"), "video/x-ms-wmv", (0, 0)),
    (asf("409e69f8"), "audio/x-ms-wma", (0, 0)),
    (asf("00000000"), "video/x-ms-asf", (0, 0)),
    (b"\0\0\1\xba\x44", "video/mpeg", (0, 0)),
    ((b"G" + b"\0" * 187) * 4, "video/mp2t", (0, 0)),
    (b"FLV\1\5\0\0\0\x09", "video/x-flv", (0, 0)),
    (ogg(b"\1vorbis"), "audio/ogg", (0, 0)),
    (ogg(b"\1vorbis", b"\x80theora"), "video/ogg", (0, 0)),
    (ogg(b"what?"), "application/ogg", (0, 0)),
    (ole("1Table", "WordDocument"), "application/msword", (0, 0)),
    (ole("WORKBOOK"), "application/vnd.ms-excel", (0, 0)),
    (ole("Current User", "PowerPoint Document"), "application/vnd.ms-powerpoint", (0, 0)),
    (ole("__properties_version1.0", beyond=True), "application/vnd.ms-outlook", (0, 0)),
    (ole("x", root=MSI), "application/x-msi", (0, 0)),
    (ole("x", "y"), "application/x-ole-storage", (0, 0)),
    (b"\xca\xfe\xba\xbe\0\0\0\x3d", "application/java-vm", (0, 0)),
    (b"\xca\xfe\xba\xbe\0\0\0\2", "application/x-mach-binary", (0, 0)),
    (b"!<arch>\ndebian-binary   ", "application/vnd.debian.binary-package", (0, 0)),
    (b"!<arch>\nx.o/", "application/x-archive", (0, 0)),
    (b"\0" * 32_769 + b"CD001\1", "application/x-iso9660-image", (0, 0)),
    (tarred().replace(b"ustar", b"\0\0\0\0\0"), "application/octet-stream", (0, 0)),
    (b"MZ" + b"\0" * 58 + struct.pack("<I", 64) + b"PE\0\0", PROGRAM, (0, 0)),
    (b"MZ\0\0", "application/x-dosexec", (0, 0)),
    (ftyp(b"isom"), "video/mp4", (0, 0)),
    (ftyp(b"qt  "), "video/quicktime", (0, 0)),
    (b"%PDF-1.7\n\xe2\xe3", "application/pdf", (0, 0)),
    (b"\x1f\x8b\x08\0rest", "application/gzip", (0, 0)),
    (b"BZh91AY&SY\0", "application/x-bzip2", (0, 0)),
    (tarred(), "application/x-tar", (0, 0)),
    (b"\x7fELF\2\1\1\0", "application/x-elf", (0, 0)),
    (b"MZ is how this text begins", "text/plain", (0, 0)),
    (b"SQLite format 3\0", "application/vnd.sqlite3", (0, 0)),
    (b"\x1a\x45\xdf\xa3" + b"\0" * 20 + b"\x42\x82\x84webm", "video/webm", (0, 0)),
    (b"\x1a\x45\xdf\xa3" + b"\0" * 20 + b"\x42\x82\x88matroska", "video/matroska", (0, 0)),
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
    (b"one, line", "text/plain", (0, 0)),
    (b'\xef\xbb\xbf {"a": [1]}\n', "application/json", (0, 0)),
    (b'{"a": [1}', "text/plain", (0, 0)),
    (b"17", "text/plain", (0, 0)),
    (bytes(range(256)), "application/octet-stream", (0, 0)),
]


@pytest.mark.parametrize(("data", "content_type", "size"), FILES, ids=[x[1] for x in FILES])
def test_a_file_is_what_its_bytes_say(
    data: bytes, content_type: str, size: tuple[int, int]
) -> None:
    assert what_is(data) == content_type
    assert size_of(data) == size


TEXTS = [
    ("a,b,c\n1,2,3\n", "text/csv"),
    ("a;b\r\n1;2\r\n", "text/csv"),
    ("a\tb\n1\t2\n", "text/csv"),
    ("a|b\n1|2\n", "text/csv"),
    ('Id,Name\n1,"Braund, Mr. Owen"\n2,"Heikkinen,\nMiss. Laina"\n', "text/csv"),
    ("10:00:00,123 start\n10:00:01,456 stop\n", "text/plain"),
    ("Dear Ann,\nthank you, Bob\n", "text/plain"),
    ("(1, 'a'),\n(2, 'b'),\n", "text/plain"),
    ("import os, sys\nfrom re import match, search\n", "text/plain"),
    ("| a | b |\n|---|---|\n", "text/plain"),
    ('"Lunch, 12:30"\n"Dinner, 18:30"\n', "text/plain"),
    ('{"a": 1}\n{"a": 2}\n', "application/x-ndjson"),
    ('{"a": 1}\r\n{"a": 2}', "application/x-ndjson"),
    ('{"a": "' + "x" * 80_000 + '"}', "application/json"),
    ('{"a": "' + "x" * 30_000 + '"}\n' * 9, "application/json"),
    ('[\n{"a": 1},\n{"a": 2}\n]\n', "application/json"),
    ("[2026-11-28 10:00] start\n" * 2, "text/plain"),
    ("[2026-11-28 10:00] start\n" * 9_000, "text/plain"),
    ("[INFO]\n[INFO]\n", "text/plain"),
    ("[" * 90_000, "text/plain"),
    ("<!-- x -->\n<!DOCTYPE html><p>", "text/html"),
    ("<p>a fragment</p>", "text/html"),
    ("<?xml version='1.0'?><a/>", "application/xml"),
    ("<a:b xmlns:a='x'>", "application/xml"),
    ("<x>y</x>\n", "application/xml"),
    ("<none of these", "text/plain"),
    ("<?xml version='1.0'?>\n<!-- y --><!DOCTYPE svg [<!ENTITY a 'b'>]>\n<svg/>", "image/svg+xml"),
    ("<?xml version='1.0'?><html><svg/></html>", "application/xhtml+xml"),
    ("<?xml version='1.0'?><rss version='2.0'>", "application/rss+xml"),
    ("BEGIN:VCALENDAR\r\n", "text/calendar"),
    ("begin:vcard\n", "text/vcard"),
    ("Received: from x\n by y\nFrom: a@b\nSubject: c\n\nd\n", "message/rfc822"),
    ("From a@b Sat Nov 28 2026\nSubject: c\n\nd\n", "application/mbox"),
    ("From here on\nit is a letter: yes\n", "text/plain"),
    ("from: a\nto: b\n", "text/plain"),
    ("#!/usr/bin/env -S python3.13 -u\n", "text/x-python"),
    ("#!/bin/sh\nset -e\n", "text/x-shellscript"),
    ("#! is how this begins", "text/plain"),
    ("#!", "text/plain"),
    ("BM and MZ and FLV", "text/plain"),
    ("", "application/x-empty"),
]


@pytest.mark.parametrize(("text", "content_type"), TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_a_text_is_what_it_says_in_any_encoding(
    text: str, content_type: str, encoding: str
) -> None:
    whole = text.encode(encoding)
    if not text:
        whole = b""
    if len(text) < 30_000 and encoding == "latin-1":
        whole += "où\n".encode(encoding)[: 2 * (content_type == "text/plain")]
    expected = (
        "application/json" if len(text) > START_BYTES // 2 and text[:2] == '{"' else content_type
    )
    assert what_is(whole) == expected


def test_the_name_decides_between_kinds_of_text_only() -> None:
    assert what_is(b"a{b:c}", "css") == "text/css"
    assert what_is(b"a,b\nc,d\n", "txt") == "text/plain"
    assert what_is(b"one line, no table", "csv") == "text/csv"
    assert what_is(b"a{b:c}", "png") == "text/plain"
    assert what_is(b"%PDF-1.7", "css") == "application/pdf"
    assert what_is(bytes(range(256)), "csv") == "application/octet-stream"
    assert what_is(b"<?xml version='1.0'?><svg/>", "html") == "image/svg+xml"


def test_a_text_that_is_cut_in_a_character_or_a_value_is_still_that_text() -> None:
    assert what_is("€".encode() * START_BYTES) == "text/plain"
    assert what_is(("€" * START_BYTES).encode()[:100]) == "text/plain"  # in no encoding, then
    assert what_is(json.dumps([{"a": "b"}] * 10_000).encode()) == "application/json"
    assert what_is(b"a,b\n" + b"1,2\n" * START_BYTES) == "text/csv"
    assert what_is(b"[section]\n" * 9_000) == "text/plain"


def test_the_table_of_signatures_is_in_order() -> None:
    offsets, places = signatures()
    assert sum(len(types) for *_, types in offsets) > 250
    assert set(REFINED) <= {kind for *_, types in offsets for kind in types.values()}
    known = {kind for each in places.values() for kind in each.values()}
    assert set(SIZED) <= known and set(PROGRAMS) <= known
    for kind in known:
        assert is_like(CONTENT_TYPE, kind), kind
    for lines in (place.keys() for name, place in places.items() if name == "text"):
        assert all(what == what.lower() for what in lines)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([each[0] for each in FILES]), st.booleans())
def test_no_bytes_break_it(noise: bytes, data: bytes, whole: bool) -> None:
    data = data[:3_000]
    middle = len(data) // 2
    for cut in (
        noise,
        data + noise,
        data[: len(noise)],
        data[:middle] + noise,
        data[:middle] + noise + data[middle:],
    ):
        start = begun(cut)
        start.whole = whole
        width, height = dimensions(content_type_of(start), start)
        assert width >= 0 <= height


FIELDS = st.lists(st.sampled_from([*',;\t|" \n', "12:30", "7", "a", "(", ""]), max_size=4)


@settings(max_examples=1_000, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda width: st.lists(
            st.lists(FIELDS.map("".join), min_size=width, max_size=width), max_size=4
        )
    ),
    st.sampled_from(",;\t|"),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.booleans(),
)
def test_no_table_breaks_it(
    rows: list[list[str]], delimiter: str, quoting: Literal[0, 1], whole: bool
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=quoting).writerows(rows)
    for cut in (text.getvalue(), text.getvalue()[:-3]):
        start = begun(cut.encode())
        start.whole = whole
        assert is_like(CONTENT_TYPE, content_type_of(start))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SIZED)), st.binary(max_size=200), st.sampled_from(FILES))
def test_a_size_is_read_of_anything(kind: str, noise: bytes, file: tuple[bytes, str, Any]) -> None:
    for data in (noise, file[0][:2_000], file[0][:40] + noise):
        width, height = dimensions(kind, begun(data))
        assert width >= 0 <= height


@given(st.integers(1, 2**14 - 1), st.integers(1, 2**14 - 1))
def test_dimensions_are_the_headers(width: int, height: int) -> None:
    for made in (png, jpeg, bmp):
        assert size_of(made(width, height)) == (width, height)
