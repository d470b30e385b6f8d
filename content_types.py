"""What a file is, and how large a picture, by its first bytes: `content_type_of`, `dimensions`.

A library of its own: it knows no cloud, and needs Python's standard library only. Signatures are
in the table beside it, `content_types.txt`; what no signature tells, the functions below read on.
All of them take time in proportion to the bytes, whatever these are.
"""

from __future__ import annotations

import codecs
import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

SIGNATURES = "content_types.txt"  # beside this file, here and in a deployment package
PROGRAMS = (
    "application/vnd.android.package-archive",
    "application/java-archive",
    "application/epub+zip",
    "model/3mf",
)
#: All but binary data bytes: WHATWG MIME Sniffing, 3.
TEXT_BYTES = bytes({*range(9, 256)} - {11, *range(14, 27), *range(28, 32)})
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
#: What stands before the outermost element of HTML or XML, and its name. Nothing is taken back.
PROLOG = re.compile(
    r"(?:\s*+(?:(?><!--.*?-->)|(?><\?.*?\?>)|"
    r"<!doctype\s++(?P<doctype>[\w:.-]++)[^\[>]*+(?:\[(?>.*?\]\s*+>)|>)))*+"
    r"(?:\s*+<(?:[\w.-]++:)?+(?P<root>[\w.-]++)(?P<attributes>[^>]*+))?+",
    re.I | re.S,
)
SVG_SIDES = re.compile(r"(?<![\w-])(width|height|viewBox)\s*+=\s*+[\"']([^\"']*+)")
#: Fields of a mail's header, and those that nothing else has (RFC 5322, 3.6).
MAIL_FIELDS = set("from to cc subject date reply-to sender content-type".split())
MAIL_ONLY = set("message-id received mime-version return-path delivered-to dkim-signature".split())


class Start(bytes):
    """The first bytes of a file, and what else decides what it is."""

    whole = True  # there are no others
    extension = ""  # of its name, in small letters: it decides between kinds of text only
    #: Reads as many bytes from another offset, once; b"" the second time.
    more: Callable[[int], bytes] = staticmethod(lambda _: b"")


def table_text() -> str:
    """The text of the table, to ship it."""
    with open(os.path.join(os.path.dirname(__file__), SIGNATURES), encoding="utf-8") as file:
        return file.read()


@functools.cache
def signatures() -> tuple[list[tuple[int, int, dict[bytes, str]]], dict[str, dict[bytes, str]]]:
    """The table: offset, length, bytes -> type, the longest first; and other places by name."""
    places: dict[str, dict[bytes, str]] = {}
    rows = [row.split() for row in table_text().splitlines() if row[:1] not in ("", "#")]
    for content_type, where, *entries in rows:
        found = (x.encode().decode("unicode_escape").encode("latin-1") for x in entries)
        places.setdefault(where, {}).update(dict.fromkeys(found, content_type))
    offsets = [
        (len(x), int(where), x) for where in places if where.isdigit() for x in places[where]
    ]
    by_place: dict[tuple[int, int], dict[bytes, str]] = {}
    for length, offset, what in sorted(offsets, reverse=True):
        by_place.setdefault((offset, length), {})[what] = places[str(offset)][what]
    return [(*place, types) for place, types in by_place.items()], places


def named(where: str, what: bytes, default: str = "") -> str:
    """The content type of the longest entry of a place with which `what` begins."""
    table = signatures()[1][where]
    return table[max(found, key=len)] if (found := [*filter(what.startswith, table)]) else default


def content_type_of(start: Start) -> str:
    """The content type of a file. Takes time in proportion to the bytes, whatever they are."""
    if not start:
        return "application/x-empty"
    for offset, length, types in signatures()[0]:
        what = start[offset : offset + length]
        if what in types and (length > 4 or not what.isalnum() or is_binary(start)):
            kind = types[what]
            if kind := REFINED[kind](start, kind) if kind in REFINED else kind:
                return kind
    return unsigned_type(start) or text_type(start)


def is_binary(start: bytes) -> bool:
    """Whether there is a binary data byte near the beginning, or a zero anywhere."""
    return bool(start[:4_096].translate(None, TEXT_BYTES)) or 0 in start


def frames_type(start: bytes) -> str:
    """MPEG audio, whose header comes again at each frame: ISO/IEC 11172-3 and 13818-7."""
    second = unsigned(start, 1, 1) if start.startswith(b"\xff") else 0
    if second & 0xE0 != 0xE0 or second & 0x18 == 8 or second & 6 == 6:
        return ""
    kind = "audio/mpeg" if second & 6 else "audio/aac"
    return kind if len(start) < 2_000 or start.count(start[:2], 0, 8_000) > 2 else ""


def unsigned_type(start: bytes) -> str:
    """What has no signature: frames or packets, an old tar archive, a Targa picture."""
    if kind := frames_type(start):
        return kind
    for first, packet in ((0, 188), (4, 192)):
        if start[first : first + 3 * packet : packet] == b"GGG":
            return "video/mp2t"
    try:
        if int(start[148:156].strip(b" \0"), 8) == sum(start[:148], 256) + sum(start[156:512]):
            return "application/x-tar"
    except ValueError:
        pass  # no checksum in octal digits
    colours, coding, depth = (unsigned(start, each, 1) for each in (1, 2, 16))
    known = coding in (1, 2, 3, 9, 10, 11) and colours == (coding in (1, 9))
    if known and depth in (8, 15, 16, 24, 32) and (colours or not any(start[3:8])):
        return "image/x-tga" if any(start[12:14]) and any(start[14:16]) else ""
    return ""


def bmp_type(start: Start, found: str) -> str:
    known = unsigned(start, 14, 4, "little") in (12, 16, 40, 52, 56, 64, 108, 124)
    return found if known else ""


def icon_type(start: Start, found: str) -> str:
    """An icon or a cursor, if the first of its pictures lies behind its directory."""
    count, at = unsigned(start, 4, 2, "little"), unsigned(start, 18, 4, "little")
    return found if 0 < count < 1_000 and not unsigned(start, 9, 1) and at >= 6 + 16 * count else ""


def brand_type(start: Start, found: str) -> str:
    """By the major brand; a picture's compatible brands say more than a general brand."""
    at = 20 if start.startswith(b"jP  ", 4) else 8
    kind = named("brand", start[at : at + 4], found)
    if kind.startswith("image/heif"):
        others = start[16 : min(unsigned(start, 0, 4), 200)]
        brands = [named("brand", others[x : x + 4]) for x in range(0, len(others), 4)]
        kind = next((x for x in brands if x.startswith(("image/avif", "image/heic"))), kind)
    return kind


def ebml_type(start: Start, found: str) -> str:
    name = start.find(b"\x42\x82", 0, 128) + 3  # the element DocType, and its size in a byte
    return "video/webm" if start.startswith(b"webm", name) else found


def ogg_type(start: Start, found: str) -> str:
    """By the first packets of the streams that begin: a film may have sound as well."""
    kinds, at = [found], 0
    while start.startswith(b"OggS", at) and unsigned(start, at + 5, 1) & 2:
        body = at + 27 + unsigned(start, at + 26, 1)
        kinds.append(named("codec", start[body : body + 20]))
        at = body + sum(start[at + 27 : body])
    return max(kinds, key=lambda kind: 2 * ("video" in kind) + ("audio" in kind))


def asf_type(start: Start, found: str) -> str:
    """By the class of its streams: Advanced Systems Format, 3.3."""
    stream = b"\x4d\x5b\xcf\x11\xa8\xfd\0\x80\x5f\x5c\x44\x2b"
    kinds = {b"\xc0\xef\x19\xbc": "video/x-ms-wmv", b"\x40\x9e\x69\xf8": "audio/x-ms-wma"}
    return next((kinds[x] for x in kinds if start.find(x + stream) > 0), found)


def tagged_type(start: Start, found: str) -> str:
    """What follows an ID3 tag, whose length has seven bits a byte."""
    at = 10 + sum(byte << 7 * n for n, byte in enumerate(reversed(start[6:10])))
    body = start[at : at + 8_000]
    return "audio/flac" if body.startswith(b"fLaC") else frames_type(body) or found


def ac3_type(start: Start, found: str) -> str:
    version = unsigned(start, 5, 1) >> 3
    return ("audio/eac3" if version > 10 else found) if version <= 16 else ""


def program_type(start: Start, found: str) -> str:
    """A program of DOS or Windows, by the header that its first one points to."""
    if start.startswith((b"PE", b"NE", b"LE", b"LX"), unsigned(start, 60, 4, "little")):
        return found
    return "application/x-dosexec" if is_binary(start) else ""


def class_type(start: Start, found: str) -> str:
    """Of Java, or programs of macOS for several processors: both begin alike."""
    return found if unsigned(start, 4, 4) >= 43 else "application/x-mach-binary"


def eot_type(start: Start, found: str) -> str:
    return found if start.startswith(b"LP", 34) else ""


def ole_type(start: Start, found: str) -> str:
    """What an OLE2 file is by the class of its root, or the names below it ([MS-CFB] 2.6)."""
    directory, kinds = ole_directory(start), signatures()[1]["office"]
    if kind := kinds.get(directory[80:96]):
        return kind
    waiting, seen = [unsigned(directory, 76, 4, "little")], {0}
    while waiting:
        entry = waiting.pop()
        if entry not in seen and 128 * entry < len(directory):
            seen.add(entry)
            item = directory[128 * entry : 128 * entry + 128]
            if kind := kinds.get(item[:64:2].rstrip(b"\0").lower()):
                return kind
            waiting += [unsigned(item, 68, 4, "little"), unsigned(item, 72, 4, "little")]
    return found


def ole_directory(start: Start) -> bytes:
    """The first sectors of its directory, which the allocation table chains ([MS-CFB] 2.2, 2.3)."""
    size = 1 << min(unsigned(start, 30, 2, "little"), 12)
    table = size * (unsigned(start, 76, 4, "little") + 1)  # its first sector
    sectors = [unsigned(start, 48, 4, "little")]
    while len(sectors) < 32 and (after := unsigned(start, table + 4 * sectors[-1], 4, "little")):
        sectors.append(after)
    directory = b"".join(start[size * (x + 1) : size * (x + 2)] for x in sectors)
    return directory or start.more(size * (sectors[0] + 1))[:16_384]


def zip_type(start: Start, found: str) -> str:
    """What a ZIP archive is by the paths of its first files."""
    if start.startswith(b"mimetype", 30):  # OpenDocument and EPUB: the first file, as it is
        body = 38 + unsigned(start, 28, 2, "little")
        declared = start[body : body + min(unsigned(start, 22, 4, "little"), 100)].strip()
        # Nothing else is believed: whoever uploads an archive writes what it says of itself.
        if re.fullmatch(rb"application/(epub\+zip|vnd\.oasis\.opendocument\.[a-z-]+)", declared):
            return declared.decode()
    paths = zip_paths(start)
    kinds = {named("path", path) for path in paths}
    office = any(
        path.startswith((b"[Content_Types].xml", b"_rels/", b"docProps/")) for path in paths
    )
    for kind in signatures()[1]["path"].values():
        if kind in kinds and (office or kind in PROGRAMS):
            return kind
    return found


def zip_paths(start: bytes) -> list[bytes]:
    """The paths of the files whose headers lie in the first bytes of a ZIP archive."""
    paths, position = [], start.find(b"PK\3\4", 0, 12)
    while position >= 0 and start.startswith(b"PK\3\4", position):
        body = position + 30 + unsigned(start, position + 26, 2, "little")
        paths.append(start[position + 30 : body])
        body += unsigned(start, position + 28, 2, "little")
        size = unsigned(start, position + 18, 4, "little")
        # The size may be zero here, and stand behind the content instead.
        position = start.find(b"PK\3\4", body + size)
    return paths


#: What a signature alone does not tell: content type -> what it is; "" if it is not even that.
REFINED: dict[str, Callable[[Start, str], str]] = {
    "image/bmp": bmp_type,
    "image/vnd.microsoft.icon": icon_type,
    "image/jp2": brand_type,
    "video/mp4": brand_type,
    "video/matroska": ebml_type,
    "application/ogg": ogg_type,
    "video/x-ms-asf": asf_type,
    "audio/mpeg": tagged_type,
    "audio/ac3": ac3_type,
    "application/vnd.microsoft.portable-executable": program_type,
    "application/java-vm": class_type,
    "application/vnd.ms-fontobject": eot_type,
    "application/x-ole-storage": ole_type,
    "application/zip": zip_type,
}


def text_type(start: Start) -> str:
    """What kind of text it is, or that it is none."""
    text, whole, places = decoded(start, start.whole), start.whole, signatures()[1]
    if text is None:
        return "application/octet-stream"
    body = text.lstrip()
    return (
        named("text", body[:64].lower().encode())
        or markup_type(body)
        or script_type(text)
        or json_type(body, whole)
        or mail_type(text)
        or places["name"].get(start.extension.encode())
        or ("text/csv" if is_table(text, whole) else "text/plain")
    )


def decoded(start: bytes, whole: bool) -> str | None:
    """The text of a file, None if it is none; one that is not Unicode is read byte by byte."""
    mark = next(filter(start.startswith, BYTE_ORDER_MARKS), None)
    if not mark and is_binary(start):
        return None
    try:
        encoding = BYTE_ORDER_MARKS[mark] if mark else "utf-8"
        text = codecs.getincrementaldecoder(encoding)().decode(start, whole)
    except UnicodeDecodeError:
        return None if mark else start.decode("latin-1")
    return None if "\0" in text else text


def markup_type(body: str) -> str:
    """What HTML or XML is by its outermost element; the prolog makes the difference."""
    if not body.startswith("<"):
        return ""
    found, places, is_xml = PROLOG.match(body), signatures()[1], body.startswith("<?xml")
    doctype, root, attributes = ((x or "").lower() for x in (found.groups() if found else [""] * 3))
    namespace = "xmlns" in attributes and root != "html"
    if not (is_xml or namespace) and (doctype == "html" or root.encode() in places["tag"]):
        return "text/html"
    if kind := places["root"].get(root.encode()):
        return kind
    closed = body[-500:].rstrip().lower().endswith((f"</{root}>", "/>")) and root
    return "application/xml" if is_xml or namespace or doctype or closed else ""


def script_type(text: str) -> str:
    """The language of a text that names its program in the first line."""
    words = text[2:200].partition("\n")[0].split() if text.startswith("#!") else []
    programs = [word.rpartition("/")[2].rstrip(".0123456789") for word in words]
    program = next((x for x in programs if x != "env" and not x.startswith("-")), "")
    return signatures()[1]["#!"].get(program.encode(), "")


def json_type(body: str, whole: bool) -> str:
    """Whether it is JSON, or JSON lines, as far as its first 4 KiB show."""
    if not body.startswith(("{", "[")):
        return ""
    kind, line = "application/json", re.search(r"[}\]]\r?\n[{\[]", body)
    if line:
        kind, body, whole = "application/x-ndjson", body[: line.start() + 1], True
    part = body[:4_096]
    try:
        end = json.JSONDecoder().raw_decode(part)[1]
    except json.JSONDecodeError as error:
        cut = len(part) < len(body) or not whole
        at_end = error.pos > len(part) - 8 or error.msg.startswith("Unterminated string")
        return kind if cut and at_end and len(part) > 8 else ""
    except (ValueError, RecursionError):
        return ""
    return "" if part[end:].strip() else kind


def mail_type(text: str) -> str:
    """A message, or a mailbox of them, by the names in its header (RFC 5322, RFC 4155)."""
    lines = text[:8_192].splitlines()
    is_mailbox = text.startswith("From ")
    names = set()
    for line in lines[is_mailbox:-1]:
        if not line:
            break
        if not line.startswith((" ", "\t")):
            name, colon, _ = line.partition(":")
            if not colon or " " in name:
                return ""
            names.add(name.lower())
    if len(names & MAIL_ONLY) + len(names & MAIL_FIELDS) < (
        1 if is_mailbox else 2 if names & MAIL_ONLY else 3
    ):
        return ""
    return "application/mbox" if is_mailbox else "message/rfc822"


def is_table(text: str, whole: bool) -> bool:
    """Whether a reader of CSV finds the same number of columns in each of the first lines."""
    import csv

    lines = text[:16_384].splitlines(keepends=True)
    cut = not whole or len(text) > 16_384 or len(lines) > 50
    for delimiter in ",;\t|":
        if lines and delimiter in lines[0]:
            try:
                rows = [row for row in csv.reader(lines[:50], delimiter=delimiter) if row]
            except csv.Error:
                continue
            if is_regular(rows[:-1] if cut else rows):
                return True
    return False


def is_regular(rows: list[list[str]]) -> bool:
    """Whether rows are a table, not prose, a program or a log with fractions of seconds."""
    if len(rows) < 2 or len({len(row) for row in rows}) > 1 or len(rows[0]) < 2:
        return False
    ends = {row[-1].strip() for row in rows}
    spaced = all(field[:1] in (" ", "") for row in rows for field in row[1:])
    times = all(re.search(r":\d\d$", row[0]) and row[1][:3].isdigit() for row in rows)
    code = any(row[0].lstrip()[:1] in ("(", "{", "[", "#", "/") for row in rows)
    return ends != {""} and not (spaced or times or code)


Size = tuple[int, int]


def dimensions(content_type: str, start: Start) -> Size:
    """Width and height of a picture in pixels, as people see it; zeros if its header has none."""
    return SIZED[content_type](start) if content_type in SIZED else (0, 0)


def upright(width: int, height: int, orientation: int) -> Size:
    """A size after the turn that a camera noted: EXIF, 4.6.5.1."""
    return (height, width) if 5 <= orientation <= 8 else (width, height)


def png_size(start: Start) -> Size:
    exif = chunk(start, b"eXIf", 8, "big")
    return upright(unsigned(start, 16, 4), unsigned(start, 20, 4), exif_orientation(exif))


def chunk(start: bytes, wanted: bytes, position: int, order: Any) -> bytes:
    """A part of a PNG (`big`, with a checksum) or a RIFF file (`little`, of even length)."""
    while position + 8 <= len(start):
        at = position + 4 * (order == "big")
        size = unsigned(start, position + 4 - 4 * (order == "big"), 4, order)
        if start.startswith(wanted, at):
            return start[position + 8 : position + 8 + size]
        position += 8 + size + (4 if order == "big" else size % 2)
    return b""


def bmp_size(start: Start) -> Size:
    """Of a BMP; a negative height means rows from top to bottom."""
    if unsigned(start, 14, 4, "little") == 12:
        return unsigned(start, 18, 2, "little"), unsigned(start, 20, 2, "little")
    height = unsigned(start, 22, 4, "little")
    return unsigned(start, 18, 4, "little"), min(height, 2**32 - height)


def icon_size(start: Start) -> Size:
    """Of the largest picture of an icon; zero stands for 256."""
    found = range(6, min(6 + 16 * unsigned(start, 4, 2, "little"), len(start) - 15), 16)
    return max(((start[x] or 256, start[x + 1] or 256) for x in found), default=(0, 0))


def webp_size(start: Start) -> Size:
    """Of a WebP: lossy, lossless or extended (RFC 9649)."""
    if start[12:16] == b"VP8 ":
        return unsigned(start, 26, 2, "little") & 0x3FFF, unsigned(start, 28, 2, "little") & 0x3FFF
    if start[12:16] == b"VP8L":
        bits = unsigned(start, 21, 4, "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    size = unsigned(start, 24, 3, "little") + 1, unsigned(start, 27, 3, "little") + 1
    exif = chunk(start, b"EXIF", 12, "little") if unsigned(start, 20, 1) & 8 else b""
    return upright(*size, exif_orientation(exif))


def jpeg_size(start: Start) -> Size:
    """Of a JPEG: in its frame header, behind any number of other segments (ITU-T T.81, B.2)."""
    base, position, orientation, more = 0, 2, 0, start.more
    while True:
        if position + 9 > len(start):
            start, base, position = Start(more(base + position)), base + position, 0
        marker = unsigned(start, position + 1, 1)
        if start[position : position + 1] != b"\xff":
            return 0, 0
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers that stand alone
            position += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = unsigned(start, position + 5, 2), unsigned(start, position + 7, 2)
            return upright(width, height, orientation)
        else:
            end = position + 2 + unsigned(start, position + 2, 2)
            if marker == 0xE1:
                orientation = orientation or exif_orientation(start[position + 4 : end])
            position = end


def exif_orientation(exif: bytes) -> int:
    return tiff_tags(Start(exif.removeprefix(b"Exif\0\0"))).get(274, 0)


def tiff_size(start: Start) -> Size:
    tags = tiff_tags(start)
    return upright(tags.get(256, 0), tags.get(257, 0), tags.get(274, 0))


def tiff_tags(start: Start) -> dict[int, int]:
    """The tags of the first directory of a TIFF or BigTIFF that are one number."""
    order: Any = "little" if start.startswith(b"II") else "big"
    head, count, step, at = (8, 8, 20, 12) if start[2:4] in (b"+\0", b"\0+") else (4, 2, 12, 8)
    position = unsigned(start, head, count if count == 8 else 4, order)
    if position + count + 512 > len(start) and (rest := start.more(position)):
        start, position = Start(rest), 0
    number = min(unsigned(start, position, count, order), len(start) // step, 512)
    found, sizes = {}, {1: 1, 3: 2, 4: 4, 16: 8}  # byte, short, long and, in a BigTIFF, long of 8
    for entry in range(position + count, position + count + step * number, step):
        size = sizes.get(unsigned(start, entry + 2, 2, order), 0)
        found[unsigned(start, entry, 2, order)] = unsigned(start, entry + at, size, order)
    return found


def boxes(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end of the boxes of an ISO base media file (ISO/IEC 14496-12, 4.2)."""
    while position + 8 <= min(end, len(data)):
        size, head = unsigned(data, position, 4), 8
        if size == 1:
            size, head = unsigned(data, position + 8, 8), 16
        size = size or end - position
        if size < head:
            return
        yield data[position + 4 : position + 8], position + head, min(position + size, end)
        position += size


def box(data: bytes, path: str, begin: int = 0) -> tuple[int, int]:
    """Begin and end of a box within others, as `meta/iprp/ipco`; zeros if there is none."""
    end = len(data)
    for name in path.split("/"):
        inner = (each[1:] for each in boxes(data, begin, end) if each[0] == name.encode())
        begin, end = next(inner, (0, 0))
        begin += 4 * (name == "meta" and end > 0)
    return begin, end


def heif_size(start: Start) -> Size:
    """Of the primary item of a HEIF, cropped and turned as it is shown (ISO/IEC 23008-12, 6.5)."""
    if not box(start, "meta")[1]:  # behind the pictures
        start = Start(start.more(max((end for _, _, end in boxes(start, 0, 2**63)), default=0)))
    primary, _ = box(start, "meta/pitm")
    wanted = unsigned(start, primary + 4, 4 if unsigned(start, primary, 1) else 2)
    properties = list(boxes(start, *box(start, "meta/iprp/ipco")))
    at, end = box(start, "meta/iprp/ipma")
    id_bytes, bytes_each = 4 if unsigned(start, at, 1) else 2, 1 + (unsigned(start, at + 3, 1) & 1)
    found: dict[bytes, int] = {}
    at += 8
    while at < end:
        item, count = unsigned(start, at, id_bytes), unsigned(start, at + id_bytes, 1)
        at += id_bytes + 1
        for each in range(at, at + count * bytes_each, bytes_each) if item == wanted else ():
            number = unsigned(start, each, bytes_each) & (0x7FFF if bytes_each == 2 else 0x7F)
            if 0 < number <= len(properties):
                found[properties[number - 1][0]] = properties[number - 1][1]
        at += count * bytes_each
    extent = found.get(b"ispe", len(start))
    width, height = unsigned(start, extent + 4, 4), unsigned(start, extent + 8, 4)
    if clean := found.get(b"clap"):
        width = unsigned(start, clean, 4) // (unsigned(start, clean + 4, 4) or 1)
        height = unsigned(start, clean + 8, 4) // (unsigned(start, clean + 12, 4) or 1)
    turned = unsigned(start, found.get(b"irot", len(start)), 1) & 1
    return (height, width) if turned else (width, height)


def jp2_size(start: Start) -> Size:
    """Of a JPEG 2000 file or codestream."""
    if start.startswith(b"\xff\x4f"):
        right, bottom, left, top = (unsigned(start, 8 + 4 * n, 4) for n in range(4))
        return max(right - left, 0), max(bottom - top, 0)
    header, _ = box(start, "jp2h/ihdr")
    return unsigned(start, header + 4, 4), unsigned(start, header, 4)


def svg_size(start: Start) -> Size:
    """Of an SVG: width and height in pixels, or those of its view box."""
    found = PROLOG.match((decoded(start, False) or "").lstrip())
    values = dict(SVG_SIDES.findall(found["attributes"] or "" if found else ""))
    box = values.get("viewBox", "").replace(",", " ").split()[2:4]
    for sides in ([values.get("width", ""), values.get("height", "")], box):
        numbers = [re.fullmatch(r"\s*+(\d{1,9}(?:\.\d*+)?+)(?:px)?+\s*+", x) for x in sides]
        if len(numbers) == 2 and numbers[0] and numbers[1]:
            return round(float(numbers[0][1])), round(float(numbers[1][1]))
    return 0, 0


SIZED: dict[str, Callable[[Start], Size]] = {
    "image/png": png_size,
    "image/gif": lambda start: (unsigned(start, 6, 2, "little"), unsigned(start, 8, 2, "little")),
    "image/vnd.adobe.photoshop": lambda start: (unsigned(start, 18, 4), unsigned(start, 14, 4)),
    "image/bmp": bmp_size,
    "image/vnd.microsoft.icon": icon_size,
    "image/webp": webp_size,
    "image/jpeg": jpeg_size,
    "image/tiff": tiff_size,
    "image/avif": heif_size,
    "image/heic": heif_size,
    "image/heif": heif_size,
    "image/heic-sequence": heif_size,
    "image/jp2": jp2_size,
    "image/jpx": jp2_size,
    "image/j2c": jp2_size,
    "image/svg+xml": svg_size,
}


def unsigned(data: bytes, position: int, size: int, order: Any = "big") -> int:
    """An unsigned number in a header; 0 beyond its end."""
    part = data[position : position + size]
    return int.from_bytes(part, order) if len(part) == size else 0
