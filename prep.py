"""Turn a labels CSV and a folder of photos into a dataset with train, validation and test splits.

    python prep.py --image_path images --label_path labels.csv --dst_path dataset
    python prep.py --image_path images --label_path labels.csv --dst_path dataset --test_size 0.2 --overwrite

The CSV has the columns `image_name` (a path below the image folder) and `label`. Rows that cannot be used are left
out and listed, with their reason, in `dropped.csv` inside the dataset folder; `report.json` there holds the counts.
In a notebook:

    from prep import prepare
    dataset = prepare(image_path="images", label_path="labels.csv", dst_path="dataset")
"""

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

IMAGE_COLUMN = "image_name"
LABEL_COLUMN = "label"
EMPTY_LABEL, MISSING_FILE, OUTSIDE, UNDECODABLE = (
    "empty label",
    "missing file",
    "outside the folder",
    "undecodable file",
)
# Pillow opens dozens of formats, some with decoders that nobody watches; photos come in these.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO")
MAX_PIXELS = 89_000_000  # above it a small file can fill the memory; Pillow's own warning starts just above
SPLITS = ("train", "validation", "test")


def read_labels(label_path: Path):
    """Return the CSV as a frame of strings with the columns `image_name`, `label` and `row` (the header is row 1).

    Raises:
        ValueError: if the file is not a CSV with the two columns.
    """
    import pandas as pd

    try:
        # Everything is text: a label "NA" or a file "007" is taken as it stands. Only an empty cell is empty.
        table = pd.read_csv(label_path, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{label_path} cannot be read as a CSV in UTF-8: {str(error).strip()}") from error
    for column in (IMAGE_COLUMN, LABEL_COLUMN):
        if column not in table:
            found = ", ".join(map(str, table.columns))
            raise ValueError(
                f"{label_path} has no column {column!r}; it has: {found}. Rename the column in its first row."
            )
    table = table[[IMAGE_COLUMN, LABEL_COLUMN]].apply(lambda column: column.str.strip())
    table["row"] = range(2, len(table) + 2)
    return table[(table[IMAGE_COLUMN] != "") | (table[LABEL_COLUMN] != "")]  # blank lines say nothing


def defect(image_folder: Path, image_name: str, label: str) -> tuple[str, str] | None:
    """Return why a row cannot be used as (kind, detail), or None if its photo decodes to the last pixel."""
    from PIL import Image

    if not label:
        return EMPTY_LABEL, ""
    try:
        file = (image_folder / image_name).resolve()
        if not file.is_relative_to(image_folder):
            return OUTSIDE, "the name leads out of the image folder"
        if not file.is_file():  # a folder or a pipe is no photo either, and opening a pipe would wait for ever
            return MISSING_FILE, ""
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return UNDECODABLE, f"{image.width} x {image.height} pixels are too many"
            image.load()  # verify() would accept a JPEG that is cut off in the middle
    except Exception as error:  # noqa: BLE001 - whatever one broken file makes Pillow raise, the run goes on
        return UNDECODABLE, str(error).replace(str(image_folder) + os.sep, "")
    return None


def defects(image_folder: Path, table, num_proc: int) -> list[tuple[str, str] | None]:
    """Return `defect` of every row, in the order of the table, with a progress bar."""
    from tqdm.auto import tqdm

    with ThreadPoolExecutor(num_proc) as pool:  # Pillow decodes outside Python's lock, so threads use all cores
        checked = pool.map(
            lambda name, label: defect(image_folder, name, label), table[IMAGE_COLUMN], table[LABEL_COLUMN]
        )
        return list(tqdm(checked, total=len(table), desc="Checking photos", unit="photo"))


def split_dataset(image_files: list[str], labels: list[str], test_size: float, validation_size: float, seed: int):
    """Return a `DatasetDict` with a stratified train, validation and test split; classes are in alphabetical order.

    Args:
        test_size: share of all photos.
        validation_size: share of the photos that are not in the test split.

    Raises:
        ValueError: if a class has too few photos to be in every split.
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

    counts = Counter(labels)
    if len(counts) < 2:
        raise ValueError(f"A classifier needs photos of two classes or more; usable photos by class: {dict(counts)}.")
    name, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest < len(SPLITS):
        raise ValueError(
            f"Class {name!r} has {fewest} usable photo(s), but each of the {len(SPLITS)} splits needs one. Add photos."
        )

    names = sorted(counts)
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    dataset = Dataset.from_dict({"image": image_files, "label": [names.index(label) for label in labels]}, features)
    try:
        rest, test = dataset.train_test_split(test_size, stratify_by_column="label", seed=seed).values()
        train, validation = rest.train_test_split(validation_size, stratify_by_column="label", seed=seed).values()
    except ValueError as error:
        raise ValueError(
            f"The photos cannot be split like this, change --test_size or --validation_size: {error}"
        ) from error
    splits = DatasetDict(zip(SPLITS, (train, validation, test), strict=True))
    for split, part in splits.items():
        absent = sorted(set(range(len(names))) - set(part["label"]))
        if absent:
            raise ValueError(
                f"The {split} split would hold no photo of class {names[absent[0]]!r} ({counts[names[absent[0]]]} photos in all). "
                "Add photos of it, or change --test_size or --validation_size."
            )
    return splits


def class_counts(part) -> dict[str, int]:
    """Return how many photos of each class a split holds."""
    counts = Counter(part["label"])
    return {name: counts[index] for index, name in enumerate(part.features["label"].names)}


def prepare(
    *,
    image_path: str | Path,
    label_path: str | Path,
    dst_path: str | Path,
    test_size: float = 0.3,
    validation_size: float = 0.1,
    seed: int = 42,
    overwrite: bool = False,
    num_proc: int | None = None,
):
    """Check every row and photo, split what can be used, save it to `dst_path` and return the `DatasetDict`.

    Nothing is written at `dst_path` before all of it is there, and the image folder is only read.

    Raises:
        OSError: if an input does not exist or `dst_path` does and is not to be replaced.
        ValueError: if the CSV, the sizes or the classes do not allow a dataset.
    """
    image_folder, label_path, dst_path = Path(image_path).resolve(), Path(label_path), Path(dst_path)
    if not image_folder.is_dir():
        raise NotADirectoryError(f"--image_path {image_path} is not a folder.")
    if not label_path.is_file():
        raise FileNotFoundError(f"--label_path {label_path} is not a file.")
    for flag, share in (("--test_size", test_size), ("--validation_size", validation_size)):
        if not 0 < share < 1:
            raise ValueError(f"{flag} {share:g} is not a share between 0 and 1, such as 0.2.")
    if dst_path.exists() and not overwrite:
        raise FileExistsError(
            f"--dst_path {dst_path} exists already. Choose another folder, or add --overwrite to replace it."
        )
    if dst_path.exists() and not (dst_path / "dataset_dict.json").is_file():
        raise FileExistsError(
            f"--dst_path {dst_path} is not a dataset, so --overwrite leaves it alone. Choose another folder."
        )

    table = read_labels(label_path)
    from datasets import load_from_disk  # heavy, so after the checks: `--help` and mistakes answer at once

    found = defects(image_folder, table, num_proc or os.cpu_count() or 1)
    dropped = [
        {"file": name, "row": row, "reason": f"{why[0]}: {why[1]}" if why[1] else why[0]}
        for name, row, why in zip(table[IMAGE_COLUMN], table["row"], found, strict=True)
        if why
    ]
    reasons = Counter(why[0] for why in found if why)
    for reason in (EMPTY_LABEL, MISSING_FILE, OUTSIDE, UNDECODABLE):
        print(f"Dropped for {reason}: {reasons[reason]}")

    usable = table[[why is None for why in found]]
    image_files = [str(image_folder / name) for name in usable[IMAGE_COLUMN]]
    dataset = split_dataset(image_files, list(usable[LABEL_COLUMN]), test_size, validation_size, seed)

    report = {
        "rows": len(table),
        "dropped": dict(reasons),
        "splits": {split: {"photos": len(part), "by class": class_counts(part)} for split, part in dataset.items()},
        "test_size": test_size,
        "validation_size": validation_size,
        "seed": seed,
    }
    save(dataset, report, dropped, dst_path)
    print(f"Features: {dataset['train'].features}")
    for split, counts in report["splits"].items():
        by_class = ", ".join(f"{name} {count}" for name, count in counts["by class"].items())
        print(f"{split}: {counts['photos']} photos ({by_class})")
    print(f"Dataset written to {dst_path}; what was left out, and why, is in {dst_path / 'dropped.csv'}")
    return load_from_disk(str(dst_path))


def save(dataset, report: dict, dropped: list[dict], dst_path: Path) -> None:
    """Write dataset, report and list of dropped rows beside `dst_path`, then put the whole in its place at once."""
    import pandas as pd

    dst_path.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = (dst_path.with_name(f".{dst_path.name}.{word}") for word in ("partial", "replaced"))
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        dataset.save_to_disk(str(partial))  # copies the photos' bytes, so the dataset needs the folder no more
        (partial / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        pd.DataFrame(dropped, columns=["file", "row", "reason"]).to_csv(partial / "dropped.csv", index=False)
        if dst_path.exists():
            dst_path.rename(replaced)
        partial.rename(dst_path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser; `main` also takes the flags with hyphens."""
    parser = argparse.ArgumentParser(
        prog="prep.py",
        description="Turn a labels CSV and a folder of photos into a dataset with train, validation and test splits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    paths = parser.add_argument_group("input and output")
    paths.add_argument(
        "--image_path",
        required=True,
        metavar="FOLDER",
        help="folder with the photos; it is only read",
        default=argparse.SUPPRESS,
    )
    paths.add_argument(
        "--label_path",
        required=True,
        metavar="CSV",
        help="labels, with the columns image_name and label",
        default=argparse.SUPPRESS,
    )
    paths.add_argument(
        "--dst_path", required=True, metavar="FOLDER", help="where the dataset is written", default=argparse.SUPPRESS
    )
    paths.add_argument("--overwrite", action="store_true", help="replace a dataset that is already there")
    split = parser.add_argument_group("split")
    split.add_argument(
        "--test_size",
        type=float,
        default=0.3,
        metavar="SHARE",
        help="share of all photos that is kept for the final test",
    )
    split.add_argument(
        "--validation_size",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the remaining photos that picks the best epoch",
    )
    split.add_argument("--seed", type=int, default=42, help="the same seed gives the same split")
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--num_proc", type=int, default=os.cpu_count(), metavar="N", help="photos that are checked at the same time"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = [underscored(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    try:
        prepare(**vars(parser().parse_args(arguments)))
    except (OSError, ValueError) as error:
        sys.exit(f"prep.py: error: {error}")
    except KeyboardInterrupt:
        print("prep.py: stopped, nothing was written", file=sys.stderr)
        sys.exit(130)


def underscored(argument: str) -> str:
    """Return `--image-path=a-b` as `--image_path=a-b`, so that both spellings of a flag work."""
    flag, equals, value = argument.partition("=")
    return flag.replace("-", "_").replace("__", "--", 1) + equals + value if flag.startswith("--") else argument


if __name__ == "__main__":
    main()
