"""Turn the labelled photos that people have into a dataset with train, validation and test.

    python prep.py --image_path images --label_path labels.csv --dst_path dataset
    python prep.py --image_path photos.zip --dst_path dataset --test_size 500 --validation_size 500 --image_size 320
    python prep.py --image_path train --label_path breeds.csv --image_column id --label_column breed --dst_path dataset
    python prep.py --image_path owner/name@main --dst_path dataset --min_photos 20 --dry_run

Photos that cannot be used are left out and listed with row and reason in `dropped.csv` inside the dataset folder;
`README.md` there is the dataset card, `report.json` holds its numbers. In a notebook:

    from prep import prepare
    dataset = prepare(image_path="images", label_path="labels.csv", dst_path="dataset")
"""

import argparse
import csv
import gzip
import html
import inspect
import io
import json
import math
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import stat
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Annotated, NamedTuple, get_args
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import xxhash
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm.auto import tqdm

# Usual names of columns, the likelier first, in one case and without spaces.
IMAGE_COLUMNS = """imagename filename file image imagepath filepath path img imageid imagefile photo picture files images
imgpath filepaths relpath uri url imageurl jpg png fichier archivo imagen bild datei dateiname 文件名 图片 画像 файл name id"""
LABEL_COLUMNS = """label class breed category labels classname labelname categoryname finelabel species target diagnosis dx tag
choice choices classes classlabel groundtruth coarselabel annotation y etiqueta clase classe klasse categoria 标签 类别 метка"""
SPLIT_WORDS = {
    "train": "train|training|trn|entrenamiento|训练",
    "validation": "val|valid|validate|validation|dev|devel|eval|evaluation|验证",
    "test": "test|testing|tst|holdout|prueba|测试",
}
SPLITS = tuple(SPLIT_WORDS)
GROUP_WORDS = "patient|subject|camera|site|location|lesion|animal|person|session|sequence|burst|group"
EMPTY_LABELS = ("NaN", "nan", "<NA>", "null", "None")  # what programs write where there is none
ONES, ZEROS = ("1", "1.0", "true", "yes", "x"), ("0", "0.0", "false", "no", "")
# Pillow opens dozens of formats, some with decoders that nobody watches; photos come in these (JPEG includes MPO).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")  # HEIF is what iPhones write as .heic
IMAGE_ENDINGS = "jpg jpeg jpe jfif mpo png webp gif bmp tif tiff avif heic heif"
LIST_ENDINGS = "csv tsv txt json jsonl xlsx parquet"
ARCHIVE_ENDINGS = "zip tar tgz tbz2 txz tar.gz tar.bz2 tar.xz"
IMAGE_NAME, LIST_NAME, ARCHIVE_NAME = (
    re.compile(rf"\.(?:{'|'.join(map(re.escape, endings.split()))})$", re.IGNORECASE)
    for endings in (IMAGE_ENDINGS, LIST_ENDINGS, ARCHIVE_ENDINGS)
)
HIDDEN = re.compile(r"(^|[\\/])(\.[^\\/]|__MACOSX[\\/]|(Thumbs\.db|desktop\.ini)$)")
LEADS_OUT = re.compile(r"^([\\/]|[A-Za-z]:)|(^|[\\/])\.\.([\\/]|$)")
MAX_UNPACKED_FILES, MAX_UNPACKED_BYTES = 5_000_000, 300_000_000_000  # of an archive and those inside it
MAX_PIXELS = 89_000_000  # above it a small file can fill the memory; Pillow's own warning starts just above
# Of the 256 bits of a difference hash. Measured on 400 photos of 180 x 180 pixels and their copies: at 120 x 120 half differ
# in 2 bits, all in 8 or fewer; at JPEG quality 50 99 % in 15 or fewer. Of 2 million other pairs none differs in 30 or fewer.
NEAR_BITS = 15
NEIGHBOURS = 64  # photos that a photo is compared with for each 16 bits that they have in common
DARK, LIGHT, BLUR, TINY = 40, 215, 20, 32  # grey levels; see `oddity`; pixels
UNLIKELY = 0.4  # a label this much less likely than another one is suspicious
SHARD_BYTES = 500_000_000  # of a file of the dataset
SHEET_ROWS, SHEET_COLUMNS = 20, 4  # of a contact sheet
# Letters as Western European languages use them, so that Czech, Turkish, Russian or Chinese text is not taken for theirs:
# read as Windows-1252 its bytes give letters beside each other that these do not write.
WESTERN = r"(?<=[a-z])[áéíóúäöüëîôâçåß](?![à-ÿœ])|[áéíóúäöüëîôâçåß](?=[a-z])|(?<=[a-z])[éëïâçãõ](?=[éeaâãõo])|ç(?=[ãõ])"
WESTERN += (
    r"|ñ(?=[aeiouáéíóú])|(?<=[a-zç])[ãàùòì](?!\w)|ã(?=[oes])|(?<=[a-z])[èê](?=[bcdfghlmnprstvx]|qu|\b)|œ(?=[uidstn])"
)
WESTERN += r"|û(?=\w)|(?<=[aeiou])ï(?=\w)|’(?=\w)|[–€°«»“”](?!\w)|(?<![aeiouyáéíóú])[æø](?![aeiouyáéíóú])"

CARD = """# {name}

{photos} photos in {classes} classes, made by `prep.py`:

```bash
{command}
```

{table}

![Photos by class and split](class_balance.png)

{legend}{given}The split is stratified by class and random, with seed {seed}.

## What was left out

{left_out}

{said}

Every row that was left out is in `dropped.csv` with its reason. {unnamed_files} file(s) of the folder were named by no row.
Photos stand upright: the turn that a camera notes in the EXIF data has been made.
"""


class Files(NamedTuple):
    """The files below a folder."""

    folder: Path
    names: list[str]  # with / between
    index: dict[str, list[int]]  # their places by what a list may call them: `tails`
    odd: dict[str, str]  # why some of them may not be read


class Photo(NamedTuple):
    """What checking a photo found: the reason why it cannot be used, or else what its pixels are."""

    reason: str = ""
    stored: str = ""  # the file that goes into the dataset: itself, or a copy that is upright, smaller or of 8 bits
    pixels: bytes = b""  # equal for equal pixels
    look: bytes = b""  # its difference hash: 256 bits, most of which equal those of a photo that looks the same
    odd: str = ""  # what is odd about it, such as "Blurred"
    degree: float = 0  # the smaller, the odder
    deep: bool = False  # whether its grey had more than 8 bits


@cache
def split_of(name: str) -> str:
    """Return the split that a folder, a sheet or a value is called after, "" if none: valid_set -> validation."""
    for split, words in SPLIT_WORDS.items():
        end = r"[-_ ]?(set|data|images?|imgs?|photos?|集)?(?![^\W\d_])"
        if re.search(rf"(?<![^\W\d_])({words}){end}", name.casefold()):
            return split
    return ""


def unpack(archive: Path, folder: Path, encoding: str | None, room: list[int]) -> None:
    """Unpack an archive and those inside it into `room` for files and bytes; ValueError if it is not to be trusted."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:  # names without the mark of UTF-8 have an encoding of some machine
                names = [one.filename.encode("cp437") for one in packed.infolist() if not one.flag_bits & 0x800]
            packed = zipfile.ZipFile(archive, metadata_encoding=decode(b"\n".join(names), encoding)[1])
            extract = packed.extractall
            found = ((m, m.filename, m.file_size, stat.S_ISLNK(m.external_attr >> 16)) for m in packed.infolist())
        else:
            packed = tarfile.open(archive)  # noqa: SIM115 - closed below, as the other
            extract = partial(packed.extractall, filter="data")
            found = ((m, m.name, m.size, not (m.isreg() or m.isdir())) for m in packed)
        with packed:
            members = []
            for member, name, size, link in found:
                room[:] = room[0] - 1, room[1] - size
                if min(room) < 0:
                    raise ValueError(f"it holds more than {MAX_UNPACKED_FILES} files, or more than there is room for")
                if link or LEADS_OUT.search(name):
                    raise ValueError(f"{name!r} in it is a link or leads out of the folder")
                if not HIDDEN.search(name):
                    members.append(member)
            extract(folder, members)
    except Exception as error:
        raise ValueError(f"--image_path {archive.name} is refused: {first_line(error)}.") from error
    for inner in sorted(file for file in folder.rglob("*") if ARCHIVE_NAME.search(file.name) and file.is_file()):
        unpack(inner, inner.with_name(ARCHIVE_NAME.sub("", inner.name)), encoding, room)
        inner.unlink()


def list_files(folder: Path, within: Path) -> Files:
    """Return the files below a folder, without hidden ones; a link is followed only to a file that lies `within` another."""
    files = Files(folder, [], {}, {})
    for root, folders, found in os.walk(folder):
        start = root[len(str(folder)) + 1 :].replace(os.sep, "/")
        start += "/" if start else ""
        folders[:] = sorted(name for name in folders if not HIDDEN.search(name + "/"))
        for name in sorted(start + name for name in found if not HIDDEN.search(name)):
            path = os.path.join(folder, name)  # noqa: PTH118 - of a million
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                real = Path(os.path.realpath(path))
                if not real.is_relative_to(within):
                    files.odd[name] = "outside the folder: the link leads out of the image folder"
                elif not real.is_file():
                    files.odd[name] = "missing file: the link leads to no file"
            elif not stat.S_ISREG(mode):  # opening a pipe would wait for ever
                files.odd[name] = "not a file: it is a pipe or device"
            ends = tails(name)
            for end in {ends[0], *ends[-2:]}:
                files.index.setdefault(end, []).append(len(files.names))
            files.names.append(name)
    return files


def plain(name: str) -> str:
    """Return a name as it is compared: composed letters, one case, / for \\."""
    return (name if name.isascii() else unicodedata.normalize("NFC", name)).replace("\\", "/").casefold()


def stem(name: str) -> str:
    """Return a plain name without its extension, which begins with a letter."""
    start, dot, end = name.rpartition(".")
    return start if dot and len(end) < 6 and end[:1].isalpha() and end.isalnum() else name


def tails(name: str) -> list[str]:
    """Return the ends of a path without its extension, the longest first: a/b/7, b/7, 7, also for a name with 007 or 7.0."""
    parts = [part for part in plain(name).split("/") if part not in ("", ".")] or [""]
    parts[-1] = stem(parts[-1])
    if "0" in parts[-1]:
        parts[-1] = re.sub(r"0*(\d+)", r"\1", re.sub(r"(^|[^\d.])(\d+)\.0+$", r"\1\2", parts[-1]))
    return ["/".join(parts[start:]) for start in range(len(parts))]


def find(written: str, files: Files) -> list[int]:
    """Return the places of the files that a name may mean: one if it is clear, several if they fit alike, or none.

    In this order: as written, in one Unicode form and case, its longest tail that is a file, its last part, that without
    the extension, its number. Where a file in the same folder and one of the same name contradict, both may be meant.
    """
    name = re.sub(r".*[?&]d=", "", written)  # as Label Studio writes local files
    name = urlsplit(name).path if "://" in name else name
    for spelling in dict.fromkeys((name, unquote(name))) if written else ():
        ends = tails(spelling)
        for place in files.index.get(ends[0], ()):
            if files.names[place] == spelling:
                return [place]
        *folders, base = plain(spelling).split("/")
        fits = {}
        for end in (*ends, *tails(spelling + ".x")):  # of "scan.v1" the end may be no extension
            for place in files.index.get(end, ())[:50]:
                *there, last = plain(files.names[place]).split("/")
                same = 2 if last == base else int(stem(last) in (base, stem(base)))
                common = len(os.path.commonprefix([there[::-1], folders[::-1]]))
                fits[place] = (same, common == len(there), common)
        if fits:
            best = max(fits.values()), max(fits.values(), key=lambda fit: fit[1:] + fit[:1])
            return [place for place in sorted(fits) if fits[place] in best]
    return []


def locate(table: pd.DataFrame, files: Files) -> None:
    """Add to each row of the table the place of its file, -1 if none, and the reason why it has none that may be read."""

    def reason(name: str, places: list[int]) -> str:
        if not name:
            return "empty name"
        if len(places) > 1:
            return f"ambiguous name: could be {' or '.join(files.names[place] for place in places[:3])}"
        if places:
            return files.odd.get(files.names[places[0]], "")
        if "://" in name:
            return "URL: only files of the folder are read; download it first"
        if LEADS_OUT.search(name):
            return "outside the folder: the name leads out of the image folder"
        return "missing file"

    found = [find(name, files) for name in table["name"]]
    table["place"] = [places[0] if len(places) == 1 else -1 for places in found]
    rows = zip(table["name"], table["label"], table["reason"], found, strict=True)
    table["reason"] = [
        known or (reason(name, places) if label else "empty label") for name, label, known, places in rows
    ]
    # Where two names mean one file, one that only resembles it means another, which is not there.
    held = table[(table["place"] >= 0) & (table["reason"] == "")]
    held = held[held.groupby("place")["name"].transform("nunique") > 1]
    for at, place, name in zip(held.index, held["place"], held["name"], strict=True):
        if plain(files.names[place]) != plain(name):
            table.at[at, "reason"] = f"ambiguous name: another row names {files.names[place]} too"


def decode(content: bytes, encoding: str | None) -> tuple[str, str]:
    """Return the text of bytes and its encoding: the given one, UTF-8, UTF-16, or Windows-1252 if that is sensible.

    Raises ValueError if it is none of these; it proposes --encoding, and says how the text reads in some.
    """
    odd, even = (content[start:4000:2].count(0) for start in (1, 0))
    if not encoding and (content[:2] in (b"\xff\xfe", b"\xfe\xff") or 8 * max(odd, even) > len(content[:4000])):
        encoding = "utf-16" if content[0] > 0xFD else "utf-16-le" if odd > even else "utf-16-be"
    try:
        if encoding:
            return content.decode(encoding), encoding
    except (UnicodeError, LookupError) as error:
        raise ValueError(f"it cannot be read as {encoding} ({error}). Save it again, as UTF-8") from error
    with suppress(UnicodeError):
        return content.decode("utf-8-sig"), "utf-8"
    with suppress(UnicodeError):
        text = content.decode("cp1252")
        words = {word for word in text.split() if not word.isascii()}
        if all(re.sub(WESTERN, "", w.lower()).isascii() and not re.search("[a-zß-ÿ][À-Þ]", w) for w in words):
            return text, "cp1252"
    seen = []
    for one in ("gb18030", "big5", "shift_jis", "euc_kr", "cp1250", "cp1251", "cp1252", "cp1254"):
        with suppress(UnicodeError):
            word = next(word for word in re.split(r"[\s,;|]", content.decode(one)) if not word.isascii())
            seen.append(f"{one} ({word[:20]})")
    raise ValueError(f"it is not UTF-8. Give --encoding, as it reads right: {', '.join(seen)} or another one")


def flatten(value, name: str, row: dict[str, list[str]]) -> dict[str, list[str]]:
    """Add the single values inside dictionaries and lists to `row`, by their dotted names; return it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            flatten(inner, f"{name}.{key}".removeprefix("."), row)
    elif isinstance(value, list):
        for inner in value:
            flatten(inner, name, row)
    else:
        row.setdefault(name, []).append("" if value is None else str(value).strip())
    return row


def name_cells(record) -> dict:
    """Return a row of JSON as a dictionary; cells without names get them."""
    cells = record if isinstance(record, list) else [record]
    return record if isinstance(record, dict) else {f"column {at}": cell for at, cell in enumerate(cells, 1)}


def frame_of_records(records: list) -> pd.DataFrame:
    """Return a frame of text with a row for each record; several values of one name are joined by |."""
    rows = [flatten(name_cells(record), "", {}) for record in records]
    rows = [{name: "|".join(dict.fromkeys(filter(None, texts))) for name, texts in row.items()} for row in rows]
    return pd.DataFrame(rows, range(1, len(rows) + 1), dtype=str).fillna("")


def records_of(data) -> list:
    """Return the rows of JSON: a list of them, COCO, {name: label}, {name: {…}}, {label: [names]}, {split: any of these},
    pandas' {column: {row: value}}, {column: [values]} and {"columns": …, "data": …}, or one of them inside a dictionary.
    """
    if isinstance(data, list):
        return data
    if {"images", "annotations", "categories"} <= data.keys():
        names = {one["id"]: one["name"] for one in data["categories"]}
        labels: dict = {one["id"]: [] for one in data["images"]}
        for one in data["annotations"]:
            labels[one["image_id"]].append(names[one["category_id"]])
        return [{"file": one["file_name"], "label": labels[one["id"]]} for one in data["images"]]
    if {"columns", "data"} <= data.keys():
        return [dict(zip(data["columns"], row, strict=True)) for row in data["data"]]
    nested = {name: value for name, value in data.items() if isinstance(value, list | dict)}
    parts = {name: records_of(value) for name, value in nested.items() if split_of(name)}
    if len(parts) > 1:
        return [{"split": name} | name_cells(row) for name, rows in parts.items() for row in rows]
    largest = max(nested.values(), key=len, default=[])
    flat = not any(isinstance(one, list | dict) for one in (largest.values() if isinstance(largest, dict) else largest))
    kinds = {type(value) for value in data.values()}
    if flat and kinds == {dict} and len(largest) > len(data):
        return [{"index": row} | {name: data[name].get(row) for name in data} for row in largest]
    if flat and kinds == {list} and any(usual(name, IMAGE_COLUMNS) for name in data):
        return [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]
    if flat and kinds == {list} and not any(map(IMAGE_NAME.search, data)):
        return [{"file": name, "label": label} for label, names in data.items() for name in names]
    if len(largest) > len(data) or len(data) == 1 and nested:
        return records_of(largest)
    return [{"file": name} | (value if isinstance(value, dict) else {"label": value}) for name, value in data.items()]


def read_json(text: str) -> list:
    """Return the rows of JSON or JSON Lines; numbers stay as they are written."""
    read = json.JSONDecoder(parse_int=str, parse_float=str).decode
    try:
        return records_of(read(text))
    except json.JSONDecodeError as error:
        try:
            return [read(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError:
            raise ValueError(f"it is not JSON: {error}") from error


def read_cells(text: str, files: Files) -> list[tuple[int, list[str]]]:
    """Return (line, cells) of a text table, without blank lines and comments; ValueError if a quote is not closed."""
    lines = [(n, line) for n, line in enumerate(re.split("\r\n|\r|\n", text), 1) if line.strip()]
    given = re.match(r'\s*"?sep=(.)"?\s*$', lines[0][1]) if lines else None
    lines = lines[1:] if given else lines
    lines = [(n, s) for n, s in lines if s.lstrip()[0] != "#" or find(re.split(r"[\s,;|]", s.strip())[0], files)]

    def agreement(rows) -> float:
        widths = [len(row) for row in rows] or [0]
        return widths.count(widths[0]) / len(widths) if widths[0] > 1 else 0

    sample = [line for _, line in lines[:200]]
    fits = {one: agreement(csv.reader(sample, delimiter=one, skipinitialspace=True)) for one in ",;\t|"}
    separator = given[1] if given else max(fits, key=fits.get)
    spaced = [re.match(rf"(.*?{IMAGE_NAME.pattern[:-1]}|\S+)\s+(.+)|(.+)", line.strip(), re.I) for _, line in lines]
    words = [[m[1], *m[2].split()] if m[1] else [m[3]] for m in spaced]
    if not given and fits[separator] < max(agreement(words[:200]), 0.01):
        if len({len(row) for row in words}) > 1:  # a label holds spaces
            words = [[m[1], m[2]] if m[1] else [m[3]] for m in spaced]
        return [(n, row) for (n, _), row in zip(lines, words, strict=True)]
    rows, read = [], 0
    reader = csv.reader((line + "\n" for _, line in lines), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            rows.append((lines[read][0], row))
            read = reader.line_num
    except csv.Error as error:
        raise ValueError(f"in line {lines[read][0]} a quote does not end its cell ({error})") from error
    return rows


def frame_of_rows(rows: list[tuple[int, list]], files: Files) -> pd.DataFrame:
    """Return a frame of text of (line, cells); a first row that names a photo is no header. ValueError if cells are lost."""
    rows = [(line, [str(cell).strip() for cell in cells]) for line, cells in rows]
    rows = [(line, cells) for line, cells in rows if any(cells)]
    titles = rows[0][1] if rows else []
    width = len(titles)
    for line, cells in rows:
        if any(cells[width:]):
            said = f"line {line} has {len(cells)} cells, but the first one {width}: {', '.join(cells)[:100]!r}"
            raise ValueError(f'{said}; put "quotes" around a cell that holds the separator')
    frame = pd.DataFrame([cells[:width] for _, cells in rows], [line for line, _ in rows], range(width), str).fillna("")
    named = max(titles, key=lambda title: hits(frame[titles.index(title)].iloc[1:], files), default="")
    if any(map(IMAGE_NAME.search, titles)) or (not usual(named, IMAGE_COLUMNS) and find(named, files)):
        return frame.set_axis([f"column {at + 1}" for at in range(width)], axis=1)
    return frame.set_axis([f"{t} {at + 1}" if t in titles[:at] else t for at, t in enumerate(titles)], axis=1)[1:]


def frame_of_sheets(content: bytes, files: Files) -> pd.DataFrame:
    """Return a frame of text with the rows of all sheets of a workbook; a sheet called "Test" gives them that split."""
    sheets = pd.read_excel(io.BytesIO(content), sheet_name=None, header=None, dtype=str, keep_default_na=False)
    frames = []
    for name, sheet in sheets.items():
        frame = frame_of_rows([*enumerate(sheet.to_numpy().tolist(), 1)], files)
        frame.index = [f"{name} {row}" if len(sheets) > 1 else row for row in frame.index]
        frames.append(frame.assign(sheet=split_of(name)) if any(map(split_of, sheets)) else frame)
    return pd.concat(frames).fillna("")


def read_list(path: Path, encoding: str | None, files: Files) -> pd.DataFrame:
    """Return a list of labels as a frame of text, its index the lines; say so if it was read as Windows-1252.

    Raises ValueError if it is no list in a form that is known, or a row has more cells than the first one.
    """
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        if content[:4] == b"\xd0\xcf\x11\xe0" or 4 * content[:4000].count(0) > 3 * len(content[:4000]):
            raise ValueError("it is an old Excel workbook or another binary file; save it as .xlsx or as a CSV")
        if content[:4] == b"PAR1":
            frame = frame_of_records(pa.parquet.read_table(io.BytesIO(content)).to_pylist())
        elif content[:4] == b"PK\3\4":
            frame = frame_of_sheets(content, files)
        else:
            text, used = decode(content, encoding)
            if used == "cp1252":
                print("The list is not UTF-8; it was read as Windows-1252. --encoding says otherwise.")
            is_json = text.lstrip()[:1] in ("{", "[")
            frame = frame_of_records(read_json(text)) if is_json else frame_of_rows(read_cells(text, files), files)
        if frame.empty:
            raise ValueError("it has no rows")
    except Exception as error:
        known = "a CSV (also with ;, tabs, | or spaces), JSON, JSON Lines, an Excel workbook (.xlsx) or Parquet"
        said = f"--label_path {path} cannot be read: {first_line(error)}. It may be {known}"
        raise ValueError(f"{said}, with the name of a photo and its label in each row.") from error
    return frame


def hits(names: pd.Series, files: Files) -> int:
    """Return how many photos the first 500 of some names find."""
    return len({place for name in names[:500] for place in find(name, files)[:1]})


def usual(column: str, names: str) -> int:
    """Return how usual the name of a column is, 0 if it is none of the usual ones; case, spaces, accents do not count."""
    column = re.sub(r"[\W_]", "", unicodedata.normalize("NFKD", column.casefold().rsplit(".", 1)[-1]))
    return len(names) - names.split().index(column) if column in names.split() else 0


def are_numbers(cells: pd.Series) -> bool:
    """Return whether all cells of a column that are not empty are numbers."""
    return bool(cells.str.fullmatch(r"-?\d*[.,]?\d*(e[+-]?\d+)?").all())


def image_column_of(table: pd.DataFrame, files: Files) -> str:
    """Return the column whose cells name photos; one of numbers only if no other looks like names. ValueError if none does."""
    found = {column: hits(table[column], files) for column in table}
    like = {column: table[column].str.contains(IMAGE_NAME).mean() > 0.5 for column in table}
    known = {column: usual(column, IMAGE_COLUMNS) for column in table}
    words = [column for column in table if not are_numbers(table[column])]
    named = [c for c in words if found[c] or like[c] or (known[c] and table[c].is_unique)]
    if named:
        return max(named, key=lambda column: (like[column], found[column], known[column]))
    numbers = sorted((known[column], column) for column in table if found[column] or known[column])
    if not numbers or (len(numbers) > 1 and not numbers[-1][0]):
        raise ValueError(f"Which column names the photos? Give --image_column, one of: {', '.join(table)}.")
    return numbers[-1][1]


def splits_in(table: pd.DataFrame) -> tuple[str | None, dict[str, str]]:
    """Return the column that gives splits, and the split of each of its values; (None, {}) if none does."""
    for column in sorted(table, key=lambda column: not re.search("split|set|partition|usage|phase", column.casefold())):
        values = [value for value in table[column].unique() if value]
        splits = {value: split_of(value) for value in values[:20]}
        flag = re.match("is_?(train|valid|val|test)", column.casefold())
        if flag and {value.casefold() for value in values} <= {*ONES, *ZEROS}:
            yes, no = split_of(flag[1]), "test" if split_of(flag[1]) == "train" else "train"
            splits = {value: yes if value.casefold() in ONES else no for value in values}
        if len(values) < 20 and len(set(splits.values())) > 1 and all(splits.values()):
            return column, splits
    return None, {}


def label_column_of(table: pd.DataFrame, columns: list[str]) -> str:
    """Return which of the columns without another meaning holds the labels. ValueError with a proposal if it is not clear."""
    best = max(columns, key=lambda column: usual(column, LABEL_COLUMNS), default="")
    known = best if usual(best, LABEL_COLUMNS) else ""
    binary = [column for column in columns if set(table[column].str.casefold().unique()) <= {*ONES, *ZEROS}]
    one_hot = (table[binary].apply(lambda column: column.str.casefold().isin(ONES)).sum(axis=1) == 1).mean() > 0.5
    if len(binary) > 1 and one_hot and (not known or known in binary):
        raise ValueError(f"Each class has a column of 0 and 1. To join them, give --label_column {','.join(binary)}")
    numbering = {column for column in columns if are_numbers(table[column]) and table[column].is_unique}
    left = [c for c in columns if c not in numbering and not re.match("(unnamed|index$|$)", c.casefold())]
    if known or len(left) == 1:
        return known or left[0]
    raise ValueError(f"Which column holds the labels? Give --label_column, one of: {', '.join(table)}.")


def join_columns(table: pd.DataFrame) -> pd.Series:
    """Return the name of the one column that says 1 in each row. ValueError with the row in which none or several do."""
    cells = table.apply(lambda column: column.str.casefold())
    ones = cells.isin(ONES)
    wrong = ~(ones | cells.isin(ZEROS)).all(axis=1) | (ones.sum(axis=1) != 1)
    if wrong.any():
        said = ", ".join(f"{column} {cell!r}" for column, cell in table.loc[wrong.idxmax()].items())
        raise ValueError(f"Row {wrong.idxmax()} needs a 1 in exactly one column of --label_column, but has: {said}.")
    return ones.idxmax(axis=1)


def choose_columns(raw: pd.DataFrame, files: Files, columns: dict[str, str | None]) -> pd.DataFrame:
    """Return the rows of a list with the columns name, label, row, split, group and reason, and say what was guessed.

    Raises ValueError if a column is not there or cannot be told, or a value of the split column is no split.
    """
    image, label, given, group = (columns[f"{role}_column"] for role in ("image", "label", "split", "group"))
    several = [label] if label is None or label in raw else label.split(",")
    for flag, names in {"image": [image], "label": several, "split": [given], "group": [group]}.items():
        for name in names:
            if name not in (None, *raw, *["none"] * (flag == "split")):
                raise ValueError(f"--{flag}_column {name}: there is no such column; there are: {', '.join(raw)}.")
    image = image or image_column_of(raw.drop(columns=[name for name in several if name]), files)
    others = [name for name in raw if name not in (image, group, *several)]
    split, splits = splits_in(raw[[name for name in ([given] if given else others) if name in raw]])
    if given in raw and not splits:
        raise ValueError(f"--split_column {given} needs values such as train, validation and test.")
    others = [name for name in others if name != split and raw[name].str.contains(IMAGE_NAME).mean() < 0.5]
    label = label or label_column_of(raw, others)
    print(f"Photos are named by the column {image!r}, their labels are in {label!r}.")
    if splits:
        print(f"The splits are given by the column {split!r}; --split_column none cuts new ones.")
    for name in others:
        if not group and name != label and re.search(GROUP_WORDS, name.casefold()):
            print(f"To keep the photos of each {name!r} in one split, give --group_column {name}.")
    labels = join_columns(raw[several]) if len(several) > 1 else raw[label]
    labels = labels.map(lambda cell: "|".join(re.findall(r"[^][\"',\s][^][\"',]*", cell)) if cell[:1] == "[" else cell)
    empty = labels.isin(EMPTY_LABELS)
    rows = pd.DataFrame({"name": raw[image], "label": labels.mask(empty, ""), "row": raw.index.astype(str)})
    rows["split"] = raw[split].map(splits).fillna("train") if splits else ""
    rows["group"] = raw[group] if group else ""
    rows["reason"] = ("empty label: written as " + labels).where(empty, "")
    return rows[(rows["name"] != "") | (rows["label"] != "")].reset_index(drop=True)


def read_folders(names: list[str]) -> tuple[list[str], list[str]]:
    """Return the split and the class that the folders of each file stand for, "" where there is none.

    A folder that all photos lie in means nothing. Folders called after splits are splits if there are no others, or if the
    same class folders are in them; they may also lie inside the class folders.
    """
    parts = [name.split("/")[:-1] for name in names]
    photos = [place for place, name in enumerate(names) if IMAGE_NAME.search(name)] or range(len(names))
    splits = [""] * len(parts)
    while True:
        below: dict[str, set[str]] = {}
        for folder, *deeper in filter(None, (parts[place] for place in photos)):
            below.setdefault(folder, set()).update("a split" if split_of(name) else name for name in deeper[:1])
        known = {name for name in below if split_of(name)}
        if known and (known == below.keys() or len(known) > 1 and set.intersection(*(below[name] for name in known))):
            splits = [split_of(part[0]) if part else split for part, split in zip(parts, splits, strict=True)]
            parts = [part[1:] if part and part[0] in known else [] for part in parts]
        elif len(below) == 1 and any(below.values()):
            parts = [part[1:] for part in parts]
        else:
            break
    inner = [split_of(part[1]) if part[1:] else "" for part in parts]
    if not any(splits) and all(inner[place] for place in photos) and len(set(inner)) > 1:  # cat/train, cat/test …
        splits = inner
    return splits, [part[0] if part else "" for part in parts]


def rows_of_folders(files: Files) -> pd.DataFrame:
    """Return the rows that class folders stand for: every file, its class the label. ValueError if there are none."""
    labels = read_folders(files.names)[1]
    if not any(labels):
        folders = sorted({name.rpartition("/")[0] or "itself" for name in files.names})[:4]
        lists = " or ".join([name for name in files.names if LIST_NAME.search(name)][:3])
        raise ValueError(
            f"--image_path has no class folders: its {len(files.names)} files lie directly in {', '.join(folders)}. Put the"
            " photos of each class into a folder with its name, or give a list of the labels with --label_path"
            f"{', perhaps ' * bool(lists)}{lists}."
        )
    return pd.DataFrame({"name": files.names, "label": labels, "row": "", "split": "", "group": "", "reason": ""})


def download(source: str) -> Path:
    """Return the folder with the data files of a dataset on the Hub, `owner/name` or `owner/name@revision`; OSError if none."""
    from huggingface_hub import snapshot_download

    repo_id, _, revision = source.partition("@")
    endings = f"{IMAGE_ENDINGS} {LIST_ENDINGS} {ARCHIVE_ENDINGS} arrow gz md".split()
    wanted = [f"*.{ending}" for name in endings for ending in (name, name.upper())]
    options = {"repo_type": "dataset", "revision": revision or None, "allow_patterns": wanted}
    said = f"--image_path {source} is neither a folder or file, nor a dataset that the Hub hands out"
    return Path(
        ask_hub(lambda: snapshot_download(repo_id, **options), said, "Log in with `hf auth login` if it is private")
    )


def read_dataset(source: Path, folder: Path, columns: dict[str, str | None]) -> tuple[Files, pd.DataFrame]:
    """Write the photos of a `datasets` folder or a Parquet file into a folder for each split; return them and their rows.

    Raises ValueError if it cannot be read or has no photos.
    """
    import datasets

    try:
        if any((source / name).is_file() for name in ("dataset_dict.json", "state.json")):
            data = datasets.load_from_disk(str(source))
        else:
            kind = {"path": "parquet", "data_files": str(source)} if source.is_file() else {"path": str(source)}
            data = datasets.load_dataset(**kind, cache_dir=str(folder / ".cache"))
    except Exception as error:
        raise ValueError(f"--image_path {source} cannot be read as a dataset: {first_line(error)}.") from error
    data = data if isinstance(data, dict) else {"all": data}
    features = next(iter(data.values())).features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image) or "binary" in str(kind)]
    classes = {name: kind for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    image = columns["image_column"] or max(images, key=lambda name: usual(name, IMAGE_COLUMNS), default=None)
    if image not in images:
        raise ValueError(f"Which column holds the photos? Give --image_column, one of: {', '.join(features)}.")
    frames = []
    for split, part in data.items():
        if not split_of(split) and any(map(split_of, data)):
            print(f"The split {split!r} is none of train, validation and test: its {part.num_rows} rows are left out.")
            continue
        (folder / split).mkdir(parents=True)
        rows = []
        for number, row in enumerate(part.cast_column(image, datasets.Image(decode=False))):
            photo = row[image] or {}
            for name, kind in classes.items():
                row[name] = "" if row[name] in (None, -1) else kind.int2str(row[name])
            row = {name: value for name, value in row.items() if name not in images}
            row[image] = f"{split}/{number:07d}{Path(photo.get('path') or '').suffix}"
            (folder / row[image]).write_bytes(photo.get("bytes") or b"")  # a file that is only named is not read
            rows.append(row)
        frames.append(frame_of_records(rows).set_axis([f"{split} {number}" for number in range(len(rows))]))
    label = columns["label_column"] or (list(classes)[0] if len(classes) == 1 else None)
    files = list_files(folder, folder)
    raw = pd.concat(frames).fillna("")
    return files, choose_columns(raw, files, columns | {"image_column": image, "label_column": label})


def read_rows(
    image_path, label_path, scratch: Path, encoding: str | None, columns: dict[str, str | None]
) -> tuple[Files, pd.DataFrame]:
    """Return the files with photos and the rows of labels: name, label, row, split, group, reason.

    Raises OSError or ValueError if there are none, or it is not clear what means what.
    """
    path = Path(image_path).resolve() if Path(image_path).exists() else download(str(image_path))
    within = path if Path(image_path).exists() else path.parents[1]  # the Hub's cache has links to its own files
    files = list_files(path, within) if path.is_dir() else Files(path.parent, [path.name], {}, {})
    packed = [name for name in files.names if ARCHIVE_NAME.search(name)]
    if packed and not any(map(IMAGE_NAME.search, files.names)):
        path = (scratch / "unpacked").resolve()
        room = [MAX_UNPACKED_FILES, min(MAX_UNPACKED_BYTES, shutil.disk_usage(scratch).free)]
        for name in packed:
            unpack(files.folder / name, path / ARCHIVE_NAME.sub("", name) if packed[1:] else path, encoding, room)
        files = list_files(path, path)
    tables = [name for name in files.names if name.endswith((".parquet", "dataset_dict.json", "state.json"))]
    if tables and not label_path and not any(map(IMAGE_NAME.search, files.names)):
        return read_dataset(path, scratch / "rows", columns)
    if not path.is_dir():
        raise ValueError(
            f"--image_path {image_path} is neither a folder, a .zip or .tar, a Parquet file nor a dataset."
        )
    if label_path:
        label_path = Path(label_path) if Path(label_path).is_file() else path / label_path
        return files, choose_columns(read_list(label_path, encoding, files), files, columns)
    rows = []
    for name in files.names:
        folder, slash, base = name.rpartition("/")
        if re.fullmatch(r"metadata\.(csv|jsonl|parquet)", base):
            print(f"The labels are those of {name}.")
            rows.append(choose_columns(read_list(path / name, encoding, files), files, columns))
            rows[-1]["name"] = folder + slash + rows[-1]["name"]
    return files, pd.concat(rows, ignore_index=True) if rows else rows_of_folders(files)


def tidy_labels(table: pd.DataFrame) -> dict[str, list[str]]:
    """Give each label of a table its most frequent spelling; return {spelling: [others]}, and say so."""
    labels = table["label"].map(lambda label: " ".join(unicodedata.normalize("NFC", label).split()))
    table["label"] = labels.groupby(labels.str.casefold()).transform(lambda same: same.mode()[0])
    merged: dict[str, list[str]] = {}
    for label, spelling in sorted(set(zip(labels, table["label"], strict=True))):
        if label != spelling:
            merged.setdefault(spelling, []).append(label)
            print(f"Label {label!r} is taken as {spelling!r}.")
    return merged


@contextmanager
def open_photo(file: str):
    """Give the photo of a file, not decoded yet, as Pillow's image; OSError if it has none of the formats that are taken."""
    if "HEIF" not in Image.OPEN:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    # Not by its name: Pillow 12.3 would map an uncompressed TIFF into memory, and garble it if it is to be turned.
    with open(file, "rb") as binary, Image.open(binary, formats=IMAGE_FORMATS) as image:  # noqa: PTH123 - of many
        yield image


def upright(image: Image.Image) -> Image.Image:
    """Return a photo with the turn of its EXIF data made, and more than 8 bits scaled from its darkest to its brightest."""
    image = ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else image
    if image.mode[0] not in "IF":
        return image
    grey = np.asarray(image, np.float64)
    known = grey[np.isfinite(grey)]
    low, high = (known.min(), known.max()) if len(known) else (0, 1)
    grey = np.nan_to_num((grey - low) / max(high - low, 1e-12) * 255, nan=0, posinf=255, neginf=0)
    return Image.fromarray(grey.round().astype(np.uint8))


def pixel_digest(image: Image.Image) -> bytes:
    """Return 16 bytes that are equal for equal pixels, without a copy of the pixels if they lie in one block."""
    try:
        pixels = pa.array(image).buffers()[-1]
    except ValueError:
        pixels = image.tobytes()
    return xxhash.xxh3_128(pixels, seed=2 * image.width + (image.mode == "RGBA")).digest()


def oddity(grey: Image.Image, small: Image.Image) -> tuple[str, float]:
    """Return what is odd about a photo, "" if nothing, and a degree that is smaller for an odder one.

    Sharpness is the mean square of the Laplacian in the middle 96 x 96 pixels, at a shorter side of 180 to 359 pixels. Below
    BLUR it is for 95 % of 500 photos that were blurred (Gaussian, 2 pixels), and for 0.2 % of the same photos before that.
    """
    low, high = small.getextrema()
    if high < DARK or low > LIGHT:
        return ("Nearly black", high) if high < DARK else ("Nearly white", -low)
    if min(grey.size) < TINY:
        return f"Smaller than {TINY} pixels", min(grey.size)
    grey = grey.reduce(min(grey.size) // 180) if min(grey.size) >= 360 else grey
    left, top = max(0, grey.width - 96) // 2, max(0, grey.height - 96) // 2
    middle = np.asarray(grey.crop((left, top, min(left + 96, grey.width), min(top + 96, grey.height))), np.int16)
    edges = 4 * middle[1:-1, 1:-1] - middle[2:, 1:-1] - middle[:-2, 1:-1] - middle[1:-1, 2:] - middle[1:-1, :-2]
    edges = edges.ravel().astype(np.float32)
    sharpness = float(edges @ edges) / max(edges.size, 1)
    return "Blurred" if sharpness < BLUR else "", sharpness


def inspect_photo(file: str, copies: Path, image_size: int | None) -> Photo:
    """Return what a photo is; a copy goes to `copies` if it has to be turned, made smaller or have its grey scaled."""
    try:
        with open_photo(file) as image:
            if image.width * image.height > MAX_PIXELS:
                return Photo(f"too many pixels: {image.width} x {image.height}, the limit is {MAX_PIXELS}")
            image.load()  # verify() would accept a JPEG that is cut off in the middle
            photo, stored = upright(image), file
            changed = photo is not image
            mode = "RGBA" if photo.has_transparency_data else "RGB"
            photo = photo if photo.mode == mode else photo.convert(mode)
            pixels, grey = pixel_digest(photo), photo.convert("L")
            small = grey.resize((17, 16), Image.Resampling.HAMMING)
            shades = np.asarray(small)
            heif, large = image.format == "HEIF", bool(image_size) and min(photo.size) > image_size
            if changed or heif or large:  # HEIF as JPEG in the dataset, which then needs no plugin to be read
                smaller = ImageOps.cover(photo, (image_size, image_size)) if large else photo
                jpeg = image.format in ("JPEG", "MPO") or (heif and mode == "RGB")
                # Named by the content, so that the same photos give the same dataset, byte for byte.
                stored = str(copies / f"{pixels.hex()}.{'jpg' if jpeg else 'png'}")
                smaller.save(
                    stored, quality=95, icc_profile=image.info.get("icc_profile") if image.mode == mode else None
                )
            look = np.packbits(shades[:, 1:] > shades[:, :-1]).tobytes()
            return Photo("", stored, pixels, look, *oddity(grey, small), image.mode[0] in "IF")
    except Image.DecompressionBombError:  # twice Pillow's limit, so it does not even tell the size
        return Photo(f"too many pixels: the limit is {MAX_PIXELS}")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever one broken file makes Pillow raise, the run goes on
        return Photo(f"undecodable file: {(str(error) or type(error).__name__).replace(file, 'it')}")


def look_at_photos(table: pd.DataFrame, files: Files, look, num_proc: int | None) -> pd.DataFrame:
    """Return the table with what `look` finds in each row's photo; show progress. OSError if a process is killed."""
    read = table.index[table["reason"] == ""]
    names = [f"{files.folder}{os.sep}{files.names[place]}" for place in table["place"][read]]
    bar = partial(tqdm, total=len(names), desc="Checking photos", unit="photo")
    if num_proc == 1:
        found = list(bar(map(look, names)))
    else:  # of a small photo's time more than half is Python's, whose lock keeps threads to one core
        pool = ProcessPoolExecutor(num_proc, initializer=follow_parent)
        try:
            found = list(bar(pool.map(look, names, chunksize=50)))
        except BrokenProcessPool as error:
            said = "A process that checks photos was killed, perhaps for want of memory. Try --num_proc 1."
            spawn = multiprocessing.get_start_method() != "fork"
            raise OSError(said + ' Put the call under if __name__ == "__main__":' * spawn) from error
        finally:
            pool.shutdown(cancel_futures=True)
    photos = pd.DataFrame(found, read, Photo._fields)
    table.loc[read, "reason"] = photos.pop("reason")
    return table.join(photos)


def follow_parent() -> None:
    """Have this process leave Ctrl-C to the one that started it, and end with that one, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def drop_copies(table: pd.DataFrame) -> None:
    """Give every row but the first of each photo a reason to be left out, and all of them if their labels differ."""
    copies = table[table["reason"] == ""]
    copies = copies[copies.duplicated("pixels", keep=False)]
    if copies.empty:
        return
    same = copies.groupby("pixels", sort=False)
    first = same[["name", "row", "place"]].transform("first")
    said = "the same photo as " + ("row " + first["row"] + ", ").where(first["row"] != "", "") + first["name"]
    kind = (first["place"] == copies["place"]).map({True: "listed twice: ", False: "duplicate: "})
    table.loc[copies.index, "reason"] = (kind + said).where(copies.duplicated("pixels"), "")
    for _, rows in copies[same["label"].transform("nunique") > 1].groupby("pixels"):
        labels = " and ".join(sorted(set(rows["label"])))
        table.loc[rows.index, "reason"] = f"conflicting labels: the same photo is labelled {labels}"


def near_pairs(looks: list[bytes]) -> np.ndarray:
    """Return the places of photos that look nearly alike, shape (2, pairs).

    Two hashes of 256 bits that differ in 15 or fewer have one of their 16 words of 16 bits in common (Manku et al. 2007,
    Detecting Near-Duplicates for Web Crawling). For each word the photos are sorted by it and what follows it, and each is
    compared with the NEIGHBOURS after it, so the time does not grow with the square of the photos. That misses a pair only
    if each word that it has in common is one that more than NEIGHBOURS photos have, such as that of an even sky.
    """
    hashes = np.array(looks, "V32")
    parts, octets, pairs = hashes.view(np.uint64).reshape(-1, 4), hashes.view(np.uint8).reshape(-1, 32), []
    for start in range(0, 32, 2):
        key = np.roll(octets, -start, axis=1)[:, :8].copy().view(">u8").ravel().astype(np.uint64)
        order = np.argsort(key, kind="stable")
        word, first = key[order] >> np.uint64(48), np.arange(len(order))
        for step in range(1, NEIGHBOURS + 1):
            first = first[: np.searchsorted(first, len(order) - step)]
            first = first[word[first] == word[first + step]]
            pair = order[[first, first + step]]
            differing = np.bitwise_count(parts[pair[0]] ^ parts[pair[1]]).sum(1, dtype=np.uint16)
            pairs.append(pair[:, differing <= NEAR_BITS])
    return np.concatenate(pairs, 1)


def linked(pairs: np.ndarray, count: int) -> np.ndarray:
    """Return a number for each of `count` photos, shape (count,), that those share which pairs link, in the photos' order."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(pairs.shape[1], bool), tuple(pairs)), shape=(count, count))
    return pd.factorize(connected_components(graph, directed=False)[1])[0]


def photos_by_class(counts: np.ndarray, size: float) -> np.ndarray:
    """Return how many photos of each class, shape (classes,), make `size` photos, or that share of all, together."""
    total = math.ceil(size * counts.sum()) if size < 1 else int(size)
    ideal = counts * total / counts.sum()
    wanted = np.floor(ideal).astype(int)
    order = np.lexsort((wanted - ideal, wanted > 0))  # classes that would have none come first
    wanted[order[: total - wanted.sum()]] += 1
    return wanted


def split_photos(labels, groups, given, names: list[str], sizes: dict[str, float], seed: int) -> np.ndarray:
    """Return the place in SPLITS of every photo, shape (photos,): the given one, else stratified, random, by group.

    Splits that no photo is `given` are cut from train. Labels, groups and given places are numbers, shape (photos,).
    Raises ValueError if the sizes (shares or numbers of photos) cannot be met, or a class would be absent from a split.
    """
    cut = [place for place in (2, 1) if not (given == place).any()]
    pool = np.flatnonzero(given == 0)
    counts = left = np.bincount(labels[pool], minlength=len(names))
    needed = 1 + len(cut)
    if (counts < needed).any():
        rare = ", ".join(f"{names[one]!r} ({counts[one]})" for one in np.flatnonzero(counts < needed)[:100])
        said = f"Each class needs {needed} usable photos or more for its splits. These have fewer: {rare}"
        raise ValueError(f"{said}. Add photos, or leave rare classes out with --min_photos {needed} or more.")
    free = {}
    for place in cut:
        size = sizes[SPLITS[place]]
        if size >= left.sum():
            raise ValueError(f"--{SPLITS[place]}_size {size} cannot be met: there are {left.sum()} usable photos.")
        free[place] = photos_by_class(left, size)
        left = left - free[place]
    split, order = given.copy(), pool[np.argsort(groups[pool], kind="stable")]
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    order = np.random.default_rng(seed).permutation(len(members))
    for factor, group in product((1, 2), order):  # first those that fit, then those that fit by half
        if len(members[group]) < factor:
            continue
        wanted = np.bincount(labels[members[group]], minlength=len(names))
        for place in cut:
            if not split[members[group]].any() and (wanted <= factor * free[place])[wanted > 0].all():
                free[place] = free[place] - wanted
                split[members[group]] = place
    for place, name in enumerate(SPLITS):
        for absent in sorted(set(range(len(names))) - set(labels[split == place])):
            if place == 0 or place in cut:
                said = f"The {name} split would hold no photo of class {names[absent]!r}, which has {counts[absent]} photos"
                said += f" in {len(set(groups[pool][labels[pool] == absent]))} groups"
                raise ValueError(f"{said}. Add photos of it, or change --test_size or --validation_size.")
    return split


def write_split(folder: Path, files: list[str], labels: np.ndarray, features) -> None:
    """Write photos and labels as `Dataset.save_to_disk` does, but each photo's bytes straight from its file."""
    from datasets import DatasetInfo

    schema, digest = features.arrow_schema, xxhash.xxh3_64()
    shards = max(1, -(-sum(map(os.path.getsize, files)) // SHARD_BYTES))
    names = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    folder.mkdir()
    for name, rows in zip(names, np.array_split(np.arange(len(files)), shards), strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
            for start in range(rows[0], rows[-1] + 1, 100):
                chunk = slice(start, min(start + 100, rows[-1] + 1))
                contents = [open(file, "rb").read() for file in files[chunk]]  # noqa: PTH123, SIM115 - of many
                paths = [file.rsplit(os.sep, 1)[-1] for file in files[chunk]]
                images = pa.StructArray.from_arrays([pa.array(contents), pa.array(paths)], ["bytes", "path"])
                stream.write_batch(pa.record_batch([images, pa.array(labels[chunk])], schema))
                digest.update(b"".join(contents))
    DatasetInfo(features=features).write_to_directory(str(folder))
    state = dict.fromkeys(("_format_columns", "_format_type")) | {"_format_kwargs": {}, "_output_all_columns": False}
    state |= {
        "_fingerprint": digest.hexdigest(),
        "_split": folder.name,
        "_data_files": [{"filename": n} for n in names],
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True))


def font_of(texts: list[str]) -> str | None:
    """Return the file of a font of this machine that has all letters of some texts, None if there is none."""
    from matplotlib.font_manager import findfont, fontManager, get_font

    letters = {ord(letter) for letter in "".join(texts) if letter.isprintable() and letter != " "}
    for file in (findfont("DejaVu Sans"), *sorted({font.fname for font in fontManager.ttflist})):
        with suppress(OSError, RuntimeError):
            if letters <= get_font(file).get_charmap().keys():
                return file
    return None


def class_balance_plot(splits: dict[str, dict[str, int]], path: Path) -> str:
    """Write the picture of the photos by class and split; return the legend of its numbers, "" if it has the names."""
    import matplotlib

    matplotlib.use("agg")
    counts = pd.DataFrame(splits)
    names = list(counts.index)
    font = font_of(names)
    counts.index = names if font else [f"class {number}" for number in range(1, len(names) + 1)]
    size = (8, min(1.5 + 0.25 * len(counts), 300))
    axes = counts[::-1].plot.barh(stacked=True, figsize=size, xlabel="photos", ylabel="")
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
        text.set_font(Path(font) if font else None)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.figure.savefig(path, bbox_inches="tight", dpi=100, metadata={"Software": None})
    matplotlib.pyplot.close(axes.figure)
    return "" if font else "".join(f"Class {at} is {escape(name)}. " for at, name in enumerate(names, 1)) + "\n\n"


def contact_sheet(rows: list[list[tuple[str, str, str]]], path: Path) -> None:
    """Write a picture with rows of (file, its name, more text), as many as there is room for."""
    rows = [row[:SHEET_COLUMNS] for row in rows[:SHEET_ROWS]]
    sheet = Image.new("RGB", (220 * max(map(len, rows)), 250 * len(rows)), "white")
    font = ImageFont.truetype(font_of([text for row in rows for _, *texts in row for text in texts]) or font_of([]), 12)
    for y, row in enumerate(rows):
        for x, (file, name, text) in enumerate(row):
            with open_photo(file) as image:
                sheet.paste(ImageOps.contain(upright(image).convert("RGB"), (200, 200)), (220 * x + 10, 250 * y + 10))
            words = f"{name if len(name) < 30 else '…' + name[-29:]}\n{text}"
            ImageDraw.Draw(sheet).text((220 * x + 10, 250 * y + 213), words, "black", font)
    sheet.save(path)


def load_model(model_id: str):
    """Return an image classifier of transformers and its processor; OSError if there is none."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    def load():
        network = AutoModelForImageClassification.from_pretrained(model_id, use_safetensors=True, dtype="float32")
        return network.eval(), AutoImageProcessor.from_pretrained(model_id)

    return ask_hub(
        load, f"--suspects {model_id} cannot be loaded as an image classifier", "Give a folder, or a name on the Hub"
    )


def find_suspects(usable: pd.DataFrame, labels: np.ndarray, names: list[str], model, seed: int, folder: Path) -> str:
    """Write the photos whose label is probably wrong, the most suspicious first; return how many there are, in words.

    A logistic regression from a model's logits to the labels is cross-validated, then again without the labels that it
    finds wrong (Northcutt et al. 2021, Confident Learning).
    """
    import torch
    from cleanlab.filter import find_label_issues
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (network, processor), logits = model, []
    for start in tqdm(range(0, len(usable), 32), desc="Looking for wrong labels", unit="batch"):
        photos = []
        for file in usable["stored"][start : start + 32]:
            with open_photo(file) as image:
                photos.append(upright(image).convert("RGB"))
        with torch.inference_mode():
            logits.append(
                network(**processor(photos, return_tensors="pt")).logits.log_softmax(1).clamp(min=-14).numpy()
            )
    folds = StratifiedKFold(max(2, min(5, np.bincount(labels).min())), shuffle=True, random_state=seed)
    options = {"cv": folds, "method": "predict_proba"}
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=1000))
    trusted = np.ones(len(labels))
    for _ in range(2):
        weights = {"logisticregression__sample_weight": trusted}
        chances = cross_val_predict(regression, np.concatenate(logits), labels, params=weights, **options)
        other = find_label_issues(
            labels, chances, return_indices_ranked_by="self_confidence", filter_by="predicted_neq_given", n_jobs=1
        )
        worst = other[chances[other, labels[other]] < UNLIKELY * chances[other].max(1)]
        trusted[worst] = 0
    found = usable.iloc[worst][["name", "row", "label", "stored"]].rename(columns={"name": "file"})
    found["suggested"] = [names[best] for best in chances[worst].argmax(1)]
    found["confidence"] = chances[worst, labels[worst]].round(4)
    found.drop(columns="stored").to_csv(folder / "suspects.csv", index=False)
    sheet = list(zip(found["stored"], found["file"], found["label"] + ", or " + found["suggested"] + "?", strict=True))
    if sheet:
        rows = [sheet[at : at + SHEET_COLUMNS] for at in range(0, len(sheet), SHEET_COLUMNS)]
        contact_sheet(rows, folder / "suspects.png")
    return f"Labels that are perhaps wrong, the most suspicious first, in suspects.csv: {len(found)}"


def escape(name: str) -> str:
    """Return a class name so that Markdown shows it as it is."""
    return re.sub(r"([\\|*_$`\[\]~])", r"\\\1", html.escape(name, quote=False))


def write_dropped(table: pd.DataFrame, path: Path) -> None:
    """Write the list of the rows that were left out, with row and reason."""
    dropped = table[table["reason"] != ""]
    dropped[["name", "row", "reason"]].rename(columns={"name": "file"}).to_csv(path, index=False)


def write_report(folder: Path, report: dict, table: pd.DataFrame, name: str) -> None:
    """Write what is beside the dataset: its card, the numbers, the list of what was left out, two pictures."""
    from huggingface_hub import DatasetCard, DatasetCardData

    write_dropped(table, folder / "dropped.csv")
    copies = table[table["reason"].str.match("$|duplicate|conflicting")]
    copies = [same for _, same in copies[copies.duplicated("pixels", keep=False)].groupby("pixels")]
    if copies:
        copies.sort(key=lambda same: -same["label"].nunique())  # conflicts first
        texts = [s["label"] + ", " + s["reason"].str.split(":").str[0].replace("", "kept") for s in copies]
        sheet = [list(zip(s["stored"], s["name"], text, strict=True)) for s, text in zip(copies, texts, strict=True)]
        contact_sheet(sheet, folder / "duplicates.png")
        report["notes"].append("Copies are on `duplicates.png`")
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    splits = report["splits"]
    totals = [sum(counts.values()) for counts in splits.values()]
    rows = [
        ["class", *SPLITS],
        ["---"] * 4,
        *([escape(one), *(splits[s][one] for s in SPLITS)] for one in splits["train"]),
    ]
    card = CARD.format(
        **report | {"given": f"The splits {', '.join(report['given'])} were given. " * bool(report["given"])},
        name=name,
        photos=sum(totals),
        classes=len(splits["train"]),
        table="\n".join(f"| {' | '.join(map(str, row))} |" for row in [*rows, ["all", *totals]]),
        legend=class_balance_plot(splits, folder / "class_balance.png"),
        left_out="\n".join(f"- {reason}: {count}" for reason, count in report["dropped"].items()) or "Nothing.",
        said="\n".join(f"- {escape(note)}." for note in report["notes"]),
    )
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in SPLITS]
    configs = [{"config_name": "default", "data_files": files}]
    front = DatasetCardData(pretty_name=name, task_categories=["image-classification"], configs=configs)
    DatasetCard(f"---\n{front}\n---\n\n{card}").save(folder / "README.md")


def check_flags(asked: dict) -> None:
    """Raise an OSError or ValueError if `prepare` cannot do what it was asked for, before any work."""
    image_path, dst_path, label_path = (Path(asked[name] or "") for name in ("image_path", "dst_path", "label_path"))
    for flag in ("test_size", "validation_size"):
        if not 0 < asked[flag] < 1 and (asked[flag] < 1 or asked[flag] % 1):
            raise ValueError(f"--{flag} {asked[flag]:g} is neither a share between 0 and 1, such as 0.2, nor a number.")
    for flag in ("image_size", "num_proc", "min_photos"):
        if asked[flag] is not None and asked[flag] < 1:
            raise ValueError(f"--{flag} {asked[flag]} must be 1 or more.")
    if not image_path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", str(asked["image_path"])):
        raise OSError(f"--image_path {image_path} is not a folder or file, nor the name of a dataset (owner/name).")
    if (
        image_path.is_dir()
        and asked["label_path"]
        and not (label_path.is_file() or (image_path / label_path).is_file())
    ):
        raise OSError(f"--label_path {label_path} is not a file.")
    if dst_path.exists() and not asked["overwrite"]:
        raise OSError(f"--dst_path {dst_path} exists already. Choose another folder, or add --overwrite to replace it.")
    if dst_path.exists() and not (dst_path / "dataset_dict.json").is_file():
        raise OSError(f"--dst_path {dst_path} is not a dataset, so --overwrite leaves it alone. Choose another folder.")


def check_rows(table: pd.DataFrame, files: Files, copies: Path, asked: dict) -> tuple[pd.DataFrame, int]:
    """Return the table with the file, split, photo and reason of each row, and how many files no row names; say so.

    Raises ValueError if no row names a file.
    """
    locate(table, files)
    lost = table["name"][(table["place"] < 0) & (table["name"] != "")]
    if len(lost) and not (table["place"] >= 0).any():
        raise ValueError(f"No row names a file: the first name is {lost.iloc[0]!r}, and there is {files.names[:3]}.")
    folders = read_folders(files.names)[0]
    folders = table["place"].map(lambda place: folders[place] if place >= 0 else "")
    if asked["split_column"] != "none" and not table["split"].any() and len(set(folders) - {""}) > 1:
        table["split"] = folders.replace("", "train")
        print("The splits are given by the folders; --split_column none cuts new ones.")
    look = partial(inspect_photo, copies=copies, image_size=asked["image_size"])
    table = look_at_photos(table, files, look, asked["num_proc"])
    drop_copies(table)
    usable = table[table["reason"] == ""]
    rare = usable[usable.groupby("label")["label"].transform("size") < asked["min_photos"]]
    table.loc[rare.index, "reason"] = "rare class"
    if len(rare):
        said = f"Classes with fewer than {asked['min_photos']} photos"
        print(f"{said}: {', '.join(sorted(set(rare['label'])))}")
    unnamed = set(range(len(files.names))) - set(table["place"])
    return table, sum(not LIST_NAME.search(files.names[place]) for place in unnamed)


def split_rows(
    usable: pd.DataFrame, names: list[str], labels: np.ndarray, sizes: dict, seed: int
) -> tuple[np.ndarray, dict]:
    """Return the place in SPLITS of every usable row, shape (photos,), and what the report says about it.

    Raises ValueError if the rows cannot be split.
    """
    count, group = len(usable), usable["group"]
    given = sorted(set(usable["split"]) - {""}, key=SPLITS.index)
    given = given if len(given) > 1 else []
    split = usable["split"].map(SPLITS.index).to_numpy() if given else np.zeros(count, int)
    torn = pd.Series(split).groupby(group.where(group != "")).nunique()
    if given and (torn > 1).any():
        raise ValueError(f"The group {torn.idxmax()!r} is in several given splits. --split_column none cuts new ones.")
    pairs = near_pairs(list(usable["look"]))
    near = linked(pairs, count)
    first = pd.Series(range(count)).groupby(group).transform("first").where(group != "", range(count))
    split = split_photos(labels, linked(np.hstack([pairs, [range(count), first]]), count), split, names, sizes, seed)
    alike = pd.Series(split).groupby(near).agg(["size", "nunique"])
    alike = alike[alike["size"] > 1]
    counts = {"groups": len(alike), "photos": int(alike["size"].sum()), "across": int((alike["nunique"] > 1).sum())}
    notes = [f"Near-duplicates, kept together in one split: {counts['photos']} photos in {counts['groups']} groups"]
    if counts["across"]:
        notes.append(f"Near-duplicates that lie in several given splits: {counts['across']} groups")
    parts = {label: set(re.split(r"[\s|;,/&+]+", label)) for label in names}
    joined = [label for label in names if len(parts[label]) > 1 and parts[label] <= set(names)]
    several = usable["label"].isin(joined).sum()
    notes += [f"Labels made of other labels, each a class of its own: {several} photos"] * bool(several)
    said = "Grey of more than 8 bits, scaled from each photo's darkest to its brightest"
    notes += [f"{said}: {usable['deep'].sum()} photos"] * bool(usable["deep"].any())
    for said, odd in usable[usable["odd"] != ""].sort_values("degree", kind="stable").groupby("odd"):
        notes.append(f"{said}: {len(odd)} photos, such as {', '.join(odd['name'][:5])}")
    table = pd.crosstab(labels, split).reindex(index=range(len(names)), columns=range(3), fill_value=0)
    splits = {name: dict(zip(names, table[place].tolist(), strict=True)) for place, name in enumerate(SPLITS)}
    return split, {"splits": splits, "given": given, "near_duplicates": counts, "notes": notes}


def prepare(
    *,
    image_path: Annotated[str | Path, "photos: folder, .zip, .tar, Parquet, a dataset's folder or its name on the Hub"],
    dst_path: Annotated[str | Path, "folder for the dataset"],
    label_path: Annotated[str | Path | None, "list of labels of any kind; without it, folders are the classes"] = None,
    image_column: Annotated[str | None, "column with the photos' names; guessed if not given"] = None,
    label_column: Annotated[str | None, "column with the labels, or several with 0 and 1: A,B,C; guessed"] = None,
    split_column: Annotated[str | None, "column with train, validation, test; guessed; none cuts new ones"] = None,
    group_column: Annotated[str | None, "column whose equal values, such as a patient's, stay in one split"] = None,
    encoding: Annotated[str | None, "of the list; else UTF-8, UTF-16 or, if it reads well, Windows-1252"] = None,
    test_size: Annotated[float, "share or number of all photos that is kept for the final test"] = 0.3,
    validation_size: Annotated[float, "share or number of the remaining photos that picks the best epoch"] = 0.1,
    min_photos: Annotated[int, "leave classes with fewer usable photos out"] = 1,
    seed: Annotated[int, "the same seed gives the same split"] = 42,
    image_size: Annotated[int | None, "scale larger photos down to this shorter side"] = None,
    suspects: Annotated[
        str | None, "image classifier, folder or on the Hub, that finds labels that may be wrong"
    ] = None,
    num_proc: Annotated[int | None, "photos that are checked at the same time; 1: in this process alone"] = None,
    dry_run: Annotated[bool, "show the outcome, and write no dataset"] = False,
    overwrite: Annotated[bool, "replace a dataset that is already there"] = False,
    push_to_hub: Annotated[str | None, "also upload it to this dataset repo, private if it is new"] = None,
):
    """Check every row and photo, split what can be used, save it to `dst_path` and return the `DatasetDict`.

    Nothing is written at `dst_path` before all of it is there, and the photos are only read. If they make no dataset, what
    was found is in `NAME.dropped.csv` beside it. A dry run writes no dataset and returns None.

    Raises:
        OSError: if an input does not exist, `dst_path` does and is not to be replaced, or the Hub does not take it.
        ValueError: if the list, the sizes or the classes do not allow a dataset.
    """
    asked = dict(locals())
    if multiprocessing.parent_process() and "__file__" not in vars(sys.modules["__main__"]):
        said = 'Put the call of prepare under if __name__ == "__main__": its processes read the script too.'
        sys.exit(f"prep.py: error: {said}")
    dst_path = Path(dst_path)
    unfinished, replaced = (dst_path.with_name(f".{dst_path.name}.{word}") for word in ("partial", "replaced"))
    restore(dst_path, unfinished, replaced)
    check_flags(asked)
    if push_to_hub:
        create_repo(push_to_hub)  # now, so that a missing login does not show only after the work
    model = load_model(suspects) if suspects else None

    import datasets  # heavy, so after the checks

    new_folders = [folder for folder in dst_path.absolute().parents if not folder.exists()]
    scratch = unfinished / "scratch"
    table = None
    try:
        (scratch / "copies").mkdir(parents=True)
        columns = {name: asked[name] for name in asked if name.endswith("_column")}
        files, table = read_rows(image_path, label_path, scratch, encoding, columns)
        merged = tidy_labels(table)
        table, unnamed = check_rows(table, files, scratch / "copies", asked)
        dropped = Counter(sorted(table["reason"][table["reason"] != ""].str.split(":").str[0]))
        for reason, count in dropped.items():
            print(f"Dropped for {reason}: {count}")
        print(f"Files that no row names: {unnamed}")
        usable = table[table["reason"] == ""].reset_index(drop=True)
        names = sorted(set(usable["label"]))
        if len(names) < 2:
            found = ", ".join(names) or "none"
            raise ValueError(f"A classifier needs usable photos of two classes or more; there are: {found}.")
        labels = pd.Categorical(usable["label"], names).codes.astype(int)
        sizes = {"test": test_size, "validation": validation_size}
        split, facts = split_rows(usable, names, labels, sizes, seed)
        print(*facts["notes"], sep="\n")
        for name, counts in facts["splits"].items():
            by_class = ", ".join(f"{one} {count}" for one, count in counts.items())
            print(f"{name}: {sum(counts.values())} photos ({by_class})")
        if dry_run:
            return None
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        for place, name in enumerate(SPLITS):  # in random order, so that it can be streamed
            chosen = np.random.default_rng([seed, place]).permutation(np.flatnonzero(split == place))
            write_split(unfinished / name, usable["stored"].to_numpy()[chosen].tolist(), labels[chosen], features)
        (unfinished / "dataset_dict.json").write_text(json.dumps({"splits": SPLITS}))
        if model:
            facts["notes"].append(find_suspects(usable, labels, names, model, seed, unfinished))
            print(facts["notes"][-1])
        facts["notes"] += [f"Taken as one label: {', '.join(words)} → {one}" for one, words in merged.items()]
        facts |= {"rows": len(table), "dropped": dropped, "unnamed_files": unnamed, "merged": merged, "seed": seed}
        facts |= {f"{name}_size": size for name, size in sizes.items()} | {"command": command_line(asked)}
        write_report(unfinished, facts, table, dst_path.name)
        shutil.rmtree(scratch)
        if dst_path.exists():
            dst_path.rename(replaced)
        unfinished.rename(dst_path)
    except ValueError as error:
        if table is None:
            raise
        write_dropped(table, dst_path.with_name(f"{dst_path.name}.dropped.csv"))
        raise ValueError(f"{error} What was found is in {dst_path}.dropped.csv.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        for folder in new_folders:
            with suppress(OSError):
                folder.rmdir()
    shutil.rmtree(replaced, ignore_errors=True)
    print(f"Dataset written to {dst_path}; what was left out, and why, is in {dst_path / 'dropped.csv'}")
    if push_to_hub:
        push(dst_path, push_to_hub)
    return datasets.load_from_disk(str(dst_path))


def restore(dst_path: Path, unfinished: Path, replaced: Path) -> None:
    """Clear away what a killed run left; a dataset that it was replacing goes back to its place."""
    if unfinished.exists():
        print(f"Found the unfinished dataset of a run that was stopped, {unfinished}, and removed it.")
        shutil.rmtree(unfinished)
    if replaced.exists() and dst_path.exists():
        shutil.rmtree(replaced)
    elif replaced.exists():
        print(f"Found the dataset that a stopped run was replacing, and put it back to {dst_path}.")
        replaced.rename(dst_path)


def command_line(asked: dict) -> str:
    """Return the command that does what `prepare` was asked for, defaults included, which another version may change."""
    given = {name: value for name, value in asked.items() if value not in (None, False) and name != "num_proc"}
    words = [[f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in given.items()]
    return shlex.join(["python", "prep.py", *sum(words, [])])


def ask_hub(call, said: str, advice: str):
    """Return what `call()` returns, called again for about 20 seconds while the Hub is busy or the connection is cut.

    Raises OSError that says what failed, why, and what to do.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

    def passing(error: BaseException) -> bool:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        return status == 429 or status >= 500 or isinstance(error, httpx2.TransportError)

    wait, stop = wait_exponential_jitter(initial=1, max=30), stop_after_attempt(5)
    try:
        return Retrying(retry=retry_if_exception(passing), wait=wait, stop=stop, reraise=True)(call)
    except (OSError, ValueError, ImportError, KeyError, httpx2.TransportError) as error:
        raise OSError(f"{said} ({first_line(error)}). {advice}.") from error


def create_repo(repo_id: str) -> None:
    """Make sure that the dataset repo exists, private if it is new, and may be written; OSError with the reason, if not."""
    from huggingface_hub import HfApi

    said = f"--push_to_hub {repo_id}: the Hub does not give a repo to write to"
    advice = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
    ask_hub(lambda: HfApi().create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True), said, advice)


def push(dst_path: Path, repo_id: str) -> None:
    """Upload the dataset, as Parquet files that `load_dataset` streams, and what is beside it; OSError if that fails."""
    from datasets import load_from_disk
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix=f".{dst_path.name}-", dir=dst_path.parent) as scratch:
        for file in dst_path.iterdir():
            if file.suffix in (".md", ".csv", ".png") or file.name == "report.json":
                shutil.copy(file, scratch)
        Path(scratch, "data").mkdir()
        for name, part in load_from_disk(str(dst_path)).items():
            shards = -(-part.data.nbytes // SHARD_BYTES)
            for index in range(shards):
                file = Path(scratch, "data", f"{name}-{index:05d}-of-{shards:05d}.parquet")
                part.shard(shards, index, contiguous=True).to_parquet(file)
        options = {"repo_type": "dataset", "commit_message": "Upload the dataset"}
        commit = ask_hub(
            lambda: HfApi().upload_folder(repo_id=repo_id, folder_path=scratch, **options),
            f"The dataset is whole in {dst_path}, but the Hub did not take it",
            "Push it later with the same command and --overwrite",
        )
    print(f"Pushed to {repo_id}, revision {commit.oid}")


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, for the use inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def size(text: str) -> float:
    """Return a size of the command line: a whole number of photos, or a share."""
    return int(text) if text.isdecimal() else float(text)


def parser() -> argparse.ArgumentParser:
    """Return the parser, whose flags, help and defaults are those of `prepare`; `main` also takes flags with hyphens."""
    shape = argparse.ArgumentDefaultsHelpFormatter
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser("prep.py", description=about, allow_abbrev=False, formatter_class=shape)
    for name, parameter in inspect.signature(prepare).parameters.items():
        kind, text = get_args(parameter.annotation)
        options = {"default": parameter.default, "help": text}
        if parameter.default is parameter.empty:
            options |= {"required": True, "default": argparse.SUPPRESS}
        if kind is bool:
            options["action"] = "store_true"
        elif kind is float:
            options |= {"type": size, "metavar": "SIZE"}
        else:
            options |= {"type": int, "metavar": "N"} if "int" in str(kind) else {"metavar": "TEXT"}
        parser.add_argument(f"--{name}", **options)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = sys.argv[1:] if argv is None else argv  # --image-path=a-b is --image_path=a-b too
    arguments = [re.sub("(?<=^--)[^=]+", lambda flag: flag[0].replace("-", "_"), argument) for argument in arguments]
    try:
        prepare(**vars(parser().parse_args(arguments)))
    except (OSError, ValueError) as error:
        sys.exit(f"prep.py: error: {error}")
    except KeyboardInterrupt:
        sys.unraisablehook = lambda _: None  # a progress bar that was stopped half made has no more to say
        print("prep.py: stopped, no dataset was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
