"""Turn labelled photos into a dataset with the splits train, validation and test.

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
import html
import inspect
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
# Pillow opens dozens of formats, some with decoders that nobody maintains; photos come in these (JPEG includes MPO).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")  # HEIF is what iPhones write as .heic
IMAGE_ENDINGS = "jpg|jpeg|jpe|jfif|mpo|png|webp|gif|bmp|tif|tiff|avif|heic|heif"
LIST_ENDINGS = "csv|tsv|txt|json|jsonl|xlsx|parquet"
ARCHIVE_ENDINGS = "zip|tar|tgz|tbz2|txz|tar.gz|tar.bz2|tar.xz"
IMAGE_NAME, LIST_NAME, ARCHIVE_NAME = (
    re.compile(rf"\.(?:{endings})$", re.IGNORECASE) for endings in (IMAGE_ENDINGS, LIST_ENDINGS, ARCHIVE_ENDINGS)
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
SHARD_BYTES = 500_000_000  # of a file on the Hub
# Letters where Western European languages write them. Czech, Turkish, Russian or Chinese text that is read as Windows-1252
# has them in other places.
WESTERN = r"(?<=[a-z])[áéíóúäöüëîôâçåß](?![à-ÿœ])|[áéíóúäöüëîôâçåß](?=[a-z])|(?<=[a-z])[éëïâçãõ](?=[éeaâãõo])|ç(?=[ãõ])"
WESTERN += (
    r"|ñ(?=[aeiouáéíóú])|(?<=[a-zç])[ãàùòì](?!\w)|ã(?=[oes])|(?<=[a-z])[èê](?=[bcdfghlmnprstvx]|qu|\b)|œ(?=[uidstn])"
)
WESTERN += r"|û(?=\w)|(?<=[aeiou])ï(?=\w)|’(?=\w)|[–€°«»“”](?!\w)|(?<![aeiouyáéíóú])[æø](?![aeiouyáéíóú])"

CARD = """---
{{ card_data }}
---

# {{ name }}

{{ photos }} photos in {{ classes|length }} classes, made by `prep.py`:

```bash
{{ command }}
```

| class | {{ splits|join(" | ") }} |
| --- | --- | --- | --- |
{%- for class, counts in classes.items() %}
| {{ class }} | {{ counts|join(" | ") }} |
{%- endfor %}
| all | {{ totals|join(" | ") }} |

![Photos by class and split](class_balance.png)

{{ legend }}{% if given %}The splits {{ given|join(", ") }} were given.
{% endif -%}
{% if given|length < 3 %}{{ "The other one" if given else "The split" }} is random, stratified by class,
with seed {{ seed }}.{% endif %}

## What was left out
{% for reason, count in dropped.items() %}
- {{ reason }}: {{ count }}
{%- else %}
Nothing.
{%- endfor %}

Every row that was left out is in `dropped.csv` with its reason.
Files in the folder that no row names: {{ unnamed_files }}.

## What to know
{% for note in notes %}
- {{ note }}.
{%- endfor %}
- All photos are stored upright, turned as their EXIF data says.
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
    """Unpack an archive and those inside it into `room` for files and bytes; ValueError if it cannot be trusted."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:  # names that are not marked as UTF-8 may have any encoding
                names = [one.filename.encode("cp437") for one in packed.infolist() if not one.flag_bits & 0x800]
            packed = zipfile.ZipFile(archive, metadata_encoding=decode(b"\n".join(names), encoding)[1])
            found = ((m, m.filename, m.file_size, stat.S_ISLNK(m.external_attr >> 16)) for m in packed.infolist())
        else:
            packed = tarfile.open(archive)  # noqa: SIM115 - closed below, as the other
            # Which Python has from 3.11.4 on; what leads out of the folder is refused below in any case.
            packed.extraction_filter = getattr(tarfile, "data_filter", None)
            found = ((m, m.name, m.size, not (m.isreg() or m.isdir())) for m in packed)
        with packed:
            members = []
            for member, name, size, link in found:
                room[:] = room[0] - 1, room[1] - size
                if min(room) < 0:
                    raise ValueError(f"it holds more than {MAX_UNPACKED_FILES} files, or is too large to unpack")
                if link or LEADS_OUT.search(name):
                    raise ValueError(f"{name!r} in it is a link, or would lie outside its folder")
                if not HIDDEN.search(name):
                    members.append(member)
            packed.extractall(folder, members)
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
                    files.odd[name] = "outside the folder: the link points outside the image folder"
                elif not real.is_file():
                    files.odd[name] = "missing file: the link points to no file"
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
    the extension, its number. If one file fits better by its folder and another by its name, both may be meant.
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

    def reason(name: str, label: str, known: str, places: list[int]) -> str:
        if known or not label or not name:
            return known or ("empty name" if label else "empty label")
        if len(places) > 1:
            return f"ambiguous name: could be {' or '.join(files.names[place] for place in places[:3])}"
        if places:
            return files.odd.get(files.names[places[0]], "")
        if "://" in name:
            return "URL: only files in the folder are read, so download it first"
        if LEADS_OUT.search(name):
            return "outside the folder: the name points outside the image folder"
        return "missing file"

    found = [find(name, files) for name in table["name"]]
    table["place"] = [places[0] if len(places) == 1 else -1 for places in found]
    table["reason"] = list(map(reason, table["name"], table["label"], table["reason"], found))
    # Where two names mean one file, one that only resembles it means another, which is not there.
    held = table[(table["place"] >= 0) & (table["reason"] == "")]
    held = held[held.groupby("place")["name"].transform("nunique") > 1]
    for at, place, name in zip(held.index, held["place"], held["name"], strict=True):
        if plain(files.names[place]) != plain(name):
            table.at[at, "reason"] = f"ambiguous name: another row also names {files.names[place]}"


def decode(content: bytes, encoding: str | None) -> tuple[str, str]:
    """Return text and encoding: the given one, UTF-8, UTF-16, or Windows-1252 if it reads well; else ValueError."""
    odd, even = (content[start:4000:2].count(0) for start in (1, 0))
    if not encoding and (content[:2] in (b"\xff\xfe", b"\xfe\xff") or 8 * max(odd, even) > len(content[:4000])):
        encoding = "utf-16" if content[0] > 0xFD else "utf-16-le" if odd > even else "utf-16-be"
    try:
        if encoding:
            return content.decode(encoding), encoding
    except (UnicodeError, LookupError) as error:
        raise ValueError(f"it cannot be read as {encoding} ({error}). Save it as UTF-8") from error
    with suppress(UnicodeError):
        return content.decode("utf-8-sig"), "utf-8"
    with suppress(UnicodeError):
        text = content.decode("cp1252")
        words = {word for word in text.split() if not word.isascii()}
        if all(re.sub(WESTERN, "", w.lower()).isascii() and not re.search("[a-zß-ÿ][À-Þ]", w) for w in words):
            print("Names or labels are not UTF-8 and were read as Windows-1252. If they look wrong, give --encoding.")
            return text, "cp1252"
    seen = []
    for one in ("gb18030", "big5", "shift_jis", "euc_kr", "cp1250", "cp1251", "cp1252", "cp1254"):
        with suppress(UnicodeError):
            word = next(word for word in re.split(r"[\s,;|]", content.decode(one)) if not word.isascii())
            seen.append(f"{one} ({word[:20]})")
    raise ValueError(f"it is not UTF-8. Give --encoding; it may be the one that looks right here: {', '.join(seen)}")


def leaves(value, name: str = ""):
    """Yield the dotted name and the text of each single value inside dictionaries and lists."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, name)
    elif value is not None:
        yield name[1:], str(value).strip()


def name_cells(record) -> dict:
    """Return a row of JSON as a dictionary; cells without names get them."""
    cells = record if isinstance(record, list) else [record]
    return record if isinstance(record, dict) else {f"column {at}": cell for at, cell in enumerate(cells, 1)}


def frame_of_records(records: list) -> pd.DataFrame:
    """Return a frame of text with a row for each record; several values of one name are joined by |."""
    rows = []
    for record in records:
        row: dict[str, list[str]] = {}
        for name, text in leaves(name_cells(record)):
            row.setdefault(name, []).append(text)
        rows.append({name: "|".join(dict.fromkeys(filter(None, texts))) for name, texts in row.items()})
    return pd.DataFrame(rows, range(1, len(rows) + 1), dtype=str).fillna("")


def records_of(data) -> list:
    """Return the rows of JSON: a list of them, COCO, {name: label}, {name: {…}}, {label: [names]}, {split: any of these},
    pandas' {column: {row: value}}, {column: [values]} and {"columns": …, "data": …}, or one of them inside a dictionary.
    """
    if isinstance(data, list):
        return data
    if {"images", "annotations", "categories"} <= data.keys():
        names = {one["id"]: one["name"] for one in data["categories"]}
        rows = {one["id"]: {"file": one["file_name"], "label": []} for one in data["images"]}
        for one in data["annotations"]:
            rows[one["image_id"]]["label"].append(names[one["category_id"]])
        return list(rows.values())
    if {"columns", "data"} <= data.keys():
        return [dict(zip(data["columns"], row, strict=True)) for row in data["data"]]
    nested = {name: value for name, value in data.items() if isinstance(value, list | dict)}
    parts = {name: records_of(value) for name, value in nested.items() if split_of(name)}
    if len(parts) > 1:
        return [{"split": name} | name_cells(row) for name, rows in parts.items() for row in rows]
    largest = max(nested.values(), key=len, default=[])
    flat = not any(isinstance(one, list | dict) for one in (largest.values() if isinstance(largest, dict) else largest))
    kinds = {type(value) for value in data.values()} if flat else set()
    if kinds == {dict} and len(largest) > len(data) or kinds == {list} and any(usual(n, IMAGE_COLUMNS) for n in data):
        return pd.DataFrame(data, dtype=object).fillna("").reset_index().to_dict("records")
    if kinds == {list} and not any(map(IMAGE_NAME.search, data)):
        return [{"file": name, "label": label} for label, names in data.items() for name in names]
    if len(largest) > len(data) or len(data) == 1 and nested:
        return records_of(largest)
    return [{"file": name} | (value if isinstance(value, dict) else {"label": value}) for name, value in data.items()]


def read_json(text: str) -> list:
    """Return the rows of JSON or JSON Lines; numbers stay as they are written."""
    read = json.JSONDecoder(parse_int=str, parse_float=str).decode
    try:
        lines = [read(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError:
        lines = [read(text)]
    return records_of(lines[0]) if len(lines) == 1 else lines


def read_cells(text: str, files: Files) -> list[tuple[int, list[str]]]:
    """Return (line, cells) of a text table, without blank lines and comments; ValueError if a quote is not closed."""
    lines = [(n, line) for n, line in enumerate(re.split("\r\n|\r|\n", text), 1) if line.strip()]
    given = re.match(r'\s*"?sep=(.)"?\s*[\r\n]', text)
    lines = lines[1:] if given else lines
    lines = [(n, s) for n, s in lines if s.lstrip()[0] != "#" or find(re.split(r"[\s,;|]", s.strip())[0], files)]
    sample = [re.sub('"[^"]*"', "", line) for _, line in lines[:200]]

    def agreement(separator: str) -> int:
        """Return how many lines have as many cells as the first one, 0 if that is one cell."""
        widths = [len(line.split(separator.strip(" ") or None)) for line in sample] or [1]
        return widths.count(widths[0]) if widths[0] > 1 else 0

    separator = given[1] if given else max(",;\t| ", key=agreement)
    if separator == " ":  # a name may hold spaces before its extension, and so may a label
        split = re.compile(rf"(.*?{IMAGE_NAME.pattern[:-1]}|\S+)(?:\s+(.+))?$", re.IGNORECASE).match
        pairs = [[cell for cell in split(line.strip()).groups() if cell] for _, line in lines]
        words = [[*pair[:1], *" ".join(pair[1:]).split()] for pair in pairs]
        rows = words if len({len(row) for row in words}) == 1 else pairs
        return [(n, row) for (n, _), row in zip(lines, rows, strict=True)]
    rows, read = [], 0
    reader = csv.reader((line + "\n" for _, line in lines), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            rows.append((lines[read][0], row))
            read = reader.line_num
    except csv.Error as error:
        raise ValueError(f"in line {lines[read][0]} the quotes do not match ({error})") from error
    return rows


def frame_of_rows(rows: list[tuple[int, list]], files: Files) -> pd.DataFrame:
    """Return a frame of text of (line, cells); a first row that names a photo is no header. ValueError if cells are lost."""
    rows = [(line, [str(cell).strip() for cell in cells]) for line, cells in rows]
    rows = [(line, cells) for line, cells in rows if any(cells)]
    titles = rows[0][1] if rows else []
    width = len(titles)
    for line, cells in rows:
        if any(cells[width:]):
            said = f"line {line} has {len(cells)} cells, but the first line has {width}: {', '.join(cells)[:100]!r}"
            raise ValueError(f"{said}. Put quotes around a cell that contains the separator")
    frame = pd.DataFrame([cells[:width] for _, cells in rows], [line for line, _ in rows], range(width), str).fillna("")
    named = max(titles, key=lambda title: hits(frame[titles.index(title)].iloc[1:], files), default="")
    if any(map(IMAGE_NAME.search, titles)) or (not usual(named, IMAGE_COLUMNS) and find(named, files)):
        return frame.set_axis([f"column {at + 1}" for at in range(width)], axis=1)
    return frame.set_axis([f"{t} {at + 1}" if t in titles[:at] else t for at, t in enumerate(titles)], axis=1)[1:]


def frame_of_sheets(path: Path, files: Files) -> pd.DataFrame:
    """Return a frame of text with the rows of all sheets of a workbook; a sheet called "Test" gives them that split."""
    sheets = pd.read_excel(path, sheet_name=None, header=None, dtype=str, keep_default_na=False, engine="openpyxl")
    frames = []
    for name, sheet in sheets.items():
        frame = frame_of_rows([*enumerate(sheet.to_numpy().tolist(), 1)], files)
        frame.index = [f"{name} {row}" if len(sheets) > 1 else row for row in frame.index]
        frames.append(frame.assign(sheet=split_of(name)) if any(map(split_of, sheets)) else frame)
    return pd.concat(frames).fillna("")


def read_list(path: Path, encoding: str | None, files: Files) -> pd.DataFrame:
    """Return a list of labels as a frame of text, its index the lines; ValueError if it has no form that is known."""
    try:
        content = path.read_bytes()
        if content[:4] == b"\xd0\xcf\x11\xe0" or 4 * content[:4000].count(0) > 3 * len(content[:4000]):
            raise ValueError("it is an old Excel workbook or another binary file; save it as .xlsx or as a CSV")
        if content[:4] == b"PAR1":
            frame = frame_of_records(pa.parquet.read_table(path).to_pylist())
        elif content[:4] == b"PK\3\4":
            frame = frame_of_sheets(path, files)
        else:
            text = decode(content, encoding)[0]
            is_json = text.lstrip()[:1] in ("{", "[")
            frame = frame_of_records(read_json(text)) if is_json else frame_of_rows(read_cells(text, files), files)
        if frame.empty:
            raise ValueError("it has no rows")
    except Exception as error:
        known = "CSV (also with ;, tabs, | or spaces), JSON, JSON Lines, Excel (.xlsx) and Parquet"
        said = f"--label_path {path} cannot be read: {first_line(error)}. prep.py reads {known}"
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
    """Return the column that names photos; one of numbers only if no other looks like names. ValueError if there is none."""
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


def choose_columns(raw: pd.DataFrame, files: Files, asked: dict) -> pd.DataFrame:
    """Return the rows of a list (name, label, row, split, group, reason); ValueError if it is not clear what holds what."""
    image, label, given, group = (asked[f"{role}_column"] for role in ("image", "label", "split", "group"))
    several = [label] if label is None or label in raw else label.split(",")
    for flag, names in {"image": [image], "label": several, "split": [given], "group": [group]}.items():
        for name in names:
            if name not in (None, *raw, *["none"] * (flag == "split")):
                raise ValueError(f"--{flag}_column {name}: there is no such column. The columns are: {', '.join(raw)}.")
    image = image or image_column_of(raw.drop(columns=[name for name in several if name]), files)
    others = [name for name in raw if name not in (image, group, *several)]
    split, splits = splits_in(raw[[name for name in ([given] if given else others) if name in raw]])
    if given in raw and not splits:
        raise ValueError(f"--split_column {given} needs values such as train, validation and test.")
    others = [name for name in others if name != split and raw[name].str.contains(IMAGE_NAME).mean() < 0.5]
    label = label or label_column_of(raw, others)
    print(f"The column {image!r} names the photos, and {label!r} has their labels.")
    if splits:
        print(f"The column {split!r} gives the splits. To make new ones, add --split_column none.")
    for name in others:
        if not group and name != label and re.search(GROUP_WORDS, name.casefold()):
            print(f"To keep the photos of each {name!r} in one split, add --group_column {name}.")
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
        folders = ", ".join(sorted({name.rpartition("/")[0] or "it" for name in files.names})[:4])
        lists = " or ".join([name for name in files.names if LIST_NAME.search(name)][:3])
        said = f"--image_path has no class folders: its {len(files.names)} files lie directly in {folders}"
        raise ValueError(f"{said}. Make one for each class, or give --label_path{', perhaps ' * bool(lists)}{lists}.")
    return pd.DataFrame({"name": files.names, "label": labels, "row": "", "split": "", "group": "", "reason": ""})


def download(source: str) -> Path:
    """Return the folder with the data files of a dataset on the Hub, `owner/name` or `owner/name@revision`; OSError if none."""
    from huggingface_hub import snapshot_download

    repo_id, _, revision = source.partition("@")
    endings = f"{IMAGE_ENDINGS}|{LIST_ENDINGS}|{ARCHIVE_ENDINGS}|arrow|md".split("|")
    wanted = [f"*.{ending}" for name in endings for ending in (name, name.upper())]
    options = {"repo_type": "dataset", "revision": revision or None, "allow_patterns": wanted}
    said = f"--image_path {source} is not a folder or file, and cannot be downloaded from the Hub"
    advice = "If it is private, log in with `hf auth login`"
    return Path(ask_hub(lambda: snapshot_download(repo_id, **options), said, advice))


def read_dataset(source: Path, folder: Path, asked: dict) -> tuple[Files, pd.DataFrame]:
    """Write the photos of a `datasets` folder or a Parquet file into a folder for each split; return them and their rows."""
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
    image = asked["image_column"] or max(images, key=lambda name: usual(name, IMAGE_COLUMNS), default=None)
    if image not in images:
        raise ValueError(f"Which column holds the photos? Give --image_column, one of: {', '.join(features)}.")
    frames = []
    for split, part in data.items():
        if not split_of(split) and any(map(split_of, data)):
            print(f"The split {split!r} is not train, validation or test, so its {part.num_rows} rows are left out.")
            continue
        (folder / split).mkdir(parents=True)
        rows = []
        for number, row in enumerate(part.cast_column(image, datasets.Image(decode=False))):
            photo = row[image] or {}
            name = f"{split}/{number:07d}{Path(photo.get('path') or '').suffix}"
            (folder / name).write_bytes(photo.get("bytes") or b"")  # a file that is only named is not read
            labels = {one: "" if row[one] in (None, -1) else kind.int2str(row[one]) for one, kind in classes.items()}
            rows.append({one: row[one] for one in row if one not in images} | labels | {image: name})
        frames.append(frame_of_records(rows).set_axis([f"{split} {number}" for number in range(len(rows))]))
    label = asked["label_column"] or (list(classes)[0] if len(classes) == 1 else None)
    files = list_files(folder, folder)
    raw = pd.concat(frames).fillna("")
    return files, choose_columns(raw, files, asked | {"image_column": image, "label_column": label})


def read_rows(asked: dict, scratch: Path) -> tuple[Files, pd.DataFrame]:
    """Return the files and the rows of labels; OSError or ValueError if there are none, or if they are not clear."""
    image_path, label_path, encoding = Path(asked["image_path"]), asked["label_path"], asked["encoding"]
    path = image_path.resolve() if image_path.exists() else download(str(asked["image_path"]))
    within = path if image_path.exists() else path.parents[1]  # the cache of the Hub has links to its own files
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
        return read_dataset(path, scratch / "rows", asked)
    if not path.is_dir():
        raise ValueError(f"--image_path {image_path} is not a folder, a .zip or .tar, a Parquet file or a dataset.")
    if label_path:
        file = Path(label_path) if Path(label_path).is_file() else path / label_path
        if not file.is_file():
            raise OSError(f"--label_path {label_path} is not a file.")
        return files, choose_columns(read_list(file, encoding, files), files, asked)
    rows = []
    for name in files.names:
        folder, slash, base = name.rpartition("/")
        if re.fullmatch(r"metadata\.(csv|jsonl|parquet)", base):
            print(f"The labels come from {name}.")
            rows.append(choose_columns(read_list(path / name, encoding, files), files, asked))
            rows[-1]["name"] = folder + slash + rows[-1]["name"]
    return files, pd.concat(rows, ignore_index=True) if rows else rows_of_folders(files)


def tidy_labels(table: pd.DataFrame) -> list[str]:
    """Give each label of a table its most frequent spelling; return what was changed, in words."""
    labels = table["label"].map(lambda label: " ".join(unicodedata.normalize("NFC", label).split()))
    table["label"] = labels.groupby(labels.str.casefold()).transform(lambda same: same.mode()[0])
    pairs = sorted(set(zip(labels, table["label"], strict=True)))
    return [f"The label {label!r} was taken as {spelling!r}" for label, spelling in pairs if label != spelling]


@contextmanager
def open_photo(file: str):
    """Open the photo in a file, without decoding it yet; OSError if it has none of the accepted formats."""
    if "HEIF" not in Image.OPEN:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    # Opened here, because Pillow 12.3 would memory-map an uncompressed TIFF by its name, and garble a rotated one.
    with open(file, "rb") as binary, Image.open(binary, formats=IMAGE_FORMATS) as image:  # noqa: PTH123 - of many
        yield image


def upright(image: Image.Image) -> Image.Image:
    """Return a photo turned as its EXIF data says, and more than 8 bits scaled from its darkest to its brightest."""
    image = ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else image
    if image.mode[0] not in "IF":
        return image
    grey = np.asarray(image, np.float64)
    known = grey[np.isfinite(grey)]
    low, high = (known.min(), known.max()) if len(known) else (0, 1)
    grey = np.nan_to_num((grey - low) / max(high - low, 1e-12) * 255, nan=0, posinf=255, neginf=0)
    return Image.fromarray(grey.round().astype(np.uint8))


def oddity(grey: Image.Image, small: Image.Image) -> tuple[str, float]:
    """Return what is odd about a photo, "" if nothing, and a degree that is smaller for an odder one.

    Sharpness is the mean square of the Laplacian in the middle 96 x 96 pixels, at a shorter side of 180 to 359 pixels. It is
    below BLUR for 95 % of 500 photos that were blurred (Gaussian, 2 pixels), and for 0.2 % of the same photos before.
    """
    low, high = small.getextrema()
    if high < DARK or low > LIGHT:
        return ("Nearly black", high) if high < DARK else ("Nearly white", -low)
    if min(grey.size) < TINY:
        return f"Smaller than {TINY} pixels", min(grey.size)
    grey = np.asarray(grey.reduce(max(1, min(grey.size) // 180)), np.int16)
    top, left = (max(0, side - 96) // 2 for side in grey.shape)
    middle = grey[top : top + 96, left : left + 96]
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
            # Equal for equal pixels in one shape and mode.
            pixels = xxhash.xxh3_128(photo.tobytes(), seed=2 * photo.width + (mode == "RGBA")).digest()
            grey = photo.convert("L")
            small = grey.resize((17, 16), Image.Resampling.HAMMING)
            shades = np.asarray(small)
            look = np.packbits(shades[:, 1:] > shades[:, :-1]).tobytes()
            heif, large = image.format == "HEIF", bool(image_size) and min(photo.size) > image_size
            if changed or heif or large:  # HEIF becomes JPEG, so that the dataset can be read without a plugin
                smaller = ImageOps.cover(photo, (image_size, image_size)) if large else photo
                jpeg = image.format in ("JPEG", "MPO") or (heif and mode == "RGB")
                # Named by the content, so that the same photos give the same dataset, byte for byte.
                stored = str(copies / f"{pixels.hex()}.{'jpg' if jpeg else 'png'}")
                profile = image.info.get("icc_profile") if image.mode == mode else None
                smaller.save(stored, quality=95, icc_profile=profile)
            return Photo("", stored, pixels, look, *oddity(grey, small), image.mode[0] in "IF")
    except Image.DecompressionBombError:  # beyond twice its own limit Pillow does not tell the size
        return Photo(f"too many pixels: the limit is {MAX_PIXELS}")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - one broken file can make Pillow raise anything, and the run goes on
        return Photo(f"undecodable file: {(str(error) or type(error).__name__).replace(file, 'it')}")


def look_at_photos(table: pd.DataFrame, files: Files, copies: Path, asked: dict) -> pd.DataFrame:
    """Return the table with what each row's photo is; show progress. OSError if a process is killed."""
    read = table.index[table["reason"] == ""]
    names = [f"{files.folder}{os.sep}{files.names[place]}" for place in table["place"][read]]
    look = partial(inspect_photo, copies=copies, image_size=asked["image_size"])
    bar = partial(tqdm, total=len(names), desc="Checking photos", unit="photo")
    if asked["num_proc"] == 1:
        found = list(bar(map(look, names)))
    else:  # not threads, as a small photo takes more time in Python than in Pillow
        pool = ProcessPoolExecutor(asked["num_proc"], initializer=follow_parent)
        try:
            found = list(bar(pool.map(look, names, chunksize=50)))
        except BrokenProcessPool as error:
            said = "A process that checks photos was killed, perhaps because memory ran out. Try --num_proc 1."
            raise OSError(said) from error
        finally:
            pool.shutdown(cancel_futures=True)
    photos = pd.DataFrame(found, read, Photo._fields)
    table.loc[read, "reason"] = photos.pop("reason")
    return table.join(photos)


def follow_parent() -> None:
    """Make this process leave Ctrl-C to the one that started it, and end with that one, even if that one is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def drop_copies(table: pd.DataFrame) -> None:
    """Give every row but the first of each photo a reason to be left out, and all of them if their labels differ."""
    copies = table[table["reason"] == ""]
    copies = copies[copies.duplicated("pixels", keep=False)]
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
    if more than NEIGHBOURS photos have each word that it has in common, such as that of an even sky.
    """
    hashes = np.array(looks, "V32")
    parts, octets, pairs = hashes.view(np.uint64).reshape(-1, 4), hashes.view(np.uint8).reshape(-1, 32), []
    for start in range(0, 32, 2):
        key = np.roll(octets, -start, axis=1)[:, :8].copy().view(">u8").ravel()
        order = np.argsort(key, kind="stable")
        word = key[order] >> 48
        for step in range(1, NEIGHBOURS + 1):
            at = np.flatnonzero(word[:-step] == word[step:])
            pair = order[[at, at + step]]
            differing = np.bitwise_count(parts[pair[0]] ^ parts[pair[1]]).sum(1, dtype=np.uint16)
            pairs.append(pair[:, differing <= NEAR_BITS])
    return np.concatenate(pairs, 1)


def photos_by_class(counts: np.ndarray, size: float) -> np.ndarray:
    """Return how many photos of each class, shape (classes,), make `size` photos, or that share of all, together."""
    total = math.ceil(size * counts.sum()) if size < 1 else int(size)
    ideal = counts * total / counts.sum()
    wanted = np.floor(ideal).astype(int)
    order = np.lexsort((wanted - ideal, wanted > 0))  # classes that would have none come first
    wanted[order[: total - wanted.sum()]] += 1
    return wanted


def split_photos(labels, groups, given, names: list[str], asked: dict) -> np.ndarray:
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
        said = f"Each class needs at least {needed} usable photos to be in every split. These have fewer: {rare}"
        raise ValueError(f"{said}. Add photos, or leave rare classes out with --min_photos {needed} or more.")
    free = {}
    for place in cut:
        size = asked[f"{SPLITS[place]}_size"]
        if size >= left.sum():
            raise ValueError(f"--{SPLITS[place]}_size {size} cannot be met: there are {left.sum()} usable photos.")
        free[place] = photos_by_class(left, size)
        left = left - free[place]
    split, order = given.copy(), pool[np.argsort(groups[pool], kind="stable")]
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    order = np.random.default_rng(asked["seed"]).permutation(len(members))
    for factor, group in product((1, 2), order):  # first those that fit, then those that fit by half
        if len(members[group]) < factor:
            continue
        wanted = np.bincount(labels[members[group]], minlength=len(names))
        for place in cut:
            if not split[members[group]].any() and (wanted <= factor * free[place])[wanted > 0].all():
                free[place] = free[place] - wanted
                split[members[group]] = place
    for place, name in enumerate(SPLITS):
        absent = ", ".join(names[one] for one in sorted(set(labels) - set(labels[split == place])))
        if absent and (place == 0 or place in cut):
            said = f"The {name} split would hold no photo of these classes: {absent}"
            raise ValueError(f"{said}. Add photos, or change --test_size or --validation_size.")
    return split


def write_split(folder: Path, files: list[str], labels: np.ndarray, names: list[str]) -> None:
    """Write photos and labels as `Dataset.save_to_disk` does, but each photo's bytes straight from its file."""
    from datasets import ClassLabel, DatasetInfo, Features
    from datasets import Image as Photos

    features = Features({"image": Photos(), "label": ClassLabel(names=names)})
    schema, digest, name = features.arrow_schema, xxhash.xxh3_64(labels.tobytes()), "data-00000-of-00001.arrow"
    folder.mkdir()
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        for start in range(0, len(files), 100):
            chunk = slice(start, start + 100)
            contents = [open(file, "rb").read() for file in files[chunk]]  # noqa: PTH123, SIM115 - of many
            paths = [file.rsplit(os.sep, 1)[-1] for file in files[chunk]]
            images = pa.StructArray.from_arrays([pa.array(contents), pa.array(paths)], ["bytes", "path"])
            stream.write_batch(pa.record_batch([images, pa.array(labels[chunk])], schema))
            digest.update(b"".join(contents))
    DatasetInfo(features=features).write_to_directory(str(folder))
    state = dict.fromkeys(("_format_columns", "_format_type")) | {"_format_kwargs": {}, "_output_all_columns": False}
    state |= {"_fingerprint": digest.hexdigest(), "_split": folder.name, "_data_files": [{"filename": name}]}
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


def class_balance_plot(counts: pd.DataFrame, path: Path) -> str:
    """Write the picture of the photos by class and split; return the legend of its numbers, "" if it has the names."""
    import matplotlib

    matplotlib.use("agg")
    font = font_of(list(counts.index))
    shown = counts if font else counts.set_axis([f"class {number}" for number in range(1, len(counts) + 1)])
    size = (8, min(1.5 + 0.25 * len(counts), 300))
    axes = shown[::-1].plot.barh(stacked=True, figsize=size, xlabel="photos", ylabel="")
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
        text.set_font(Path(font) if font else None)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.figure.savefig(path, bbox_inches="tight", dpi=100, metadata={"Software": None})
    matplotlib.pyplot.close(axes.figure)
    return "" if font else "".join(f"Class {at} is {escape(one)}. " for at, one in enumerate(counts.index, 1)) + "\n\n"


def contact_sheet(photos: list[tuple[str, str]], path: Path) -> None:
    """Write a picture of the first 80 of some photos, (file, text below it), four in a row."""
    photos = photos[:80]
    sheet = Image.new("RGB", (880, 250 * math.ceil(len(photos) / 4)), "white")
    font = ImageFont.truetype(font_of([text for _, text in photos]) or font_of([]), 12)
    for at, (file, text) in enumerate(photos):
        x, y = 220 * (at % 4) + 10, 250 * (at // 4) + 10
        with open_photo(file) as image:
            sheet.paste(ImageOps.contain(upright(image).convert("RGB"), (200, 200)), (x, y))
        ImageDraw.Draw(sheet).text((x, y + 203), text, "black", font)
    sheet.save(path)


def load_model(model_id: str):
    """Return an image classifier of transformers and its processor; OSError if there is none."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    def load():
        network = AutoModelForImageClassification.from_pretrained(model_id, use_safetensors=True, dtype="float32")
        return network.eval(), AutoImageProcessor.from_pretrained(model_id)

    said = f"--suspects {model_id} cannot be loaded as an image classifier"
    return ask_hub(load, said, "Give a folder, or a name on the Hub")


def find_suspects(usable: pd.DataFrame, labels: np.ndarray, names: list[str], model, seed: int, folder: Path) -> str:
    """Write the photos whose label is probably wrong, the most suspicious first; return how many there are, in words.

    A logistic regression from a model's logits to the labels is cross-validated (Northcutt et al. 2021, Confident Learning).
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
            answer = network(**processor(photos, return_tensors="pt")).logits
        logits.append(answer.log_softmax(1).clamp(min=-14).numpy())
    folds = StratifiedKFold(max(2, min(5, np.bincount(labels).min())), shuffle=True, random_state=seed)
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=1000))
    ranked = {"return_indices_ranked_by": "self_confidence", "filter_by": "predicted_neq_given", "n_jobs": 1}
    chances = cross_val_predict(regression, np.concatenate(logits), labels, cv=folds, method="predict_proba")
    other = find_label_issues(labels, chances, **ranked)
    worst = other[chances[other, labels[other]] < UNLIKELY * chances[other].max(1)]
    found = usable.iloc[worst][["name", "row", "label"]].rename(columns={"name": "file"})
    found["suggested"] = [names[best] for best in chances[worst].argmax(1)]
    found["confidence"] = chances[worst, labels[worst]].round(4)
    found.to_csv(folder / "suspects.csv", index=False)
    if len(found):
        texts = found["file"].str[-30:] + "\n" + found["label"] + ", or " + found["suggested"] + "?"
        contact_sheet(list(zip(usable["stored"].iloc[worst], texts, strict=True)), folder / "suspects.png")
    return f"Labels that may be wrong, listed in suspects.csv with the most suspicious first: {len(found)}"


def escape(name: str) -> str:
    """Return a class name so that Markdown shows it as it is."""
    return re.sub(r"([\\|*_$`\[\]~])", r"\\\1", html.escape(name, quote=False))


def write_dropped(table: pd.DataFrame, path: Path) -> None:
    """Write the list of the rows that were left out, with row and reason."""
    dropped = table[table["reason"] != ""]
    dropped[["name", "row", "reason"]].rename(columns={"name": "file"}).to_csv(path, index=False)


def write_report(folder: Path, report: dict, name: str) -> None:
    """Write the card of the dataset, its numbers, and a picture of them."""
    from huggingface_hub import DatasetCard, DatasetCardData

    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    counts = pd.DataFrame(report["splits"])
    facts = {
        "name": name,
        "photos": counts.to_numpy().sum(),
        "classes": {escape(one): numbers for one, *numbers in counts.itertuples()},
        "totals": list(counts.sum()),
        "legend": class_balance_plot(counts, folder / "class_balance.png"),
        "notes": [escape(note) for note in report["notes"]],
    }
    data = DatasetCardData(pretty_name=name, task_categories=["image-classification"])
    DatasetCard.from_template(data, template_str=CARD, **report | facts).save(folder / "README.md")


def check_flags(asked: dict) -> None:
    """Raise an OSError or ValueError if `prepare` cannot do what it was asked for, before any work."""
    image_path, dst_path = Path(asked["image_path"]), Path(asked["dst_path"])
    for flag in ("test_size", "validation_size"):
        if not 0 < asked[flag] < 1 and (asked[flag] < 1 or asked[flag] % 1):
            raise ValueError(f"--{flag} {asked[flag]:g} is neither a share, such as 0.2, nor a number of photos.")
    for flag in ("image_size", "num_proc", "min_photos"):
        if asked[flag] is not None and asked[flag] < 1:
            raise ValueError(f"--{flag} {asked[flag]} must be 1 or more.")
    if not image_path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", str(asked["image_path"])):
        raise OSError(f"--image_path {image_path} is not a folder or file, nor the name of a dataset (owner/name).")
    if dst_path.exists() and not asked["overwrite"]:
        raise OSError(f"--dst_path {dst_path} exists already. Choose another folder, or add --overwrite to replace it.")
    if dst_path.exists() and not (dst_path / "dataset_dict.json").is_file():
        raise OSError(f"--dst_path {dst_path} is not a dataset, so --overwrite leaves it alone. Choose another folder.")


def check_rows(table: pd.DataFrame, files: Files, copies: Path, asked: dict) -> tuple[pd.DataFrame, int]:
    """Return the table with file, split, photo and reason of each row, and the number of files that no row names."""
    locate(table, files)
    lost = table["name"][(table["place"] < 0) & (table["name"] != "")]
    if len(lost) and not (table["place"] >= 0).any():
        there = ", ".join(map(repr, files.names[:3])) or "nothing"
        raise ValueError(f"No row names a file: the first name is {lost.iloc[0]!r}, but the folder has {there}.")
    folders = read_folders(files.names)[0]
    folders = table["place"].map(lambda place: folders[place] if place >= 0 else "")
    if asked["split_column"] != "none" and not table["split"].any() and len(set(folders) - {""}) > 1:
        table["split"] = folders.replace("", "train")
        print("The folders give the splits. To make new ones, add --split_column none.")
    table = look_at_photos(table, files, copies, asked)
    drop_copies(table)
    usable = table[table["reason"] == ""]
    rare = usable[usable.groupby("label")["label"].transform("size") < asked["min_photos"]]
    table.loc[rare.index, "reason"] = "rare class"
    if len(rare):
        print(f"Classes with fewer than {asked['min_photos']} photos: {', '.join(sorted(set(rare['label'])))}")
    unnamed = set(range(len(files.names))) - set(table["place"])
    return table, sum(not LIST_NAME.search(files.names[place]) for place in unnamed)


def split_rows(usable: pd.DataFrame, names: list[str], labels: np.ndarray, asked: dict) -> tuple[np.ndarray, dict]:
    """Return the place in SPLITS of every usable row, shape (photos,), and what the report says about it."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count, group = len(usable), usable["group"]
    given = sorted(set(usable["split"]) - {""}, key=SPLITS.index)
    given = given if len(given) > 1 else []
    split = usable["split"].map(SPLITS.index).to_numpy() if given else np.zeros(count, int)
    torn = pd.Series(split).groupby(group.where(group != "")).nunique()
    if (torn > 1).any():
        said = f"The group {torn.idxmax()!r} is in more than one of the given splits"
        raise ValueError(f"{said}. To make new ones, add --split_column none.")
    pairs = near_pairs(list(usable["look"]))
    first = pd.Series(range(count)).groupby(group).transform("first").where(group != "", range(count))
    links = np.hstack([pairs, [range(count), first]])
    graph = coo_array((np.ones(links.shape[1], bool), tuple(links)), shape=(count, count))
    together = pd.factorize(connected_components(graph, directed=False)[1])[0]
    split = split_photos(labels, together, split, names, asked)
    near = {"photos": len(np.unique(pairs)), "across": int((split[pairs[0]] != split[pairs[1]]).sum())}
    parts = {label: set(re.split(r"[\s|;,/&+]+", label)) for label in names}
    joined = [label for label in names if len(parts[label]) > 1 and parts[label] <= set(names)]
    several = {
        "Near-duplicate photos, kept in the same split": near["photos"],
        "Near-duplicate pairs that the given splits separate": near["across"],
        "Photos with a label that combines other labels and is a class of its own": usable["label"].isin(joined).sum(),
        "Photos with more than 8 bits of grey, each scaled from its darkest to its brightest": usable["deep"].sum(),
    }
    notes = [f"{said}: {number}" for said, number in several.items() if number]
    for said, odd in usable[usable["odd"] != ""].sort_values("degree", kind="stable").groupby("odd"):
        notes.append(f"{said}: {len(odd)}, such as {', '.join(odd['name'][:5])}")
    table = pd.crosstab(labels, split).reindex(index=range(len(names)), columns=range(3), fill_value=0)
    splits = {name: dict(zip(names, table[place].tolist(), strict=True)) for place, name in enumerate(SPLITS)}
    return split, {"splits": splits, "given": given, "near_duplicates": near, "notes": notes}


def prepare(
    *,
    image_path: Annotated[str | Path, "photos: folder, .zip, .tar, Parquet, saved dataset, or owner/name on the Hub"],
    dst_path: Annotated[str | Path, "folder to write the dataset to"],
    label_path: Annotated[str | Path | None, "labels: CSV, JSON, Excel or Parquet; else each folder is a class"] = None,
    image_column: Annotated[str | None, "column with the names of the photos; guessed if not given"] = None,
    label_column: Annotated[str | None, "column with the labels, or columns of 0 and 1: A,B,C; else guessed"] = None,
    split_column: Annotated[str | None, "column with the splits; guessed if not given; none makes new ones"] = None,
    group_column: Annotated[str | None, "column of groups, such as patients, that each stay in one split"] = None,
    encoding: Annotated[str | None, "encoding of the list; if not given, UTF-8, UTF-16 or Windows-1252"] = None,
    test_size: Annotated[float, "share or number of all photos to keep for the final test"] = 0.3,
    validation_size: Annotated[float, "share or number of the other photos, for choosing the best epoch"] = 0.1,
    min_photos: Annotated[int, "leave out classes with fewer usable photos than this"] = 1,
    seed: Annotated[int, "the same seed gives the same split"] = 42,
    image_size: Annotated[int | None, "scale larger photos down to this many pixels on the shorter side"] = None,
    suspects: Annotated[str | None, "image classifier (folder or Hub id) that looks for wrong labels"] = None,
    num_proc: Annotated[int | None, "number of processes that check photos; 1 starts none"] = None,
    dry_run: Annotated[bool, "show the outcome without writing a dataset"] = False,
    overwrite: Annotated[bool, "replace a dataset that is already there"] = False,
    push_to_hub: Annotated[str | None, "also upload the dataset to this repo, which is private if it is new"] = None,
):
    """Check every row and photo, split what can be used, save it to `dst_path` and return the `DatasetDict`.

    Nothing is written at `dst_path` before everything is ready, and the photos are only read. If they make no dataset,
    what was found is in `NAME.dropped.csv` beside it. A dry run writes no dataset and returns None.

    Raises:
        OSError: if an input does not exist, `dst_path` exists and may not be replaced, or the Hub refuses the upload.
        ValueError: if the list, the sizes or the classes do not allow a dataset.
    """
    asked = dict(locals())
    if "_inheriting" in vars(multiprocessing.current_process()):  # it is being started, and reads the script for that
        sys.exit('prep.py: error: Put the call under if __name__ == "__main__": its processes read your script too.')
    dst_path = Path(dst_path)
    unfinished, replaced = (dst_path.with_name(f".{dst_path.name}.{word}") for word in ("partial", "replaced"))
    restore(dst_path, unfinished, replaced)
    check_flags(asked)
    if push_to_hub:
        create_repo(push_to_hub)  # before the work, so that a missing login shows at once
    model = load_model(suspects) if suspects else None
    new_folders = [folder for folder in dst_path.absolute().parents if not folder.exists()]
    scratch = unfinished / "scratch"
    table = None
    try:
        (scratch / "copies").mkdir(parents=True)
        files, table = read_rows(asked, scratch)
        notes = tidy_labels(table)
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
        split, report = split_rows(usable, names, labels, asked)
        notes += report["notes"]
        for note in notes:
            print(note)
        for name, counts in report["splits"].items():
            by_class = ", ".join(f"{one} {count}" for one, count in counts.items())
            print(f"{name}: {sum(counts.values())} photos ({by_class})")
        if dry_run:
            return None
        for place, name in enumerate(SPLITS):  # in random order, so that it can be streamed
            chosen = np.random.default_rng([seed, place]).permutation(np.flatnonzero(split == place))
            write_split(unfinished / name, usable["stored"].to_numpy()[chosen].tolist(), labels[chosen], names)
        (unfinished / "dataset_dict.json").write_text(json.dumps({"splits": SPLITS}))
        if model:
            notes.append(find_suspects(usable, labels, names, model, seed, unfinished))
            print(notes[-1])
        report |= {"rows": len(table), "dropped": dropped, "unnamed_files": unnamed, "notes": notes}
        report |= {name: asked[name] for name in ("seed", "test_size", "validation_size")}
        report["command"] = command_line(asked)
        write_report(unfinished, report, dst_path.name)
        write_dropped(table, unfinished / "dropped.csv")
        shutil.rmtree(scratch)
        if dst_path.exists():
            dst_path.rename(replaced)
        unfinished.rename(dst_path)
    except ValueError as error:
        if table is None:
            raise
        write_dropped(table, dst_path.with_name(f"{dst_path.name}.dropped.csv"))
        raise ValueError(f"{error} What is wrong with each row is in {dst_path}.dropped.csv.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        for folder in new_folders:
            with suppress(OSError):
                folder.rmdir()
    shutil.rmtree(replaced, ignore_errors=True)
    print(f"Dataset written to {dst_path}; what was left out, and why, is in {dst_path / 'dropped.csv'}")
    if push_to_hub:
        push(dst_path, push_to_hub)
    from datasets import load_from_disk  # heavy, so only now

    return load_from_disk(str(dst_path))


def restore(dst_path: Path, unfinished: Path, replaced: Path) -> None:
    """Clear away what a killed run left; a dataset that it was replacing goes back to its place."""
    if unfinished.exists():
        print(f"Removed {unfinished}, the unfinished dataset of a run that was stopped.")
        shutil.rmtree(unfinished)
    if replaced.exists() and not dst_path.exists():
        print(f"Put back {dst_path}, the dataset that a run was replacing when it was stopped.")
        replaced.rename(dst_path)
    shutil.rmtree(replaced, ignore_errors=True)


def command_line(asked: dict) -> str:
    """Return the command that does what `prepare` was asked for, defaults included, which another version may change."""
    given = {name: value for name, value in asked.items() if value not in (None, False) and name != "num_proc"}
    words = [[f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in given.items()]
    return shlex.join(["python", "prep.py", *sum(words, [])])


def ask_hub(call, said: str, advice: str):
    """Return what `call()` returns, called again for about 20 seconds while the Hub is busy; OSError with what to do."""
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

    said = f"--push_to_hub {repo_id}: this repo cannot be created or written to"
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
            shards = math.ceil(part.data.nbytes / SHARD_BYTES)
            for index in range(shards):
                file = Path(scratch, "data", f"{name}-{index:05d}-of-{shards:05d}.parquet")
                part.shard(shards, index, contiguous=True).to_parquet(file)
        options = {"repo_type": "dataset", "delete_patterns": "data/*", "commit_message": "Upload the dataset"}
        upload = partial(HfApi().upload_folder, repo_id=repo_id, folder_path=scratch, **options)
        said = f"The dataset is complete in {dst_path}, but the upload to the Hub failed"
        commit = ask_hub(upload, said, "To upload it later, run the same command with --overwrite")
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
        needed = parameter.default is parameter.empty
        options = {"help": text, "required": needed, "default": argparse.SUPPRESS if needed else parameter.default}
        if kind is bool:
            options["action"] = "store_true"
        else:
            options["type"] = size if kind is float else int if "int" in str(kind) else str
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
        sys.unraisablehook = lambda _: None  # a progress bar that was interrupted would complain
        print("prep.py: stopped, no dataset was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
