"""Turn labelled photos, a CSV and a folder or one folder per class, into a dataset with train, validation and test.

    python prep.py --image_path images --label_path labels.csv --dst_path dataset
    python prep.py --image_path images --dst_path dataset --test_size 500 --validation_size 500 --image_size 320
    python prep.py --image_path train --label_path breeds.csv --image_column id --label_column breed --dst_path dataset

Photos that cannot be used are left out and listed with row and reason in `dropped.csv` inside the dataset folder;
`README.md` there is the dataset card, `report.json` holds its numbers. In a notebook:

    from prep import prepare
    dataset = prepare(image_path="images", label_path="labels.csv", dst_path="dataset")
"""

import argparse
import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import NamedTuple

IMAGE_COLUMNS = ("image_name", "file_name", "filename", "file", "image", "path", "filepath", "id")
LABEL_COLUMNS = ("label", "class", "breed", "category", "labels", "class_name", "target")
# Pillow opens dozens of formats, some with decoders that nobody watches; photos come in these (JPEG includes MPO).
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")  # HEIF is what iPhones write as .heic
MAX_PIXELS = 89_000_000  # above it a small file can fill the memory; Pillow's own warning starts just above
# Of the 256 bits of a difference hash. Measured on 200 photos and their copies: scaled to 180 x 180 pixels half differ in
# 2 bits, all in 8 or fewer; at JPEG quality 50 in 12 or fewer. Of 18 million other pairs none differs in 50 or fewer.
NEAR_BITS = 15
SHARD_BYTES = 500_000_000  # of a Parquet file on the Hub
SPLITS = ("train", "validation", "test")
SHEET_ROWS, SHEET_COLUMNS = 20, 4  # groups of photos on the contact sheet, and photos of each

CARD = """# {name}

{photos} photos in {nclasses} classes, made by `prep.py`:

```bash
{command}
```

| class | {splits} |
| --- |{rules}
{by_class}
| all | {totals} |

![Photos by class and split](class_balance.png)

The split is stratified by class and random, with seed {seed}. {near}

## What was left out

{dropped}

{merged}Every row that was left out is in `dropped.csv` with its reason.{sheet} {unnamed} file(s) of the folder were named by no row.
Photos stand upright: the turn that a camera notes in the EXIF data has been made.
"""


class Photo(NamedTuple):
    """What checking a row found: why it cannot be used, or else what its pixels are."""

    reason: str = ""
    detail: str = ""
    file: str = ""  # where it lies, links followed
    stored: str = ""  # the file that goes into the dataset: itself, or a copy that is upright or smaller
    pixels: bytes = b""  # equal for equal pixels
    look: bytes = b""  # its difference hash: 256 bits, most of which equal those of a photo that looks the same


def read_table(label_path: Path):
    """Return the CSV as a frame of strings; separator (comma, semicolon, tab) and encoding are found out.

    Raises:
        ValueError: if the file is not a CSV.
    """
    import pandas as pd

    start = label_path.read_bytes()[:2]
    for encoding in ("utf-16",) if start in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "latin-1"):
        try:
            with label_path.open(encoding=encoding) as file:
                header = file.readline()
            separator = max(",;\t", key=header.count)
            # Everything is text: a label "NA" or a file "007" is taken as it stands. Only an empty cell is empty.
            options = {"dtype": str, "keep_default_na": False, "skip_blank_lines": False, "index_col": False}
            table = pd.read_csv(label_path, sep=separator, encoding=encoding, **options)
            break
        except UnicodeError:
            continue
        except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            raise ValueError(f"--label_path {label_path} cannot be read as a CSV: {str(error).strip()}.") from error
    else:  # latin-1 takes any bytes, so it is the other one
        raise ValueError(f"--label_path {label_path} begins as UTF-16 text, but is damaged. Save it anew, as UTF-8.")
    return table.fillna("").apply(lambda column: column.str.strip()).rename(columns=str.strip)


def chosen_columns(table, files: dict[str, list[str]], image_column: str | None, label_column: str | None):
    """Return the names of the image and the label column: the given ones, or a guess from names and from the files.

    Raises:
        ValueError: if a given column is not there or none can be guessed.
    """
    columns = list(table.columns)
    for flag, column in (("--image_column", image_column), ("--label_column", label_column)):
        if column not in (None, *columns):
            raise ValueError(f"{flag} {column}: the CSV has no such column; it has: {', '.join(columns)}.")
    if any(Path(column).suffix and key(column) in files for column in columns):
        raise ValueError(f"The first row of the CSV names a photo ({', '.join(columns)}). Put column names above it.")

    def usual(column: str, names: tuple[str, ...]) -> int:
        return -names.index(column.casefold()) if column.casefold() in names else -len(names)

    others = [column for column in columns if column != label_column]
    hits = {column: sum(key(name) in files for name in table[column].head(1000)) for column in others}
    image = image_column or max(others, key=lambda column: (hits[column], usual(column, IMAGE_COLUMNS)), default=None)
    if not image_column and (image is None or not hits[image] and image.casefold() not in IMAGE_COLUMNS):
        raise ValueError(f"Which column names the photos? Give --image_column, one of: {', '.join(columns)}.")
    others = [column for column in columns if column != image]
    label = label_column or max(others, key=lambda column: usual(column, LABEL_COLUMNS), default=None)
    if not label_column and (label is None or len(others) > 1 and label.casefold() not in LABEL_COLUMNS):
        raise ValueError(f"Which column holds the labels? Give --label_column, one of: {', '.join(columns)}.")
    return image, label


def key(name: str) -> str:
    """Return a file's name as it is looked up: with / for \\, in one case, without a leading ./"""
    return name.replace("\\", "/").casefold().removeprefix("./")


def files_by_name(image_folder: Path) -> dict[str, list[str]]:
    """Return the files below the folder, each under its `key` with and without its extension."""
    files: dict[str, list[str]] = {}
    for root, folders, names in os.walk(image_folder):
        folders.sort()
        for name in sorted(names):
            if not name.startswith("."):
                relative = Path(root, name).relative_to(image_folder)
                for found in {key(relative.as_posix()), key(relative.with_suffix("").as_posix())}:
                    files.setdefault(found, []).append(relative.as_posix())
    return files


def table_of_folders(files: dict[str, list[str]]):
    """Return the table that class folders stand for: every file's first folder is its label; the rows have no number."""
    import pandas as pd

    names = sorted({name for same in files.values() for name in same})
    return pd.DataFrame({"name": names, "label": [n.split("/")[0] if "/" in n else "" for n in names], "row": ""})


def rows_to_check(files: dict[str, list[str]], label_path, image_column: str | None, label_column: str | None):
    """Return the table with the columns name, label and row, and the spellings of labels that were taken as another.

    Raises:
        ValueError: if there is no such table in the CSV.
    """
    if label_path is None:
        table = table_of_folders(files)
    else:
        raw = read_table(Path(label_path))
        image_column, label_column = chosen_columns(raw, files, image_column, label_column)
        print(f"Photos are named by the column {image_column!r}, their labels are in {label_column!r}.")
        table = raw[[image_column, label_column]].set_axis(["name", "label"], axis=1)
        table["row"] = range(2, len(table) + 2)  # the header is row 1
        table = table[(table["name"] != "") | (table["label"] != "")].reset_index(drop=True)  # blank lines say nothing
    used = spellings(table["label"])
    merged: dict[str, list[str]] = {}
    for label, spelling in used.items():
        if label != spelling:
            merged.setdefault(spelling, []).append(label)
            print(f"Label {label!r} is taken as {spelling!r}.")
    return table.assign(label=table["label"].map(used)), merged


def spellings(labels) -> dict[str, str]:
    """Return for every label the spelling that is used: of those that differ in case or spaces, the most frequent."""
    used: dict[str, str] = {}
    counts = Counter(labels)
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        used.setdefault(" ".join(label.casefold().split()), label)
    return {label: used[" ".join(label.casefold().split())] for label in counts}


def located(name: str, label: str, image_folder: Path, files: dict[str, list[str]]) -> Photo:
    """Return a `Photo` with the file that a row means, or with the reason why it means none that may be read."""
    if not label:
        return Photo("empty label")
    if not name:
        return Photo("empty name")
    if "://" in name:
        return Photo("URL", "only files of the folder are read; download it first")
    try:
        file = (image_folder / name.replace("\\", "/")).resolve()
        if not file.is_relative_to(image_folder):
            return Photo("outside the folder", "the name leads out of the image folder")
        if not file.exists():
            same = files.get(key(name), [])
            if len(same) > 1:
                return Photo("ambiguous name", f"could be {' or '.join(same[:3])}")
            file = (image_folder / same[0]).resolve() if same else file
            if not file.is_relative_to(image_folder):
                return Photo("outside the folder", "the name leads out of the image folder")
        if file.is_dir():
            return Photo("not a file", "it is a folder")
        if not file.is_file():  # opening a pipe would wait for ever
            return Photo("not a file", "it is a pipe or device") if file.exists() else Photo("missing file")
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a NUL, a link to itself
        return Photo("missing file", str(error).replace(str(image_folder) + os.sep, ""))
    return Photo(file=str(file))


@contextmanager
def opened(file: str):
    """Give the photo of a file, not decoded yet, as Pillow's image.

    Raises:
        OSError: if it is none of the formats that are taken.
    """
    from PIL import Image
    from pillow_heif import register_heif_opener

    register_heif_opener()
    # Not by its name: Pillow 12.3 would map an uncompressed TIFF into memory, and garble it if it is to be turned.
    with Path(file).open("rb") as binary, Image.open(binary, formats=IMAGE_FORMATS) as image:
        yield image


def inspected(photo: Photo, image_folder: Path, copies: Path, image_size: int | None) -> Photo:
    """Return the `Photo` with what its pixels are; a copy goes to `copies` if it has to be turned or made smaller."""
    if photo.reason:
        return photo
    import imagehash
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with opened(photo.file) as image:
            if image.width * image.height > MAX_PIXELS:
                return Photo("too many pixels", f"{image.width} x {image.height}, the limit is {MAX_PIXELS}")
            turned = image.getexif().get(0x0112, 1) != 1
            image.load()  # verify() would accept a JPEG that is cut off in the middle
            upright = ImageOps.exif_transpose(image) if turned else image
            if upright.mode.startswith("I"):
                upright = upright.point(lambda grey: grey / 256)  # of 16 bits, which Pillow would cut off at 255
            plain = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
            pixels = hashlib.sha256(repr((plain.mode, plain.size)).encode() + plain.tobytes()).digest()
            # First to four times what the hash needs: it is quicker, and equals that of a copy of another size better.
            small = plain.convert("L").resize((68, 64), Image.Resampling.HAMMING)
            look = np.packbits(imagehash.dhash(small, hash_size=16).hash).tobytes()
            stored = photo.file
            heif = image.format == "HEIF"  # as JPEG in the dataset, which then needs no plugin to be read
            if turned or heif or (image_size and min(plain.size) > image_size):
                if image_size and min(plain.size) > image_size:
                    plain = ImageOps.cover(plain, (image_size, image_size))
                jpeg = image.format in ("JPEG", "MPO") or (heif and plain.mode == "RGB")
                # Named by the content, so that the same photos give the same dataset, byte for byte.
                stored = str(copies / f"{pixels.hex()[:32]}.{'jpg' if jpeg else 'png'}")
                profile = image.info.get("icc_profile") if image.mode == plain.mode else None
                plain.save(stored, quality=95, icc_profile=profile)
    except Image.DecompressionBombError:  # twice Pillow's limit, so it does not even tell the size
        return Photo("too many pixels", f"the limit is {MAX_PIXELS}")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever one broken file makes Pillow raise, the run goes on
        return Photo("undecodable file", (str(error) or type(error).__name__).replace(str(image_folder) + os.sep, ""))
    return photo._replace(stored=stored, pixels=pixels, look=look)


def checked(table, image_folder: Path, files: dict[str, list[str]], copies: Path, image_size, num_proc) -> list[Photo]:
    """Return the `Photo` of every row, in the order of the table, with a progress bar.

    Raises:
        OSError: if one of the processes is killed.
    """
    from tqdm.auto import tqdm

    # Of a small photo's time more than half is Python's, whose lock keeps threads to one core. Few are handed out at a time.
    photos: list[Photo] = []
    inspect = partial(inspected, image_folder=image_folder, copies=copies, image_size=image_size)
    with (
        ProcessPoolExecutor(num_proc, initializer=follow_parent) if num_proc > 1 else nullcontext() as pool,
        tqdm(total=len(table), desc="Checking photos", unit="photo") as bar,
    ):
        for start in range(0, len(table), 1000):
            rows = zip(*(table[column][start : start + 1000] for column in ("name", "label")), strict=True)
            found = [located(name, label, image_folder, files) for name, label in rows]
            try:
                for photo in pool.map(inspect, found, chunksize=25) if pool else map(inspect, found):
                    photos.append(photo)
                    bar.update()
            except BrokenProcessPool as error:
                raise OSError(
                    "A process that checks photos was killed, perhaps for want of memory. Try --num_proc 1."
                ) from error
    return photos


def follow_parent() -> None:
    """Have this process leave Ctrl-C to the one that started it, and end with that one, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def without_duplicates(table) -> list[tuple[str, str]]:
    """Return (reason, detail) of every row, both empty where it stays.

    Of rows with the same file or the same pixels the first one stays, none if their labels differ.
    """
    found = list(zip(table["reason"], table["detail"], strict=True))
    copies = table[(table["reason"] == "") & table.duplicated("pixels", keep=False)]
    for _, same in copies.groupby("pixels", sort=False):
        labels = sorted(same["label"].unique())
        first = same.iloc[0]
        where = f"row {first['row']}, {first['name']}" if first["row"] else first["name"]
        for index, row in same.iterrows():
            if len(labels) > 1:
                found[index] = ("conflicting labels", f"the same photo is labelled {' and '.join(labels)}")
            elif index != first.name:
                again = "listed twice" if row["file"] == first["file"] else "duplicate"
                found[index] = (again, f"the same photo as {where}")
    return found


def near_duplicate_groups(looks: list[bytes]):
    """Return a group number for every photo, shape (photos,): chains of photos that differ in NEAR_BITS or fewer share one.

    Two hashes of 256 bits that differ in 15 or fewer have one of their 16 words of 16 bits in common, so only photos
    with a common word are compared (Manku et al. 2007, Detecting Near-Duplicates for Web Crawling).
    """
    import numpy as np
    import pandas as pd
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    bits = np.frombuffer(b"".join(looks), np.uint64).reshape(len(looks), 4)
    bits, place = np.unique(bits, axis=0, return_inverse=True)
    pairs = [np.empty((2, 0), int)]
    for word in bits.view(np.uint16).T:
        order = np.argsort(word, kind="stable")
        first = np.arange(len(order))
        for step in range(1, len(order)):  # the neighbour, the one after it, and so on, as long as the word is the same
            first = first[: np.searchsorted(first, len(order) - step)]
            first = first[word[order[first]] == word[order[first + step]]]
            if not len(first):
                break
            pair = order[[first, first + step]]
            differing = np.bitwise_count(bits[pair[0]] ^ bits[pair[1]]).sum(1, dtype=np.uint16)
            pairs.append(pair[:, differing <= NEAR_BITS])
    first, second = np.concatenate(pairs, 1)
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(bits), len(bits)))
    groups = connected_components(graph, directed=False)[1][place]
    return pd.factorize(groups)[0]  # numbered in the order of the photos: so the split does not depend on how they look


def photos_by_class(counts, size: float):
    """Return how many photos of each class, shape (classes,), make `size` photos, or that share of all, together."""
    import numpy as np

    total = math.ceil(size * counts.sum()) if size < 1 else size
    ideal = counts * total / counts.sum()
    wanted = np.floor(ideal).astype(int)
    order = np.lexsort((wanted - ideal, wanted > 0))  # classes that would have none come first
    wanted[order[: total - wanted.sum()]] += 1
    return wanted


def split_numbers(labels, groups, names: list[str], test_size: float, validation_size: float, seed: int):
    """Return the place in SPLITS of every photo, shape (photos,): stratified, random, each group in one split.

    Args:
        labels, groups: numbers, shape (photos,).
        test_size: share or number of all photos; validation_size: of the photos that are not in the test split.

    Raises:
        ValueError: if the sizes cannot be met, or a class would be absent from a split.
    """
    import numpy as np

    counts = np.bincount(labels, minlength=len(names))
    if counts.min() < len(SPLITS):
        raise ValueError(
            f"Class {names[counts.argmin()]!r} has {counts.min()} usable photo(s), but each of the {len(SPLITS)} splits "
            "needs one. Add photos, or leave the class out."
        )
    for flag, size, photos in (
        ("--test_size", test_size, len(labels)),
        ("--validation_size", validation_size, len(labels) - photos_by_class(counts, test_size).sum()),
    ):
        if size >= photos:
            raise ValueError(f"{flag} {size} cannot be met: there are {max(photos, 0)} usable photos to take it from.")
    test = photos_by_class(counts, test_size)
    free = {2: test, 1: photos_by_class(counts - test, validation_size)}
    split = np.zeros(len(labels), int)
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    for group in np.random.default_rng(seed).permutation(len(members)):
        needed = np.bincount(labels[members[group]], minlength=len(names))
        for place in (2, 1):
            if (needed <= free[place]).all():
                free[place] = free[place] - needed
                split[members[group]] = place
                break
    for place, name in enumerate(SPLITS):
        held = np.bincount(labels[split == place], minlength=len(names))
        if not held.all():
            absent = held.argmin()
            near = counts[absent] - len(set(groups[labels == absent]))
            raise ValueError(
                f"The {name} split would hold no photo of class {names[absent]!r} ({counts[absent]} photos in all, "
                f"{near} of them close to others). Add photos of it, or change --test_size or --validation_size."
            )
    return split


def build(files: list[str], labels, names: list[str], split, seed: int):
    """Return the `DatasetDict`; the photos of each split are in random order, so that it can be streamed."""
    import numpy as np
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    rng = np.random.default_rng(seed)
    parts = {}
    for place, name in enumerate(SPLITS):
        chosen = rng.permutation(np.flatnonzero(split == place))
        columns = {"image": [files[index] for index in chosen], "label": labels[chosen].tolist()}
        parts[name] = Dataset.from_dict(columns, features)
    return DatasetDict(parts)


def class_balance_plot(report: dict, path: Path) -> None:
    """Write the picture of the photos by class and split."""
    import matplotlib
    import pandas as pd

    matplotlib.use("agg")
    counts = pd.DataFrame(report["splits"])
    axes = counts[::-1].plot.barh(stacked=True, figsize=(8, 1.5 + 0.25 * len(counts)), xlabel="photos", ylabel="")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.figure.savefig(path, bbox_inches="tight", dpi=100, metadata={"Software": None})
    matplotlib.pyplot.close(axes.figure)


def contact_sheet(table, path: Path) -> None:
    """Write the picture of photos that were left out for having a copy: a row of pictures for each group of copies."""
    from matplotlib.font_manager import findfont
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    copies = table[(table["pixels"] != b"") & table.duplicated("pixels", keep=False)]
    groups = sorted(
        (same for _, same in copies.groupby("pixels", sort=False)),
        key=lambda same: same["label"].nunique(),
        reverse=True,
    )[:SHEET_ROWS]  # conflicts first
    columns = min(SHEET_COLUMNS, max(map(len, groups)))
    sheet = Image.new("RGB", (220 * columns, 250 * len(groups)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(findfont("DejaVu Sans"), 12)
    for row, same in enumerate(groups):
        for column, (_, photo) in zip(range(columns), same.iterrows()):  # noqa: B905 - as many as there is room for
            x, y = 220 * column + 10, 250 * row + 10
            with opened(photo["file"]) as image:
                image.draft("RGB", (400, 400))
                sheet.paste(ImageOps.contain(ImageOps.exif_transpose(image).convert("RGB"), (200, 200)), (x, y))
            name = photo["name"] if len(photo["name"]) < 30 else "…" + photo["name"][-29:]
            draw.text((x, y + 203), f"{name}\n{photo['label']}, {photo['reason'] or 'kept'}", "black", font)
    sheet.save(path)


def dataset_card(report: dict, name: str, sheet: bool):
    """Return the dataset card, with the front matter that lets the Hub and `load_dataset` find the splits."""
    from huggingface_hub import DatasetCard, DatasetCardData

    splits = report["splits"]
    classes = list(splits["train"])
    photos = sum(sum(counts.values()) for counts in splits.values())
    data = DatasetCardData(
        pretty_name=name,
        task_categories=["image-classification"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in SPLITS],
            }
        ],
    )
    near = report["near_duplicates"]
    merged = "".join(
        f"Taken as one label: {', '.join(words)} → {label}.\n" for label, words in report["merged"].items()
    )
    text = CARD.format(
        name=name,
        photos=photos,
        nclasses=len(classes),
        command=report["command"],
        seed=report["seed"],
        splits=" | ".join(SPLITS),
        rules=" --- |" * len(SPLITS),
        by_class="\n".join(f"| {one} | " + " | ".join(str(splits[s][one]) for s in SPLITS) + " |" for one in classes),
        totals=" | ".join(str(sum(splits[split].values())) for split in SPLITS),
        near=f"{near['photos']} photos that look nearly like another one ({near['groups']} groups: {NEAR_BITS} or fewer "
        "of 256 bits of their difference hashes differ) are in one split with it, so no test photo has a twin in train.",
        dropped="\n".join(f"- {reason}: {count}" for reason, count in report["dropped"].items()) or "Nothing.",
        merged=merged + "\n" if merged else "",
        sheet=" Copies are on `duplicates.png`." if sheet else "",
        unnamed=report["unnamed_files"],
    )
    return DatasetCard(f"---\n{data}\n---\n\n{text}")


def write_report(folder: Path, report: dict, table, name: str) -> None:
    """Write what is beside the dataset: its card, the numbers, the list of what was left out, two pictures."""
    dropped = table[table["reason"] != ""]
    reason = (dropped["reason"] + ": " + dropped["detail"]).str.removesuffix(": ")
    rows = dropped[["name", "row"]].assign(reason=reason).rename(columns={"name": "file"})
    rows.to_csv(folder / "dropped.csv", index=False)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    class_balance_plot(report, folder / "class_balance.png")
    has_copies = "duplicate" in report["dropped"] or "conflicting labels" in report["dropped"]
    if has_copies:
        contact_sheet(table, folder / "duplicates.png")
    dataset_card(report, name, has_copies).save(folder / "README.md")


def prepare(
    *,
    image_path: str | Path,
    dst_path: str | Path,
    label_path: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    test_size: float = 0.3,
    validation_size: float = 0.1,
    seed: int = 42,
    image_size: int | None = None,
    overwrite: bool = False,
    num_proc: int | None = None,
    push_to_hub: str | None = None,
):
    """Check every row and photo, split what can be used, save it to `dst_path` and return the `DatasetDict`.

    Nothing is written at `dst_path` before all of it is there, and the image folder is only read.

    Raises:
        OSError: if an input does not exist, `dst_path` does and is not to be replaced, or the Hub does not take it.
        ValueError: if the CSV, the sizes or the classes do not allow a dataset.
    """
    command = command_line(locals())
    image_folder, dst_path = Path(image_path).resolve(), Path(dst_path)
    if not image_folder.is_dir():
        raise NotADirectoryError(f"--image_path {image_path} is not a folder.")
    if label_path is not None and not Path(label_path).is_file():
        raise FileNotFoundError(f"--label_path {label_path} is not a file.")
    for flag, size in (("--test_size", test_size), ("--validation_size", validation_size)):
        if size <= 0 or (size >= 1 and size != int(size)):
            raise ValueError(
                f"{flag} {size:g} is neither a share between 0 and 1, such as 0.2, nor a number of photos."
            )
    for flag, number in (("--image_size", image_size), ("--num_proc", num_proc)):
        if number is not None and number < 1:
            raise ValueError(f"{flag} {number} must be 1 or more.")
    restore(dst_path)
    if dst_path.exists() and not overwrite:
        raise FileExistsError(
            f"--dst_path {dst_path} exists already. Choose another folder, or add --overwrite to replace it."
        )
    if dst_path.exists() and not (dst_path / "dataset_dict.json").is_file():
        raise FileExistsError(
            f"--dst_path {dst_path} is not a dataset, so --overwrite leaves it alone. Choose another folder."
        )
    if push_to_hub:
        create_repo(push_to_hub)  # now, so that a missing login does not show only after the work

    files = files_by_name(image_folder)
    table, merged = rows_to_check(files, label_path, image_column, label_column)

    import numpy as np
    from datasets import load_from_disk  # heavy, so after the checks: `--help` and mistakes answer at once

    dst_path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = hidden(dst_path, "partial")
    copies = unfinished / "copies"
    try:
        copies.mkdir(parents=True)
        photos = checked(table, image_folder, files, copies, image_size, num_proc or os.cpu_count() or 1)
        for field in Photo._fields:
            table[field] = [getattr(photo, field) for photo in photos]
        table["reason"], table["detail"] = zip(*without_duplicates(table), strict=True) if len(table) else ([], [])
        usable = table[table["reason"] == ""]
        reasons = Counter(sorted(table["reason"][table["reason"] != ""]))
        for reason, count in reasons.items():
            print(f"Dropped for {reason}: {count}")
        named = {photo.file for photo in photos if photo.file}
        unnamed = {os.path.realpath(image_folder / name) for same in files.values() for name in same} - named
        if label_path is not None:
            unnamed.discard(os.path.realpath(label_path))
            print(f"Files that no row names: {len(unnamed)}")

        names = sorted(usable["label"].unique())
        if usable.empty:
            raise ValueError(
                f"No photo can be used. Is --image_path {image_path} the folder that the names start from?"
            )
        if len(names) < 2:
            raise ValueError(f"A classifier needs usable photos of two classes or more; all are {names[0]!r}.")
        labels = np.array([names.index(label) for label in usable["label"]])
        groups = near_duplicate_groups(list(usable["look"]))
        split = split_numbers(labels, groups, names, test_size, validation_size, seed)
        sizes = np.bincount(groups)
        near = {"groups": int((sizes > 1).sum()), "photos": int(sizes[sizes > 1].sum()), "bits": NEAR_BITS}
        print(f"Near-duplicates, kept together in one split: {near['photos']} photos in {near['groups']} groups")
        dataset = build(list(usable["stored"]), labels, names, split, seed)
        report = {
            "rows": len(table),
            "dropped": reasons,
            "unnamed_files": len(unnamed) if label_path is not None else 0,
            "merged": merged,
            "near_duplicates": near,
            "splits": {name: class_counts(part) for name, part in dataset.items()},
            "test_size": test_size,
            "validation_size": validation_size,
            "seed": seed,
            "command": command,
        }
        dataset.save_to_disk(str(unfinished))  # copies the photos' bytes, so the dataset needs the folder no more
        shutil.rmtree(copies)
        write_report(unfinished, report, table, dst_path.name)
        if dst_path.exists():
            dst_path.rename(hidden(dst_path, "replaced"))
        unfinished.rename(dst_path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(hidden(dst_path, "replaced"), ignore_errors=True)

    print(f"Features: {dataset['train'].features}")
    for name, counts in report["splits"].items():
        by_class = ", ".join(f"{label} {count}" for label, count in counts.items())
        print(f"{name}: {sum(counts.values())} photos ({by_class})")
    print(f"Dataset written to {dst_path}; what was left out, and why, is in {dst_path / 'dropped.csv'}")
    if push_to_hub:
        push(dst_path, push_to_hub)
    return load_from_disk(str(dst_path))


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


def class_counts(part) -> dict[str, int]:
    """Return how many photos of each class a split holds."""
    counts = Counter(part["label"])
    return {name: counts[index] for index, name in enumerate(part.features["label"].names)}


def command_line(asked: dict) -> str:
    """Return the command that does what `prepare` was asked for, defaults included, which another version may change."""
    words = ["python", "prep.py"]
    for name, value in asked.items():
        if value is not None and value is not False and name != "num_proc":
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(words)


def retried(call):
    """Return what `call()` returns, called again while the Hub is busy or the connection is cut, for about 20 seconds.

    Raises:
        OSError, ValueError: what the last call raised.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

    def passing(error: BaseException) -> bool:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code == 429 or error.response.status_code >= 500
        return isinstance(error, httpx2.TransportError)

    wait = wait_exponential_jitter(initial=1, max=30)
    retrying = Retrying(retry=retry_if_exception(passing), wait=wait, stop=stop_after_attempt(5), reraise=True)
    try:
        return retrying(call)
    except httpx2.TransportError as error:
        raise ConnectionError(str(error)) from error


def create_repo(repo_id: str) -> None:
    """Make sure that the dataset repo exists, private if it is new, and may be written.

    Raises:
        OSError: with the reason, if not.
    """
    from huggingface_hub import HfApi

    try:
        retried(lambda: HfApi().create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True))
    except (OSError, ValueError) as error:
        raise OSError(
            f"--push_to_hub {repo_id}: the Hub does not give a repo to write to ({first_line(error)}). "
            "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there."
        ) from error


def push(dst_path: Path, repo_id: str) -> None:
    """Upload the dataset, as Parquet files that `load_dataset` streams, its card and its report, in one commit.

    Raises:
        OSError: if the Hub does not take it.
    """
    from datasets import load_from_disk
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix=f".{dst_path.name}-", dir=dst_path.parent) as scratch:
        for file in dst_path.iterdir():
            if file.suffix in (".md", ".csv", ".png") or file.name == "report.json":
                shutil.copy(file, scratch)
        for name, part in load_from_disk(str(dst_path)).items():
            shards = -(-part.data.nbytes // SHARD_BYTES)
            for index in range(shards):
                file = Path(scratch, "data", f"{name}-{index:05d}-of-{shards:05d}.parquet")
                file.parent.mkdir(exist_ok=True)
                part.shard(shards, index, contiguous=True).to_parquet(file)
        try:
            commit = retried(
                lambda: HfApi().upload_folder(
                    repo_id=repo_id, repo_type="dataset", folder_path=scratch, commit_message="Upload the dataset"
                )
            )
        except (OSError, ValueError) as error:
            raise OSError(
                f"The dataset is whole in {dst_path}, but the Hub did not take it ({first_line(error)}). "
                f"Push it later with the same command and --overwrite."
            ) from error
    print(f"Pushed to {repo_id}, revision {commit.oid}")


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, for the use inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def size(text: str) -> float:
    """Return a size of the command line: a whole number of photos, or a share."""
    return int(text) if text.isdecimal() else float(text)


def parser() -> argparse.ArgumentParser:
    """Return the parser; `main` also takes the flags with hyphens."""
    parser = argparse.ArgumentParser(
        prog="prep.py",
        description="Turn labelled photos, a CSV and a folder or one folder per class, into a dataset with train, "
        "validation and test splits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    required = {"required": True, "default": argparse.SUPPRESS}
    add = parser.add_argument_group("input and output").add_argument
    add("--image_path", metavar="FOLDER", help="folder with the photos, which is only read", **required)
    labels = "labels; if not given, the folders in the image folder are the classes"
    add("--label_path", metavar="CSV", help=labels)
    add("--image_column", metavar="NAME", help="column with the photos' names; guessed if not given")
    add("--label_column", metavar="NAME", help="column with the labels; guessed if not given")
    add("--dst_path", metavar="FOLDER", help="where the dataset is written", **required)
    add("--overwrite", action="store_true", help="replace a dataset that is already there")
    pushed = "also upload it to this dataset repo, private if it is new"
    add("--push_to_hub", metavar="REPO_ID", help=pushed)
    add = parser.add_argument_group("split").add_argument
    test = "share or number of all photos that is kept for the final test"
    add("--test_size", type=size, default=0.3, metavar="SIZE", help=test)
    validation = "share or number of the remaining photos that picks the best epoch"
    add("--validation_size", type=size, default=0.1, metavar="SIZE", help=validation)
    add("--seed", type=int, default=42, help="the same seed gives the same split")
    add = parser.add_argument_group("photos").add_argument
    smaller = "scale larger photos down to this shorter side; if not given, none"
    add("--image_size", type=int, metavar="PIXELS", help=smaller)
    workers = "photos that are checked at the same time; 1: in this process, without others"
    add("--num_proc", type=int, default=os.cpu_count(), metavar="N", help=workers)
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
