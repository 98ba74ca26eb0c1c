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
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import xxhash
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm.auto import tqdm

# Usual names of columns, the likelier first, in one case and without spaces.
IMAGE_COLUMNS = """imagename filename file image imagepath filepath path img imageid imagefile photo picture files images
imgpath filepaths relpath uri url imageurl jpg png fichier archivo imagen bild datei dateiname 文件名 图片 画像 файл name id"""
LABEL_COLUMNS = """label class breed category labels classname labelname categoryname finelabel species target diagnosis dx tag
choice choices classes classlabel groundtruth coarselabel annotation y etiqueta clase classe klasse categoria 标签 类别 метка"""
SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION = (
    "train|training|trn|entrenamiento|训练",
    "val|valid|validate|validation|dev|devel|eval|evaluation|验证",
)
SPLIT_WORDS = (TRAIN, VALIDATION, "test|testing|tst|holdout|prueba|测试")
GROUP_WORDS = "patient|subject|camera|site|location|lesion|animal|person|session|sequence|burst|group"
EMPTY_LABELS = ("NaN", "nan", "<NA>", "null", "None")  # what programs write where there is none
# Pillow opens dozens of formats, some with decoders that nobody watches; photos come in these (JPEG includes MPO).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")  # HEIF is what iPhones write as .heic
HUB_FILES = (
    "parquet arrow csv tsv txt json jsonl xlsx md zip tar gz tgz jpg jpeg png webp gif bmp tif tiff avif heic heif"
)
IMAGE_NAME = re.compile(r"\.(?:jpe?g|jpe|jfif|mpo|png|webp|gif|bmp|tiff?|avif|hei[cf])$", re.IGNORECASE)
LIST_NAME = re.compile(r"\.(?:csv|tsv|txt|jsonl?|xlsx|parquet)$", re.IGNORECASE)
ARCHIVE_NAME = re.compile(r"\.(?:zip|tar|tgz|tbz2|txz|tar\.(?:gz|bz2|xz))$", re.IGNORECASE)
MAX_UNPACKED_FILES, MAX_UNPACKED_BYTES = 5_000_000, 300_000_000_000  # of an archive and those inside it
MAX_PIXELS = 89_000_000  # above it a small file can fill the memory; Pillow's own warning starts just above
# Of the 256 bits of a difference hash. Measured on 400 photos of 180 x 180 pixels and their copies: at 120 x 120 half differ
# in 2 bits, all in 8 or fewer; at JPEG quality 50 99 % in 15 or fewer. Of 2 million other pairs none differs in 30 or fewer.
NEAR_BITS = 15
NEIGHBOURS = 64  # photos that a photo is compared with for each 16 bits that they have in common
DARK, LIGHT, BLUR, TINY = 40, 215, 20, 32  # grey levels; see `inspect_photo`; pixels
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

{legend}{split}

## What was left out

{dropped}

{notes}

Every row that was left out is in `dropped.csv` with its reason. {unnamed_files} file(s) of the folder were named by no row.
Photos stand upright: the turn that a camera notes in the EXIF data has been made.
"""

HELP = {
    "image_path": "folder, .zip, .tar or Parquet file with the photos, or a dataset: its folder, or its name on the Hub",
    "dst_path": "folder for the dataset",
    "label_path": "list of labels: CSV, JSON, JSON Lines, Excel, Parquet; without it, folders are the classes",
    "image_column": "column with the photos' names; guessed if not given",
    "label_column": "column with the labels, or several with 0 and 1: A,B,C; guessed if not given",
    "split_column": "column with train, validation, test; guessed if not given; none cuts new splits",
    "group_column": "column whose equal values, such as a patient's, stay in one split",
    "encoding": "of the list; without it UTF-8, UTF-16 or, if that reads well, Windows-1252",
    "test_size": "share or number of all photos that is kept for the final test",
    "validation_size": "share or number of the remaining photos that picks the best epoch",
    "min_photos": "leave classes with fewer usable photos out",
    "seed": "the same seed gives the same split",
    "image_size": "scale larger photos down to this shorter side",
    "suspects": "image classifier, a folder or on the Hub, to look for wrong labels with: they are listed, not changed",
    "num_proc": "photos that are checked at the same time; 1: in this process, without others",
    "dry_run": "show the outcome, and write no dataset",
    "overwrite": "replace a dataset that is already there",
    "push_to_hub": "also upload it to this dataset repo, private if it is new",
}


class Files(NamedTuple):
    """The files below a folder."""

    folder: Path
    names: list[str]  # with / between
    index: dict[str, list[int]]  # their places by each way in which a list may name them: `ways_to_name`
    odd: dict[str, str]  # why some of them may not be read


class Photo(NamedTuple):
    """What checking a photo found: why it cannot be used, or else what its pixels are."""

    reason: str = ""
    detail: str = ""
    stored: str = ""  # the file that goes into the dataset: itself, or a copy that is upright, smaller or of 8 bits
    pixels: bytes = b""  # equal for equal pixels
    look: bytes = b""  # its difference hash: 256 bits, most of which equal those of a photo that looks the same
    low: int = 0  # the darkest and the brightest of 17 x 16 parts, grey levels
    high: int = 255
    sharp: float = math.inf  # see `inspect_photo`
    side: int = MAX_PIXELS  # the shorter one, pixels
    deep: bool = False  # whether its grey had more than 8 bits


def split_of(name: str) -> str:
    """Return the split that a folder, a sheet or a value is called after, "" if none: valid_set -> validation."""
    word = r"(?<![^\W\d_])({})[-_ ]?(set|data|images?|imgs?|photos?|集)?(?![^\W\d_])"
    found = (split for split, words in zip(SPLITS, SPLIT_WORDS) if re.search(word.format(words), name.casefold()))  # noqa: B905
    return next(found, "")


def unpack(archive: Path, folder: Path, encoding: str | None, spent: list[int]) -> None:
    """Unpack an archive and those inside it; `spent` counts files and bytes so far. ValueError if it is not to be trusted."""
    folder.mkdir(parents=True, exist_ok=True)
    room = min(MAX_UNPACKED_BYTES, shutil.disk_usage(folder).free)
    try:
        is_zip = zipfile.is_zipfile(archive)
        if is_zip:
            with zipfile.ZipFile(archive) as packed:  # names without the mark of UTF-8 have an encoding of some machine
                names = [one.filename.encode("cp437") for one in packed.infolist() if not one.flag_bits & 0x800]
            encoding = decode(b"\n".join(names), encoding, f"--image_path {archive.name}")[1]
        with zipfile.ZipFile(archive, metadata_encoding=encoding) if is_zip else tarfile.open(archive) as packed:
            members = []
            for one in packed.infolist() if is_zip else packed:
                name, size = (one.filename, one.file_size) if is_zip else (one.name, one.size)
                spent[:] = spent[0] + 1, spent[1] + size
                if spent[0] > MAX_UNPACKED_FILES or spent[1] > room:
                    raise ValueError(f"it holds more than {MAX_UNPACKED_FILES} files or {room} bytes")
                link = stat.S_ISLNK(one.external_attr >> 16) if is_zip else not (one.isreg() or one.isdir())
                if link or re.match(r"[\\/]|[A-Za-z]:", name) or ".." in re.split(r"[\\/]", name):
                    raise ValueError(f"{name!r} in it is a link or leads out of the folder")
                if not re.search(r"(^|[\\/])(\.[^\\/]|__MACOSX[\\/])", name):
                    members.append(one)
            packed.extractall(folder, members, **{} if is_zip else {"filter": "data"})
    except (ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ValueError(f"--image_path {archive.name} is refused: {first_line(error)}.") from error
    for inner in sorted(file for file in folder.rglob("*") if ARCHIVE_NAME.search(file.name) and file.is_file()):
        packed = inner.rename(inner.with_name(f".{inner.name}"))
        unpack(packed, inner.with_name(ARCHIVE_NAME.sub("", inner.name)), encoding, spent)
        packed.unlink()


def list_files(folder: Path, within: Path) -> Files:
    """Return the files below a folder, without hidden ones; what a link leads to is read only if it lies `within` another."""
    files = Files(folder, [], {}, {})
    for root, folders, found in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        start = "" if Path(root) == folder else Path(root).relative_to(folder).as_posix() + "/"
        for name in sorted(found):
            if name.startswith(".") or name in ("Thumbs.db", "desktop.ini"):
                continue
            path = os.path.join(root, name)  # noqa: PTH118 - of a million
            for way in ways_to_name(start + name):
                files.index.setdefault(way, []).append(len(files.names))
            files.names.append(start + name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                real = Path(os.path.realpath(path))
                if not real.is_relative_to(within):
                    files.odd[start + name] = "outside the folder: the link leads out of the image folder"
                elif not real.is_file():
                    files.odd[start + name] = "missing file: the link leads to no file"
            elif not stat.S_ISREG(mode):  # opening a pipe would wait for ever
                files.odd[start + name] = "not a file: it is a pipe or device"
    return files


def plain(name: str) -> str:
    """Return a name as it is compared: composed letters, one case, / for \\."""
    return (name if name.isascii() else unicodedata.normalize("NFC", name)).replace("\\", "/").casefold()


def stem(name: str) -> str:
    """Return a plain name without its extension, which begins with a letter."""
    start, dot, end = name.rpartition(".")
    return start if dot and len(end) < 6 and end[:1].isalpha() and end.isalnum() else name


def ways_to_name(name: str) -> set[str]:
    """Return what a file is looked up by: its path, its folder and name, its name with 007 and 7.0 as 7."""
    path = stem(plain(name))
    folder, _, base = path.rpartition("/")
    if "0" in base:
        base = re.sub(r"0*(\d+)", r"\1", re.sub(r"(^|[^\d.])(\d+)\.0+$", r"\1\2", base))
    return {path, "/".join(path.split("/")[-2:]) if "/" in folder else path, base}


def find(written: str, files: Files) -> list[int]:
    """Return the places of the files that a name may mean: one if it is clear, several if they fit alike, or none.

    In this order: as written, in one Unicode form and case, its longest tail that is a file, its last part, that without
    the extension, its number. Where a file in the same folder and one of the same name contradict, both may be meant.
    """
    for place in files.index.get(stem(plain(written)), ()):
        if files.names[place] == written:
            return [place]
    name = re.sub(r".*[?&]d=", "", written)  # as Label Studio writes local files
    name = urlsplit(name).path if "://" in name else name
    for spelling in dict.fromkeys((name, unquote(name))):
        parts = [part for part in plain(spelling).split("/") if part not in ("", ".")]
        tails = ["/".join(parts[start:]) for start in range(len(parts))]
        ways = dict.fromkeys(way for tail in tails[-5:] for way in (tail, stem(tail), *ways_to_name(tail)))
        fits = {}
        for place in sorted({place for way in ways for place in files.index.get(way, ())[:50]}):
            there = plain(files.names[place]).split("/")
            same = 2 if there[-1] == parts[-1] else int(stem(there[-1]) in (parts[-1], stem(parts[-1])))
            common = len(os.path.commonprefix([there[-2::-1], parts[-2::-1]]))
            fits[place] = (same, common == len(there) - 1, common)
        if fits:
            best = max(fits.values()), max(fits.values(), key=lambda fit: fit[1:] + fit[:1])
            return [place for place, fit in fits.items() if fit in best]
    return []


def locate(table, files: Files):
    """Return the table with the place of each row's file, -1 if none, and the reason why it has none that may be read."""
    found = []
    for name, label, note in zip(table["name"], table["label"], table["note"], strict=True):
        places = find(name, files) if name else []
        exact, reason = False, "missing file"
        if not label:
            reason = f"empty label: {note}"
        elif not name:
            reason = "empty name"
        elif len(places) > 1:
            reason = f"ambiguous name: could be {' or '.join(files.names[place] for place in places[:3])}"
        elif places:
            reason, exact = files.odd.get(files.names[places[0]], ""), plain(files.names[places[0]]) == plain(name)
        elif "://" in name:
            reason = "URL: only files of the folder are read; download it first"
        elif re.match(r"[A-Za-z]:|[\\/]", name) or ".." in re.split(r"[\\/]", name):
            reason = "outside the folder: the name leads out of the image folder"
        else:
            with suppress(OSError, ValueError):  # a name that is too long, or has a NUL
                reason = "not a file: it is a folder" if (files.folder / name).is_dir() else reason
        found.append((places[0] if len(places) == 1 else -1, exact, *(reason + ": ").split(": ")[:2]))
    for column, values in zip(("place", "exact", "reason", "detail"), zip(*found, strict=True), strict=False):
        table[column] = values
    # Where two names mean one file, one that only resembles it means another, which is not there.
    held = table[(table["place"] >= 0) & (table["reason"] == "")]
    held = held[(held.groupby("place")["name"].transform("nunique") > 1) & ~held["exact"].astype(bool)]
    table.loc[held.index, "detail"] = [f"another row names {files.names[place]} too" for place in held["place"]]
    table.loc[held.index, "reason"] = "ambiguous name"
    return table


def decode(content: bytes, encoding: str | None, called: str) -> tuple[str, str]:
    """Return the text of bytes and its encoding: the given one, UTF-8, UTF-16, or Windows-1252 if that is sensible.

    Raises ValueError if it is none of these; it proposes --encoding, and says how the text reads in some.
    """
    try:
        if encoding:
            return content.decode(encoding), encoding
        odd, even = (content[start:4000:2].count(0) for start in (1, 0))
        if content[:2] in (b"\xff\xfe", b"\xfe\xff") or 8 * max(odd, even) > len(content[:4000]):
            encoding = "utf-16" if content[0] > 0xFD else "utf-16-le" if odd > even else "utf-16-be"
            return content.decode(encoding), encoding
    except (UnicodeError, LookupError) as error:
        raise UnicodeError(f"{called} cannot be read as {encoding} ({error}). Save it again, as UTF-8.") from error
    with suppress(UnicodeError):
        return content.decode("utf-8-sig"), "utf-8"
    with suppress(UnicodeError):
        text = content.decode("cp1252")
        words = {word for word in text.split() if not word.isascii()}
        if not any(
            re.search("[a-zß-ÿ][À-Þ]", word) or not re.sub(WESTERN, "", word.lower()).isascii() for word in words
        ):
            return text, "cp1252"
    seen = []
    for one in ("gb18030", "big5", "shift_jis", "euc_kr", "cp1250", "cp1251", "cp1252", "cp1254"):
        with suppress(UnicodeError):
            word = next(word for word in re.split(r"[\s,;|]", content.decode(one)) if not word.isascii())
            seen.append(f"{one} ({word[:20]})")
    raise UnicodeError(f"{called} is not UTF-8. Give --encoding, as it reads right: {', '.join(seen)} or another one.")


def flatten(value, name: str = ""):
    """Yield (dotted name, text) of each single value inside dictionaries and lists."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}".removeprefix("."))
    elif isinstance(value, str) or not hasattr(value, "__iter__"):
        yield name, "" if value is None else str(value).strip()
    elif not isinstance(value, bytes):
        for inner in value:
            yield from flatten(inner, name)


def rows_of_json(data) -> list:
    """Return the rows (dictionaries, or lists) of JSON in the forms that tools write.

    A list of rows; {name: label}, {name: {…}}, {label: [names]}; pandas' {column: {row: value}}, {column: [values]} and
    {"columns": …, "data": …}; COCO, VIA, FiftyOne; any of them as a part of a dictionary.
    """
    if isinstance(data, list):
        return data
    if {"images", "annotations", "categories"} <= data.keys():
        names = {one["id"]: one["name"] for one in data["categories"]}
        labels: dict = {one["id"]: [] for one in data["images"]}
        for one in data["annotations"]:
            labels[one["image_id"]].append(names[one["category_id"]])
        return [{"file": one["file_name"], "label": labels[one["id"]]} for one in data["images"]]
    if "_via_img_metadata" in data:
        return list(data["_via_img_metadata"].values())
    if {"columns", "data"} <= data.keys():
        return [dict(zip(data["columns"], row, strict=True)) for row in data["data"]]
    if isinstance(data.get("classes"), list) and isinstance(data.get("labels"), dict):
        return [{"file": name, "label": data["classes"][int(place)]} for name, place in data["labels"].items()]
    values = list(data.values())
    nested = [value for value in values if isinstance(value, list | dict)]
    if not nested:
        return [{"file": name, "label": label} for name, label in data.items()]
    if all(isinstance(value, dict) for value in values):
        rows = list(values[0])
        if [rows] * len(values) == [*map(list, values)] and all(
            row.isdecimal() or IMAGE_NAME.search(row) for row in rows
        ):
            return [{"index": row} | {column: data[column][row] for column in data} for row in rows]
        return [{"file": name} | value for name, value in data.items()]
    if all(isinstance(value, list) and not any(isinstance(v, list | dict) for v in value) for value in values):
        if any(usual(column, IMAGE_COLUMNS) for column in data):
            return [dict(zip(data, row, strict=True)) for row in zip(*values, strict=True)]
        if all(map(IMAGE_NAME.search, data)):
            return [{"file": name, "label": label} for name, label in data.items()]
        return [{"file": name, "label": label} for label, names in data.items() for name in names]
    return max(map(rows_of_json, nested), key=len)


def frame_of_records(records: list):
    """Return a frame of text with a row for each dictionary or list; several values of one name are joined by |."""
    rows = []
    for record in records:
        row: dict[str, list[str]] = {}
        fields = record if isinstance(record, dict) else {f"column {at}": cell for at, cell in enumerate(record, 1)}
        for name, text in flatten(fields):
            row.setdefault(name, []).append(text)
        rows.append({name: "|".join(dict.fromkeys(filter(None, texts))) for name, texts in row.items()})
    return pd.DataFrame(rows, range(1, len(rows) + 1), dtype=str).fillna("")


def split_lines(text: str, files: Files) -> list[tuple[int, list[str]]]:
    """Return (line, cells) of a text table, without blank lines and comments; ValueError if a quote is not closed."""
    lines = re.split("\r\n|\r|\n", text)
    given = re.match(r'\s*"?sep=(.)"?\s*$', lines[0])
    kept = [place for place, line in enumerate(lines) if line.strip() and not (given and place == 0)]
    kept = [n for n in kept if lines[n].lstrip()[0] != "#" or find(re.split(r"[\s,;|]", lines[n].strip())[0], files)]
    sample = [lines[place] for place in kept[:200]]

    def fit(separator: str | None) -> float:
        rows = csv.reader(sample, delimiter=separator, skipinitialspace=True) if separator else map(str.split, sample)
        counts = [len(row) for row in rows] or [0]
        return counts.count(counts[0]) / len(counts) if counts[0] > 1 else 0

    separator = given[1] if given else max(",;\t|", key=fit)
    if not given and (not fit(separator) or fit(separator) < fit(None)):
        names = [re.match(rf"(.*?{IMAGE_NAME.pattern[:-1]})\s+(.+)", lines[place].strip(), re.I) for place in kept]
        if fit(None) < 1 and all(names):  # a name or a label holds spaces
            return [(place + 1, list(name.groups())) for place, name in zip(kept, names, strict=True)]
        width = min((len(line.split()) for line in sample), default=1)
        return [(place + 1, lines[place].rsplit(maxsplit=max(width - 1, 0))) for place in kept]
    options = {"delimiter": separator, "skipinitialspace": True, "strict": True}
    reader, rows, read = csv.reader((lines[place] + "\n" for place in kept), **options), [], 0
    try:
        for row in reader:
            rows.append((kept[read] + 1, row))
            read = reader.line_num
    except csv.Error as error:
        raise ValueError(f"in line {kept[read] + 1} a quote does not end its cell ({error})") from error
    return rows


def frame_of_rows(rows: list[tuple[int, list]], files: Files):
    """Return a frame of text of (line, cells); a first row that names a photo is no header. ValueError if cells are lost."""
    rows = [(line, [str(cell).strip() for cell in cells]) for line, cells in rows]
    rows = [(line, cells) for line, cells in rows if any(cells)]
    first = rows[0][1] if rows else []
    for line, cells in rows:
        if any(cells[len(first) :]):
            said = f"line {line} has {len(cells)} cells, but the first one {len(first)}: {', '.join(cells)[:100]!r}"
            raise ValueError(f'{said}; put "quotes" around a cell that holds the separator')
    body = [cells[: len(first)] + [""] * (len(first) - len(cells)) for _, cells in rows]
    hits = [sum(bool(find(cells[at], files)) for cells in body[1:200]) for at in range(len(first))]
    named = first[hits.index(max(hits))] if first else ""
    if any(map(IMAGE_NAME.search, first)) or (not usual(named, IMAGE_COLUMNS) and find(named, files)):
        titles = [f"column {at + 1}" for at in range(len(first))]
    else:
        titles = [name if name not in first[:at] else f"{name} {at + 1}" for at, name in enumerate(first)]
        body, rows = body[1:], rows[1:]
    return pd.DataFrame(body, [line for line, _ in rows], titles, dtype=str)


def frame_of_sheets(sheets: dict, files: Files):
    """Return a frame of text with the rows of the sheets that name photos. ValueError if their columns differ."""
    cells = {name: enumerate(sheet.fillna("").to_numpy().tolist(), 1) for name, sheet in sheets.items()}
    frames = {name: frame for name in cells if len(frame := frame_of_rows(list(cells[name]), files))}
    named = {
        n: f for n, f in frames.items() if any(cell and find(cell, files) for cell in f.head(100).to_numpy().ravel())
    }
    frames = named or frames
    if len({tuple(frame.columns) for frame in frames.values()}) > 1:
        raise ValueError(f"the columns of its sheets {', '.join(frames)} differ; save the right one as a CSV")
    for name, frame in frames.items() if len(frames) > 1 else ():
        frame.index = [f"{name} {row}" for row in frame.index]
        if all(map(split_of, frames)) or frame.shape[1] == 1:
            frame["sheet"] = name
    return pd.concat(frames.values()) if frames else pd.DataFrame()


def read_list(path: Path, encoding: str | None, files: Files):
    """Return a list of labels as a frame of text, its index the lines, and its encoding, "" if it has none.

    Raises ValueError if it is no list in a form that is known, or a row has more cells than the first one.
    """
    content, used = path.read_bytes(), ""
    try:
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        if content[:4] == b"\xd0\xcf\x11\xe0" or 4 * content[:4000].count(0) > 3 * len(content[:4000]):
            raise ValueError("it is an old Excel workbook or another binary file; save it as .xlsx or as a CSV")
        if content[:4] == b"PAR1":
            frame = pd.read_parquet(io.BytesIO(content), dtype_backend="numpy_nullable").astype(object)
            frame = frame_of_records(frame.where(frame.notna(), None).to_dict("records"))
        elif content[:4] == b"PK\3\4":
            options = {"sheet_name": None, "header": None, "dtype": str, "keep_default_na": False}
            frame = frame_of_sheets(pd.read_excel(io.BytesIO(content), **options), files)
        else:
            text, used = decode(content, encoding, f"--label_path {path}")
            frame = None
            if text.lstrip()[:1] in ("{", "["):
                read = json.JSONDecoder(parse_int=str, parse_float=str).decode
                lines = {number: line for number, line in enumerate(text.splitlines(), 1) if line.strip()}
                try:
                    frame = frame_of_records(rows_of_json(read(text)))
                except json.JSONDecodeError as error:
                    try:
                        frame = frame_of_records([read(line) for line in lines.values()]).set_axis([*lines])
                    except json.JSONDecodeError:
                        if path.suffix.casefold().startswith(".json"):
                            raise ValueError(f"it is not JSON: {error}") from error
            frame = frame_of_rows(split_lines(text, files), files) if frame is None else frame
        if frame.empty:
            raise ValueError("it has no rows")
        return frame, used
    except UnicodeError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError, zipfile.BadZipFile, zlib.error) as error:
        known = "a CSV (also with ;, tabs, | or spaces), JSON, JSON Lines, an Excel workbook (.xlsx) or Parquet"
        said = f"--label_path {path} cannot be read: {first_line(error)}. It may be {known}"
        raise ValueError(f"{said}, with the name of a photo and its label in each row.") from error


def header(name: str) -> str:
    """Return a column's name as the usual ones are written: one case, no accents, spaces, or "data." in front."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKD", name.casefold().rsplit(".", 1)[-1]))


def usual(column: str, names: list[str]) -> int:
    """Return how usual the name of a column is, 0 if it is none of the usual ones."""
    return len(names) - names.split().index(header(column)) if header(column) in names.split() else 0


def are_numbers(cells) -> bool:
    """Return whether all cells of a column that are not empty are numbers."""
    return bool(cells.str.fullmatch(r"-?\d*[.,]?\d*(e[+-]?\d+)?").all())


def image_column_of(table, files: Files) -> str:
    """Return the column whose cells name photos; one of numbers only if no other looks like names. ValueError if none does."""
    head = table.head(1000)
    hits = {column: len({place for name in head[column] for place in find(name, files)[:1]}) for column in head}
    like = {column: head[column].str.contains(IMAGE_NAME).mean() > 0.5 for column in head}
    words = [column for column in head if not are_numbers(head[column])]
    named = [c for c in words if hits[c] or like[c] or (usual(c, IMAGE_COLUMNS) and head[c].is_unique)]
    if named:
        return max(named, key=lambda column: (like[column], hits[column], usual(column, IMAGE_COLUMNS)))
    known = {column: usual(column, IMAGE_COLUMNS) for column in head}
    numbers = sorted((known[column], column) for column in head if hits[column] or known[column])
    if not numbers or (len(numbers) > 1 and not numbers[-1][0]):
        raise ValueError(f"Which column names the photos? Give --image_column, one of: {', '.join(table)}.")
    return numbers[-1][1]


def splits_in(table) -> tuple[str | None, dict[str, str]]:
    """Return the column that gives splits, and the split of each of its values; (None, {}) if none does."""
    for column in sorted(table, key=lambda column: not re.search("split|set|partition|usage|phase", header(column))):
        values = [value for value in table[column].unique() if value][:20]
        flag = re.match("is_?(train|valid|val|test)", column.casefold())
        if flag and {value.casefold() for value in values} in ({"0", "1"}, {"true", "false"}):
            yes, no = split_of(flag[1]), "test" if split_of(flag[1]) == "train" else "train"
            return column, {value: yes if value.casefold() in ("1", "true") else no for value in values}
        splits = {value: split_of(value) for value in values}
        if len(values) < 20 and len(set(splits.values())) > 1 and all(splits.values()):
            return column, splits
    return None, {}


def label_column_of(table, columns: list[str]) -> str:
    """Return which of the columns without another meaning holds the labels. ValueError with a proposal if it is not clear."""
    marks = {"0", "1", "0.0", "1.0", "True", "False", "true", "false", ""}
    binary = [column for column in columns if set(table[column].unique()) <= marks]
    best = max(columns, key=lambda column: usual(column, LABEL_COLUMNS), default="")
    known = best if usual(best, LABEL_COLUMNS) else ""
    ones = table[binary].isin(["1", "1.0", "True", "true"]).sum(axis=1) == 1
    if len(binary) > 1 and (not known or known in binary) and ones.mean() > 0.5:
        raise ValueError(f"Each class has a column of 0 and 1. To join them, give --label_column {','.join(binary)}")
    counted = [column for column in columns if are_numbers(table[column]) and table[column].is_unique]
    left = [c for c in columns if c not in counted and c and not re.match("unnamed|index$", c.casefold())]
    if known or len(left) == 1:
        return known or left[0]
    raise ValueError(f"Which column holds the labels? Give --label_column, one of: {', '.join(table)}.")


def join_columns(table, columns: list[str]):
    """Return the name of the one column that says 1 in each row. ValueError with the row in which none or several do."""
    cells = table[columns].apply(lambda column: column.str.casefold())
    ones, zeros = cells.isin(["1", "1.0", "true", "yes", "x"]), cells.isin(["", "0", "0.0", "false", "no"])
    wrong = ~(ones | zeros).all(axis=1) | (ones.sum(axis=1) != 1)
    if wrong.any():
        said = ", ".join(f"{column} {table.at[wrong.idxmax(), column]!r}" for column in columns)
        raise ValueError(f"Row {wrong.idxmax()} needs a 1 in exactly one column of --label_column, but has: {said}.")
    return ones.idxmax(axis=1)


def choose_columns(raw, files: Files, encoding: str, image_column, label_column, split_column, group_column):
    """Return the rows of a list with the columns name, label, split, group, row and note, and say what was guessed.

    Raises ValueError if a column is not there or cannot be told, or a value of the split column is no split.
    """
    several = [label_column] if label_column in raw else (label_column or "").split(",")
    for flag, columns in (
        ("--image_column", [image_column]),
        ("--label_column", several),
        ("--split_column", [split_column if split_column != "none" else None]),
        ("--group_column", [group_column]),
    ):
        for column in columns:
            if column and column not in raw:
                raise ValueError(f"{flag} {column}: there is no such column; there are: {', '.join(raw)}.")
    image = image_column or image_column_of(raw.drop(columns=filter(None, several)), files)
    others = [column for column in raw if column not in (image, group_column, *several)]
    splits: dict[str, str] = {}
    if split_column is None:
        split_column, splits = splits_in(raw[others])
    elif split_column != "none":
        splits = {value: split_of(value) for value in raw[split_column].unique() if value}
        splits = splits if all(splits.values()) else splits_in(raw[[split_column]])[1]
        if not splits:
            raise ValueError(f"--split_column {split_column} needs values such as train, validation and test.")
    others = [c for c in others if c != split_column and raw[c].str.contains(IMAGE_NAME).mean() < 0.5]
    label = label_column or label_column_of(raw, others)
    print(f"Photos are named by the column {image!r}, their labels are in {label!r}.")
    if encoding == "cp1252":
        print("The list is not UTF-8; it was read as Windows-1252. --encoding says otherwise.")
    if splits:
        print(f"The splits are given by the column {split_column!r}; --split_column none cuts new ones.")
    for column in others:
        if not group_column and column != label and re.search(GROUP_WORDS, column.casefold()):
            print(f"To keep the photos of each {column!r} in one split, give --group_column {column}.")
    labels = join_columns(raw, several) if len(several) > 1 else raw[label].copy()
    for at in labels.index[labels.str.fullmatch(r"\[.*\]")]:  # a list in a cell
        labels[at] = "|".join(re.findall(r"[^][\"',\s][^][\"',]*", labels[at]))
    empty = labels.isin(EMPTY_LABELS)
    rows = pd.DataFrame({"name": raw[image], "label": labels.mask(empty, ""), "row": raw.index.astype(str)})
    rows["split"] = raw[split_column].map(lambda value: splits.get(value, "train")) if splits else ""
    rows["group"] = raw[group_column] if group_column else ""
    rows["note"] = ("written as " + labels).where(empty, "")
    return rows[(rows["name"] != "") | (rows["label"] != "")].reset_index(drop=True)


def read_folders(files: Files) -> tuple[list[str], list[str]]:
    """Return the split and the class that each file's folders stand for, "" where there is none.

    A folder that all photos lie in means nothing. Folders called after splits are splits if there are no others, or if the
    same class folders are in them; they may also lie inside the class folders.
    """
    parts = [name.split("/")[:-1] for name in files.names]
    photos = [place for place, name in enumerate(files.names) if IMAGE_NAME.search(name)] or range(len(parts))
    splits = [""] * len(parts)
    while True:
        below: dict[str, set[str]] = {}
        for place in photos:
            for folder, *deeper in [parts[place]] if parts[place] else []:
                below.setdefault(folder, set()).update("a split" if split_of(name) else name for name in deeper[:1])
        known = [name for name in below if split_of(name)]
        same = len(known) > 1 and set.intersection(*(below[name] for name in known))
        if known and (same or len(known) == len(below)):
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


def rows_of_folders(files: Files, image_path):
    """Return the rows that class folders stand for: every file, its class the label. ValueError if there are none."""
    labels = read_folders(files)[1]
    if not any(labels):
        folders = sorted({name.rpartition("/")[0] or "itself" for name in files.names})[:4]
        lists = [name for name in files.names if LIST_NAME.search(name)][:3]
        raise ValueError(
            f"--image_path {image_path} has no class folders: its {len(files.names)} files lie directly in {', '.join(folders)}."
            " Put the photos of each class into a folder with its name, or give a list of the labels with --label_path"
            f"{', perhaps ' + ' or '.join(lists) if lists else ''}."
        )
    return pd.DataFrame({"name": files.names, "label": labels, "row": "", "split": "", "group": "", "note": ""})


def read_dataset(path: Path, scratch: Path, image_column: str | None):
    """Write the photos of a `datasets` folder or a Parquet file into `scratch`; return the other columns as text.

    Returns:
        the frame, the column with the files in `scratch`, and the one with the labels if only one has ClassLabels.

    Raises ValueError if it cannot be read or has no column of photos.
    """
    import datasets

    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            data = datasets.load_from_disk(str(path))
        else:
            source = ("parquet", {"data_files": str(path)}) if path.is_file() else (str(path), {})
            data = datasets.load_dataset(source[0], **source[1], cache_dir=str(scratch / "cache"))
    except Exception as error:
        raise ValueError(f"--image_path {path} cannot be read as a dataset: {first_line(error)}.") from error
    data = data if isinstance(data, dict) else {"all": data}
    features = next(iter(data.values())).features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image) or "binary" in str(kind)]
    image = image_column or max(images, key=lambda name: usual(name, IMAGE_COLUMNS), default=None)
    if image not in images:
        raise ValueError(f"Which column holds the photos? Give --image_column, one of: {', '.join(features)}.")
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    frames = []
    for split, part in data.items():
        if not split_of(split) and any(map(split_of, data)):
            print(f"The split {split!r} is none of train, validation and test: its {part.num_rows} rows are left out.")
            continue
        (scratch / "rows" / split).mkdir(parents=True)
        part, rows = part.cast_column(image, datasets.Image(decode=False)), []
        for number, row in enumerate(part):
            photo = row.pop(image) or {}
            for name in classes:
                row[name] = features[name].int2str(row[name]) if row[name] is not None and row[name] >= 0 else ""
            row[image] = photo.get("path") or ".jpg"
            if photo.get("bytes"):
                row[image] = f"{split}/{number:07d}{Path(row[image]).suffix}"
                (scratch / "rows" / row[image]).write_bytes(photo["bytes"])
            rows.append({name: row[name] for name in row if name == image or name not in images})
        frames.append(frame_of_records(rows).set_axis([f"{split} {number}" for number in range(len(rows))]))
    return pd.concat(frames).fillna(""), image, classes[0] if len(classes) == 1 else None


def download(source: str) -> Path:
    """Return the folder with the data files of a dataset on the Hub, `owner/name` or `owner/name@revision`; OSError if none."""
    from huggingface_hub import snapshot_download

    repo_id, _, revision = source.partition("@")
    wanted = [f"*.{ending}" for name in HUB_FILES.split() for ending in (name, name.upper())]
    try:
        options = {"repo_type": "dataset", "revision": revision or None, "allow_patterns": wanted}
        return Path(retried(lambda: snapshot_download(repo_id, **options)))
    except (OSError, ValueError) as error:
        said = f"--image_path {source} is neither a folder or file, nor a dataset that the Hub hands out"
        raise OSError(f"{said} ({first_line(error)}). Log in with `hf auth login` if it is private.") from error


def read_rows(image_path, label_path, scratch: Path, encoding: str | None, **columns):
    """Return the files with photos and the rows of labels: name, label, row, split, group, note.

    Raises OSError or ValueError if there are none, or it is not clear what means what.
    """
    path = Path(image_path).resolve() if Path(image_path).exists() else download(str(image_path))
    within = (
        path.parent.parent if path.parent.name == "snapshots" else path
    )  # the Hub's cache has links to its own files
    files = list_files(path, within) if path.is_dir() else Files(path.parent, [path.name], {}, {})
    packed, spent = [name for name in files.names if ARCHIVE_NAME.search(name)], [0, 0]
    if packed and not any(map(IMAGE_NAME.search, files.names)):
        for name in packed:
            target = scratch / "unpacked" / (ARCHIVE_NAME.sub("", name) if path.is_dir() else "")
            unpack(files.folder / name, target, encoding, spent)
        path = within = scratch / "unpacked"
        files = list_files(path, within)
    tables = [name for name in files.names if name.endswith((".parquet", "dataset_dict.json", "state.json"))]
    if tables and not label_path and not any(map(IMAGE_NAME.search, files.names)):
        raw, image, label = read_dataset(path, scratch, columns["image_column"])
        files, columns["image_column"] = list_files(scratch / "rows", scratch), image
        return files, choose_columns(raw, files, "", **columns | {"label_column": columns["label_column"] or label})
    if not path.is_dir():
        raise ValueError(
            f"--image_path {image_path} is neither a folder, a .zip or .tar, a Parquet file nor a dataset."
        )
    if label_path:
        label_path = Path(label_path) if Path(label_path).is_file() else path / label_path
        raw, used = read_list(label_path, encoding, files)
        return files, choose_columns(raw, files, used, **columns)
    rows = []
    for name in files.names:
        folder, slash, base = name.rpartition("/")
        if re.fullmatch(r"metadata\.(csv|jsonl|parquet)", base):
            print(f"The labels are those of {name}.")
            raw, used = read_list(path / name, encoding, files)
            rows.append(choose_columns(raw, files, used, **columns))
            rows[-1]["name"] = folder + slash + rows[-1]["name"]
    return files, pd.concat(rows, ignore_index=True) if rows else rows_of_folders(files, image_path)


def tidy_labels(table) -> dict[str, list[str]]:
    """Give each label of a table its most frequent spelling; return {spelling: [others]}, and say so."""
    table["label"] = [" ".join(unicodedata.normalize("NFC", label).split()) for label in table["label"]]
    counts, used, merged = Counter(table["label"]), {}, {}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        spelling = used.setdefault(label.casefold(), label)
        if spelling != label:
            merged.setdefault(spelling, []).append(label)
            print(f"Label {label!r} is taken as {spelling!r}.")
    table["label"] = [used[label.casefold()] for label in table["label"]]
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


def scale_grey(image):
    """Return a picture of more than 8 bits as one of 8: its darkest value becomes 0, its brightest 255."""
    grey = np.asarray(image, np.float64)
    known = grey[np.isfinite(grey)]
    low, high = (known.min(), known.max()) if len(known) else (0, 1)
    grey = np.nan_to_num((grey - low) / max(high - low, 1e-12) * 255, nan=0, posinf=255, neginf=0)
    return Image.fromarray(grey.round().astype(np.uint8))


def inspect_photo(file: str, copies: Path, image_size: int | None) -> Photo:
    """Return what a photo is; a copy goes to `copies` if it has to be turned, made smaller or have its grey scaled.

    `sharp` is the variance of the Laplacian in the middle 96 x 96 pixels, at a shorter side of 180 to 359 pixels. Below BLUR
    it is 95 % of 500 photos that were blurred (Gaussian, 2 pixels), and 0.2 % of the same photos as they were.
    """
    try:
        with open_photo(file) as image:
            if image.width * image.height > MAX_PIXELS:
                return Photo("too many pixels", f"{image.width} x {image.height}, the limit is {MAX_PIXELS}")
            turned = image.getexif().get(0x0112, 1) != 1
            image.load()  # verify() would accept a JPEG that is cut off in the middle
            upright = ImageOps.exif_transpose(image) if turned else image
            deep = upright.mode.startswith("I") or upright.mode == "F"
            upright = scale_grey(upright) if deep else upright
            mode = "RGBA" if upright.has_transparency_data else "RGB"
            plain = upright if upright.mode == mode else upright.convert(mode)
            pixels = xxhash.xxh3_128(plain.tobytes(), seed=plain.width * (len(mode) - 2)).digest()
            grey, much = plain.convert("L"), min(plain.size) // 180
            grey = grey.reduce(much) if much > 1 else grey
            small = grey.resize((17, 16), Image.Resampling.HAMMING)
            look = np.asarray(small)
            left, top = max(0, grey.width - 96) // 2, max(0, grey.height - 96) // 2
            middle = np.asarray(
                grey.crop((left, top, min(left + 96, grey.width), min(top + 96, grey.height))), np.int16
            )
            edges = middle[2:, 1:-1] + middle[:-2, 1:-1] + middle[1:-1, 2:] + middle[1:-1, :-2] - 4 * middle[1:-1, 1:-1]
            stored, heif, large = file, image.format == "HEIF", bool(image_size) and min(plain.size) > image_size
            if turned or heif or deep or large:  # HEIF as JPEG in the dataset, which then needs no plugin to be read
                smaller = ImageOps.cover(plain, (image_size, image_size)) if large else plain
                jpeg = image.format in ("JPEG", "MPO") or (heif and mode == "RGB")
                # Named by the content, so that the same photos give the same dataset, byte for byte.
                stored = str(copies / f"{pixels.hex()}.{'jpg' if jpeg else 'png'}")
                profile = image.info.get("icc_profile") if image.mode == plain.mode else None
                smaller.save(stored, quality=95, icc_profile=profile)
            sharp = float(edges.var(dtype=np.float32)) if edges.size else math.inf
            bits = np.packbits(look[:, 1:] > look[:, :-1]).tobytes()
            return Photo("", "", stored, pixels, bits, *small.getextrema(), sharp, min(plain.size), deep)
    except Image.DecompressionBombError:  # twice Pillow's limit, so it does not even tell the size
        return Photo("too many pixels", f"the limit is {MAX_PIXELS}")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever one broken file makes Pillow raise, the run goes on
        return Photo("undecodable file", (str(error) or type(error).__name__).replace(file, "it"))


def look_at_photos(table, files: Files, look, num_proc: int | None) -> None:
    """Put what `look` finds in each row's photo into the table, with a progress bar; OSError if a process is killed."""
    read = (table["reason"] == "").to_numpy()
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
    photos = pd.DataFrame(found, table.index[read], Photo._fields)
    for field, default in Photo._field_defaults.items():
        if field in table:
            table.loc[read, field] = photos[field]
        else:
            table[field] = photos[field].reindex(table.index, fill_value=default)


def follow_parent() -> None:
    """Have this process leave Ctrl-C to the one that started it, and end with that one, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def drop_copies(table) -> None:
    """Give every row but the first of each photo a reason to be left out, and all of them if their labels differ."""
    copies = table[(table["reason"] == "") & table.duplicated("pixels", keep=False)]
    copies = copies[copies.duplicated("pixels", keep=False)]
    if copies.empty:
        return
    same = copies.groupby("pixels", sort=False)
    conflict, again = same["label"].transform("nunique") > 1, copies.duplicated("pixels")
    first = same[["name", "row", "place"]].transform("first")
    where = "the same photo as " + ("row " + first["row"] + ", ").where(first["row"] != "", "") + first["name"]
    labels = copies["pixels"].map(same["label"].agg(lambda labels: " and ".join(sorted(set(labels)))))
    reason = (again * 1).map({1: "duplicate", 0: ""}).mask(again & (first["place"] == copies["place"]), "listed twice")
    table.loc[copies.index, "reason"] = reason.mask(conflict, "conflicting labels")
    table.loc[copies.index, "detail"] = where.where(again, "").mask(conflict, "the same photo is labelled " + labels)


def near_duplicate_groups(looks: list[bytes]):
    """Return a number for every photo, shape (photos,): photos that look nearly alike, or are linked by others, share one.

    Two hashes of 256 bits that differ in 15 or fewer have one of their 16 words of 16 bits in common (Manku et al. 2007,
    Detecting Near-Duplicates for Web Crawling). For each word the photos are sorted by it and what follows it, and each is
    compared with the NEIGHBOURS after it, so the time does not grow with the square of the photos. That misses a pair only
    if each word that it has in common is one that more than NEIGHBOURS photos have, such as that of an even sky.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    hashes, place = np.unique(np.array(looks, "V32"), return_inverse=True)
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
    first, second = np.concatenate(pairs, 1)
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(hashes), len(hashes)))
    return connected_components(graph, directed=False)[1][place]


def join_groups(near, given):
    """Return a group number for every photo, shape (photos,), that those with the same `near` or the same `given` share.

    They are numbered in the order of the photos, so that the split does not depend on how they look.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    own = np.where(given == "", np.arange(len(given)).astype(str), "group " + given.astype(object))
    own = pd.factorize(own)[0] + near.max() + 1
    graph = coo_array((np.ones(len(near), bool), (near, own)), shape=(own.max() + 1, own.max() + 1))
    return pd.factorize(connected_components(graph, directed=False)[1][near])[0]


def photos_by_class(counts, size: float):
    """Return how many photos of each class, shape (classes,), make `size` photos, or that share of all, together."""
    total = math.ceil(size * counts.sum()) if size < 1 else int(size)
    ideal = counts * total / max(counts.sum(), 1)
    wanted = np.floor(ideal).astype(int)
    order = np.lexsort((wanted - ideal, wanted > 0))  # classes that would have none come first
    wanted[order[: total - wanted.sum()]] += 1
    return wanted


def split_photos(labels, groups, given, names: list[str], test_size: float, validation_size: float, seed: int):
    """Return the place in SPLITS of every photo, shape (photos,): the given one, else stratified, random, by group.

    Args:
        labels, groups: numbers, shape (photos,).
        given: places in SPLITS, shape (photos,); those that are in none are cut from train (0).
        test_size: share or number of the photos in train; validation_size: of those that the test split leaves.

    Raises ValueError if the sizes cannot be met, or a class would be absent from a split.
    """
    cut = [place for place in (2, 1) if not (given == place).any()]
    pool = np.flatnonzero(given == 0)
    counts = np.bincount(labels[pool], minlength=len(names))
    needed = 1 + len(cut)
    if (counts < needed).any():
        rare = ", ".join(f"{names[one]!r} ({counts[one]})" for one in np.flatnonzero(counts < needed)[:100])
        said = f"Each class needs {needed} usable photos or more for its splits. These have fewer: {rare}"
        raise ValueError(f"{said}. Add photos, or leave rare classes out with --min_photos {needed} or more.")
    free, left = {}, counts
    for place, flag, size in ((2, "--test_size", test_size), (1, "--validation_size", validation_size)):
        if place in cut:
            if size >= left.sum():
                raise ValueError(f"{flag} {size} cannot be met: there are {left.sum()} usable photos to take it from.")
            free[place] = photos_by_class(left, size)
            left = left - free[place]
    due = {place: free[place] > 0 for place in cut}
    split, order = given.copy(), pool[np.argsort(groups[pool], kind="stable")]
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    for group in np.random.default_rng(seed).permutation(len(members)):
        wanted = np.bincount(labels[members[group]], minlength=len(names))
        for place in cut:
            if (wanted <= free[place]).all():
                free[place] = free[place] - wanted
                split[members[group]] = place
                break
    for place in (
        cut
    ):  # with large groups a class may have got none: then the smallest group with it moves, if train can spare it
        for absent in set(range(len(names))) - set(labels[split == place]):
            for group in sorted((group for group in members if absent in labels[group]), key=len):
                left = np.bincount(labels[(split == 0) & ~np.isin(np.arange(len(split)), group)], minlength=len(names))
                if due[place][absent] and not split[group].any() and left.all():
                    split[group] = place
                    break
            else:
                near = counts[absent] - len(set(groups[pool][labels[pool] == absent]))
                said = f"The {SPLITS[place]} split would hold no photo of class {names[absent]!r}"
                said += f" ({counts[absent]} photos in all, {near} of them kept together with others)"
                raise ValueError(f"{said}. Add photos of it, or change --test_size or --validation_size.")
    return split


def write_split(folder: Path, files: list[str], labels, features) -> None:
    """Write photos and labels as `Dataset.save_to_disk` does, but each photo's bytes straight from its file."""
    import pyarrow as pa
    from datasets import DatasetInfo

    schema, digest = features.arrow_schema, xxhash.xxh3_64()
    shards = max(1, -(-sum(map(os.path.getsize, files)) // SHARD_BYTES))
    names = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    folder.mkdir()
    for shard, name in enumerate(names):
        rows = range(len(files) * shard // shards, len(files) * (shard + 1) // shards)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
            for at in range(rows.start, rows.stop, 100):
                chunk = slice(at, min(at + 100, rows.stop))
                contents = [open(file, "rb").read() for file in files[chunk]]  # noqa: PTH123, SIM115 - of many
                images = [pa.array(contents), pa.array([file.rsplit(os.sep, 1)[-1] for file in files[chunk]])]
                images = pa.StructArray.from_arrays(images, ["bytes", "path"])
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


def class_balance_plot(splits: dict, path: Path) -> str:
    """Write the picture of the photos by class and split; return the legend of its numbers, "" if it has the names."""
    import matplotlib

    matplotlib.use("agg")
    counts = pd.DataFrame(splits)
    names, font = list(counts.index), font_of(list(counts.index))
    counts.index = names if font else [f"class {number}" for number in range(1, len(names) + 1)]
    axes = counts[::-1].plot.barh(
        stacked=True, figsize=(8, min(1.5 + 0.25 * len(counts), 300)), xlabel="photos", ylabel=""
    )
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
        if font:
            text.set_font(Path(font))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.figure.savefig(path, bbox_inches="tight", dpi=100, metadata={"Software": None})
    matplotlib.pyplot.close(axes.figure)
    return "" if font else "".join(f"Class {at} is {escape(name)}. " for at, name in enumerate(names, 1)) + "\n\n"


def contact_sheet(rows: list[list[tuple[str, str, str]]], path: Path) -> None:
    """Write a picture with rows of (file, its name, more text), as many as there is room for."""
    rows = [row[:SHEET_COLUMNS] for row in rows[:SHEET_ROWS]]
    sheet = Image.new("RGB", (220 * max(map(len, rows)), 250 * len(rows)), "white")
    font = font_of([text for row in rows for _, *texts in row for text in texts]) or font_of([])
    for y, row in enumerate(rows):
        for x, (file, name, text) in enumerate(row):
            with open_photo(file) as image:
                image.draft("RGB", (400, 400))
                photo = scale_grey(image) if image.mode[0] in "IF" else ImageOps.exif_transpose(image)
                sheet.paste(ImageOps.contain(photo.convert("RGB"), (200, 200)), (220 * x + 10, 250 * y + 10))
            words = f"{name if len(name) < 30 else '…' + name[-29:]}\n{text}"
            ImageDraw.Draw(sheet).text((220 * x + 10, 250 * y + 213), words, "black", ImageFont.truetype(font, 12))
    sheet.save(path)


def load_model(model_id: str):
    """Return an image classifier of transformers and its processor; OSError if there is none."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        network = retried(
            lambda: AutoModelForImageClassification.from_pretrained(model_id, use_safetensors=True, dtype="float32")
        )
        return network.eval(), retried(lambda: AutoImageProcessor.from_pretrained(model_id))
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise OSError(f"--suspects {model_id} cannot be loaded as an image classifier: {first_line(error)}.") from error


def find_suspects(usable, labels, names: list[str], model, seed: int, folder: Path) -> int:
    """Write the photos whose label is probably wrong, the most suspicious first, and return their number.

    A logistic regression from a model's logits to the labels is cross-validated; a label is suspicious where it is less
    likely than another one that is as likely as usual for its photos (Northcutt et al. 2021, Confident Learning).
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
                photos.append(ImageOps.exif_transpose(image).convert("RGB"))
        with torch.inference_mode():
            answers = network(**processor(photos, return_tensors="pt")).logits
            logits.append(answers.log_softmax(1).clamp(min=-14).numpy())
    folds = StratifiedKFold(max(2, min(5, np.bincount(labels).min())), shuffle=True, random_state=seed)
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=1000))
    chances = cross_val_predict(regression, np.concatenate(logits), labels, cv=folds, method="predict_proba")
    worst = find_label_issues(labels, chances, return_indices_ranked_by="self_confidence", n_jobs=1)
    found = usable.iloc[worst][["name", "row", "label", "stored"]].rename(columns={"name": "file"})
    found["suggested"] = [names[best] for best in chances[worst].argmax(1)]
    found["confidence"] = chances[worst, labels[worst]].round(4)
    found.drop(columns="stored").to_csv(folder / "suspects.csv", index=False)
    sheet = list(zip(found["stored"], found["file"], found["label"] + ", or " + found["suggested"] + "?", strict=True))
    if sheet:
        rows = [sheet[at : at + SHEET_COLUMNS] for at in range(0, len(sheet), SHEET_COLUMNS)]
        contact_sheet(rows, folder / "suspects.png")
    return len(found)


def escape(name: str) -> str:
    """Return a class name so that Markdown shows it as it is."""
    return re.sub(r"([\\|*_$`\[\]~])", r"\\\1", html.escape(name, quote=False))


def write_report(folder: Path, report: dict, table, name: str) -> None:
    """Write what is beside the dataset: its card, the numbers, the list of what was left out, two pictures."""
    from huggingface_hub import DatasetCard, DatasetCardData

    write_dropped(table, folder / "dropped.csv")
    copies = table[
        table["reason"].isin(["", "duplicate", "conflicting labels"]) & table.duplicated("pixels", keep=False)
    ]
    copies = [same for _, same in copies.groupby("pixels") if (same["reason"] != "").any()]
    if copies:
        copies.sort(key=lambda same: -same["label"].nunique())  # conflicts first
        texts = [same["label"] + ", " + same["reason"].replace("", "kept") for same in copies]
        sheet = [list(zip(s["stored"], s["name"], text, strict=True)) for s, text in zip(copies, texts, strict=True)]
        contact_sheet(sheet, folder / "duplicates.png")
        report["notes"].append("Copies are on `duplicates.png`.")
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    splits = report["splits"]
    rows = [["class", *SPLITS], ["---"] * 4]
    rows += [[escape(one), *(str(splits[split][one]) for split in SPLITS)] for one in splits["train"]]
    rows.append(["all", *(str(sum(splits[split].values())) for split in SPLITS)])
    given = f"The splits {', '.join(report['given'])} were given. " if report["given"] else ""
    facts = {
        "photos": sum(sum(counts.values()) for counts in splits.values()),
        "classes": len(splits["train"]),
        "table": "\n".join(f"| {' | '.join(row)} |" for row in rows),
        "legend": class_balance_plot(splits, folder / "class_balance.png"),
        "split": f"{given}The split is stratified by class and random, with seed {report['seed']}.",
        "dropped": "\n".join(f"- {reason}: {count}" for reason, count in report["dropped"].items()) or "Nothing.",
        "notes": "\n".join(f"- {note}" for note in report["notes"]),
    }
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in SPLITS]
    configs = [{"config_name": "default", "data_files": files}]
    front = DatasetCardData(pretty_name=name, task_categories=["image-classification"], configs=configs)
    DatasetCard(f"---\n{front}\n---\n\n{CARD.format(**report | facts, name=name)}").save(folder / "README.md")


def write_dropped(table, path: Path) -> None:
    """Write the list of the rows that were left out, with row and reason."""
    dropped = table[table["reason"] != ""]
    reason = (dropped["reason"] + ": " + dropped["detail"]).str.removesuffix(": ")
    dropped[["name", "row"]].assign(reason=reason).rename(columns={"name": "file"}).to_csv(path, index=False)


def check_flags(asked: dict) -> None:
    """Raise an OSError or ValueError if `prepare` cannot do what it was asked for, before any work."""
    image_path, dst_path, label_path = Path(asked["image_path"]), Path(asked["dst_path"]), asked["label_path"]
    for flag in ("test_size", "validation_size"):
        if asked[flag] <= 0 or (asked[flag] >= 1 and asked[flag] != int(asked[flag])):
            raise ValueError(
                f"--{flag} {asked[flag]:g} is neither a share between 0 and 1, such as 0.2, nor a number of photos."
            )
    for flag in ("image_size", "num_proc", "min_photos"):
        if asked[flag] is not None and asked[flag] < 1:
            raise ValueError(f"--{flag} {asked[flag]} must be 1 or more.")
    if not image_path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", str(asked["image_path"])):
        raise FileNotFoundError(
            f"--image_path {image_path} is not a folder or file, nor the name of a dataset (owner/name)."
        )
    if (
        label_path
        and image_path.is_dir()
        and not any(path.is_file() for path in (Path(label_path), image_path / label_path))
    ):
        raise FileNotFoundError(f"--label_path {label_path} is not a file.")
    restore(dst_path)
    if dst_path.exists() and not asked["overwrite"]:
        raise FileExistsError(
            f"--dst_path {dst_path} exists already. Choose another folder, or add --overwrite to replace it."
        )
    if dst_path.exists() and not (dst_path / "dataset_dict.json").is_file():
        raise FileExistsError(
            f"--dst_path {dst_path} is not a dataset, so --overwrite leaves it alone. Choose another folder."
        )


def check_rows(table, files: Files, look, num_proc: int | None, given_by_folders: bool, min_photos: int):
    """Return the table with what was found for each row: its file, split, photo, and why it is left out; and say so.

    Raises ValueError if no row names a file.
    """
    table = locate(table, files)
    if not (table["place"] >= 0).any():
        raise ValueError("No row names a file that is there.")
    folders = read_folders(files)[0] if given_by_folders and not any(table["split"]) else [""] * len(files.names)
    if len({folders[place] for place in table["place"] if place >= 0} - {""}) > 1:
        table["split"] = [folders[place] or "train" for place in table["place"]]
        print("The splits are given by the folders; --split_column none cuts new ones.")
    look_at_photos(table, files, look, num_proc)
    drop_copies(table)
    usable = table["reason"] == ""
    counts = table["label"].map(table["label"][usable].value_counts())
    rare = usable & (counts < min_photos)
    table.loc[rare, "reason"] = "rare class"
    if rare.any():
        print(f"Classes with fewer than {min_photos} photos: {', '.join(sorted(set(table['label'][rare])))}")
    return table


def split_rows(usable, names: list[str], labels, test_size: float, validation_size: float, seed: int):
    """Return the place in SPLITS of every usable row, shape (photos,), and what the report says about it.

    Raises ValueError if the rows cannot be split.
    """
    near = near_duplicate_groups(list(usable["look"]))
    given = sorted(set(usable["split"]) - {""}, key=SPLITS.index)
    given = given if len(given) > 1 else []
    split = np.array([SPLITS.index(split) if given and split else 0 for split in usable["split"]])
    torn = usable["group"][usable["group"] != ""].groupby(usable["group"]).groups if given else {}
    for group, rows in torn.items():
        if len(set(split[rows])) > 1:
            raise ValueError(f"The group {group!r} is in several given splits. --split_column none cuts new ones.")
    groups = join_groups(near, usable["group"].to_numpy(str))
    split = split_photos(labels, groups, split, names, test_size, validation_size, seed)
    alike = pd.Series(split).groupby(near).agg(["size", "nunique"])
    alike = alike[alike["size"] > 1]
    counts = {"groups": len(alike), "photos": int(alike["size"].sum()), "across": int((alike["nunique"] > 1).sum())}
    said = f"Near-duplicates, kept together in one split: {counts['photos']} photos in {counts['groups']} groups"
    notes = [said + f", but {counts['across']} groups are in several given splits" * (counts["across"] > 0)]
    known = {label: set(re.split(r"[\s|;,/&+]+", label)) for label in names}
    joined = usable["label"].map({label: len(parts) > 1 and parts <= set(names) for label, parts in known.items()})
    if joined.any():
        notes.append(f"Labels made of other labels, each a class of its own: {joined.sum()} photos")
    if usable["deep"].any():
        notes.append(
            f"Grey of more than 8 bits, scaled from each photo's darkest to its brightest: {usable['deep'].sum()} photos"
        )
    lit = (usable["high"] >= DARK) & (usable["low"] <= LIGHT)
    for kind, odd in (
        ("Nearly black", usable[usable["high"] < DARK].sort_values("high")),
        ("Nearly white", usable[usable["low"] > LIGHT].sort_values("low", ascending=False)),
        ("Blurred", usable[lit & (usable["sharp"] < BLUR)].sort_values("sharp")),
        (f"Smaller than {TINY} pixels", usable[usable["side"] < TINY].sort_values("side")),
    ):
        if len(odd):
            notes.append(f"{kind}: {len(odd)} photos, such as {', '.join(odd['name'][:5])}")
    splits = {}
    for place, name in enumerate(SPLITS):
        splits[name] = dict(zip(names, np.bincount(labels[split == place], minlength=len(names)).tolist(), strict=True))
    return split, {"splits": splits, "given": given, "near_duplicates": counts, "notes": notes}


def prepare(
    *,
    image_path: str | Path,
    dst_path: str | Path,
    label_path: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    encoding: str | None = None,
    test_size: float = 0.3,
    validation_size: float = 0.1,
    min_photos: int = 1,
    seed: int = 42,
    image_size: int | None = None,
    suspects: str | None = None,
    num_proc: int | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    push_to_hub: str | None = None,
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
        sys.exit(
            'prep.py: error: Put the call of prepare under if __name__ == "__main__": its processes read the script too.'
        )
    check_flags(asked)
    dst_path = Path(dst_path)
    if push_to_hub:
        create_repo(push_to_hub)  # now, so that a missing login does not show only after the work
    model = load_model(suspects) if suspects else None

    import datasets  # heavy, so after the checks

    new_folders = [folder for folder in dst_path.absolute().parents if not folder.exists()]
    unfinished, scratch = hidden(dst_path, "partial"), hidden(dst_path, "partial") / "scratch"
    table = files = None
    try:
        (scratch / "copies").mkdir(parents=True)
        columns = {name: asked[name] for name in asked if name.endswith("_column")}
        files, table = read_rows(image_path, label_path, scratch, encoding, **columns)
        merged = tidy_labels(table)
        look = partial(inspect_photo, copies=scratch / "copies", image_size=image_size)
        table = check_rows(table, files, look, num_proc, split_column != "none", min_photos)
        dropped = Counter(sorted(table["reason"][table["reason"] != ""]))
        unnamed = set(range(len(files.names))) - set(table["place"])
        unnamed = sum(not LIST_NAME.search(files.names[place]) for place in unnamed)
        for reason, count in dropped.items():
            print(f"Dropped for {reason}: {count}")
        print(f"Files that no row names: {unnamed}")
        usable = table[table["reason"] == ""].reset_index(drop=True)
        names = sorted(set(usable["label"]))
        if len(names) < 2:
            raise ValueError(
                f"A classifier needs usable photos of two classes or more; there are: {', '.join(names) or 'none'}."
            )
        labels = pd.Categorical(usable["label"], names).codes.astype(int)
        split, facts = split_rows(usable, names, labels, test_size, validation_size, seed)
        for note in facts["notes"]:
            print(note)
        for name, counts in facts["splits"].items():
            print(
                f"{name}: {sum(counts.values())} photos ({', '.join(f'{one} {count}' for one, count in counts.items())})"
            )
        if dry_run:
            return None
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        for place, name in enumerate(SPLITS):  # in random order, so that it can be streamed
            chosen = np.random.default_rng([seed, place]).permutation(np.flatnonzero(split == place))
            write_split(unfinished / name, list(usable["stored"].to_numpy()[chosen]), labels[chosen], features)
        (unfinished / "dataset_dict.json").write_text(json.dumps({"splits": SPLITS}))
        if model:
            found = find_suspects(usable, labels, names, model, seed, unfinished)
            facts["notes"].append(f"Labels that are perhaps wrong, the most suspicious first, in suspects.csv: {found}")
            print(facts["notes"][-1])
        facts |= {"rows": len(table), "dropped": dropped, "unnamed_files": unnamed, "merged": merged}
        facts["notes"] += [
            f"Taken as one label: {', '.join(map(escape, words))} → {escape(one)}" for one, words in merged.items()
        ]
        sizes = {"test_size": test_size, "validation_size": validation_size, "seed": seed}
        write_report(unfinished, facts | sizes | {"command": command_line(asked)}, table, dst_path.name)
        shutil.rmtree(scratch)
        if dst_path.exists():
            dst_path.rename(hidden(dst_path, "replaced"))
        unfinished.rename(dst_path)
    except ValueError as error:
        if table is None or "reason" not in table:
            raise
        found = dst_path.with_name(f"{dst_path.name}.dropped.csv")
        write_dropped(table, found)
        lost = table["name"][(table["place"] < 0) & (table["name"] != "")][:1]
        said = "".join(
            f" The first name that was not found is {name!r}, and there is {files.names[:3]}." for name in lost
        )
        raise ValueError(f"{error}{said} What was found is in {found}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        for folder in new_folders:
            with suppress(OSError):
                folder.rmdir()
    shutil.rmtree(hidden(dst_path, "replaced"), ignore_errors=True)
    print(f"Dataset written to {dst_path}; what was left out, and why, is in {dst_path / 'dropped.csv'}")
    if push_to_hub:
        push(dst_path, push_to_hub)
    return datasets.load_from_disk(str(dst_path))


def hidden(dst_path: Path, word: str) -> Path:
    """Return the folder beside `dst_path` for a dataset that is not finished, or one that is being replaced."""
    return dst_path.with_name(f".{dst_path.name}.{word}")


def restore(dst_path: Path) -> None:
    """Clear away what a killed run left; a dataset that it was replacing goes back to its place."""
    unfinished, replaced = hidden(dst_path, "partial"), hidden(dst_path, "replaced")
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
    return shlex.join(
        ["python", "prep.py", *(w for n, v in given.items() for w in (f"--{n}", *[str(v)] * (v is not True)))]
    )


def retried(call):
    """Return what `call()` returns, called again while the Hub is busy or the connection is cut, for about 20 seconds."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

    def passing(error: BaseException) -> bool:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code == 429 or error.response.status_code >= 500
        return isinstance(error, httpx2.TransportError)

    wait, stop = wait_exponential_jitter(initial=1, max=30), stop_after_attempt(5)
    try:
        return Retrying(retry=retry_if_exception(passing), wait=wait, stop=stop, reraise=True)(call)
    except httpx2.TransportError as error:
        raise ConnectionError(str(error)) from error


def create_repo(repo_id: str) -> None:
    """Make sure that the dataset repo exists, private if it is new, and may be written; OSError with the reason, if not."""
    from huggingface_hub import HfApi

    try:
        retried(lambda: HfApi().create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True))
    except (OSError, ValueError) as error:
        said = f"--push_to_hub {repo_id}: the Hub does not give a repo to write to ({first_line(error)})"
        raise OSError(
            f"{said}. Log in with `hf auth login`, or set HF_TOKEN to a token that may write there."
        ) from error


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
        try:
            commit = retried(lambda: HfApi().upload_folder(repo_id=repo_id, folder_path=scratch, **options))
        except (OSError, ValueError) as error:
            said = f"The dataset is whole in {dst_path}, but the Hub did not take it ({first_line(error)})"
            raise OSError(f"{said}. Push it later with the same command and --overwrite.") from error
    print(f"Pushed to {repo_id}, revision {commit.oid}")


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, for the use inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def size(text: str) -> float:
    """Return a size of the command line: a whole number of photos, or a share."""
    return int(text) if text.isdecimal() else float(text)


def parser() -> argparse.ArgumentParser:
    """Return the parser, whose flags and defaults are those of `prepare`; `main` also takes the flags with hyphens."""
    shape = argparse.ArgumentDefaultsHelpFormatter
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser("prep.py", description=about, allow_abbrev=False, formatter_class=shape)
    for name, parameter in inspect.signature(prepare).parameters.items():
        options = {"default": parameter.default, "help": HELP[name]}
        if parameter.default is parameter.empty:
            options |= {"required": True, "default": argparse.SUPPRESS}
        if parameter.annotation is bool:
            options["action"] = "store_true"
        elif "_size" in name and parameter.annotation is float:
            options |= {"type": size, "metavar": "SIZE"}
        else:
            options |= {"type": int, "metavar": "N"} if "int" in str(parameter.annotation) else {"metavar": "TEXT"}
        parser.add_argument(f"--{name}", **options)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = [underscored(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    try:
        prepare(**vars(parser().parse_args(arguments)))
    except (OSError, ValueError) as error:
        sys.exit(f"prep.py: error: {error}")
    except KeyboardInterrupt:
        sys.unraisablehook = lambda _: None  # a progress bar that was stopped half made has no more to say
        print("prep.py: stopped, no dataset was written", file=sys.stderr)
        sys.exit(130)


def underscored(argument: str) -> str:
    """Return `--image-path=a-b` as `--image_path=a-b`, so that both spellings of a flag work."""
    flag, equals, value = argument.partition("=")
    return flag.replace("-", "_").replace("__", "--", 1) + equals + value if flag.startswith("--") else argument


if __name__ == "__main__":
    main()
