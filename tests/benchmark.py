"""Timings, by hand: each prints a table with the ratios against the alternative in the same run.

python tests/benchmark.py prep --image_path images --label_path labels.csv
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

DECODE = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
def decode(file):
    try:
        with Image.open(file) as image:
            image.load()
    except OSError:
        pass
files = open(sys.argv[1]).read().splitlines()
with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(decode, files))
"""

IMAGEFOLDER = """
import os, sys
from datasets import load_dataset
dataset = load_dataset("imagefolder", data_dir=sys.argv[1], split="train")
def whole(photo):
    try:
        photo["image"].load()
        return {"whole": True}
    except OSError:
        return {"whole": False}
dataset = dataset.map(whole, num_proc=os.cpu_count()).filter(lambda whole: whole, input_columns="whole")
dataset = dataset.remove_columns("whole").train_test_split(0.3, stratify_by_column="label", seed=42)
dataset.save_to_disk(sys.argv[2])
"""


def measured(command: list) -> tuple[float, float]:
    """Return the seconds and the peak MB (10^6 bytes) of a command; its children's memory counts as one's own maximum."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            sys.exit(log.read().decode()[-2000:])
    return time.perf_counter() - start, usage.ru_maxrss * (1024 if sys.platform == "linux" else 1) / 1e6


def table(header: tuple, rows: list[tuple]) -> None:
    """Print a Markdown table."""
    for row in (header, ("---",) * len(header), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


def labelled_files(image_path: Path, label_path: Path) -> list[tuple[Path, str]]:
    """Return the rows of the CSV (columns image_name and label) whose file exists and whose label is not empty."""
    with label_path.open(encoding="utf-8") as file:
        rows = [(image_path / row["image_name"], row["label"]) for row in csv.DictReader(file)]
    return [(file, label) for file, label in rows if label and file.is_file()]


def prep(image_path: Path, label_path: Path) -> None:
    """prep.py with 2,000 and with 20,000 photos; decoding alone; datasets' imagefolder with a map that decodes."""
    photos = labelled_files(image_path, label_path)
    # Mixed, so that 2,000 of them have every class: real tables are often sorted.
    photos = [photos[index * 7919 % len(photos)] for index in range(len(photos))][:20_000]
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in (len(photos) // 10, len(photos)):
            labels, files, folders = (Path(scratch, f"{name}{count}") for name in ("labels", "files", "folders"))
            labels.write_text(
                "\n".join(["image_name,label", *(f"{f.relative_to(image_path)},{name}" for f, name in photos[:count])])
            )
            files.write_text("\n".join(str(file) for file, _ in photos[:count]))
            for file, label in photos[:count]:
                (folders / label).mkdir(parents=True, exist_ok=True)
                os.link(file, folders / label / file.name) if same_disk(file, folders) else shutil.copy(
                    file, folders / label / file.name
                )
            command = ["--image_path", image_path, "--label_path", labels, "--dst_path", Path(scratch, f"a{count}")]
            alternatives = {
                "prep.py": [ROOT / "prep.py", *command],
                "decoding alone, parallel": ["-c", DECODE, files],
                "imagefolder + map + split": ["-c", IMAGEFOLDER, folders, Path(scratch, f"b{count}")],
            }
            for name, words in alternatives.items():
                seconds, memory = found[name, count] = measured(words)
                ratio = found["prep.py", count][0] / seconds
                speed = f"{count / seconds:.0f}"
                rows.append((name, count, f"{seconds:.1f}", speed, f"{memory:.0f}", f"{1 / ratio:.2f}"))
    table(("what", "photos", "s", "photos/s", "peak MB", "time against prep.py's"), rows)
    small, large = found["prep.py", len(photos) // 10], found["prep.py", len(photos)]
    steady = (len(photos) * 9 / 10) / (large[0] - small[0])
    decode = (len(photos) * 9 / 10) / (
        found["decoding alone, parallel", len(photos)][0] - found["decoding alone, parallel", len(photos) // 10][0]
    )
    print()
    table(
        ("prep.py, ten times the photos", "ratio"),
        [
            ("time", f"{large[0] / small[0]:.1f}"),
            ("peak memory", f"{large[1] / small[1]:.2f}"),
            ("photos/s past the start, against decoding alone", f"{steady / decode:.2f}"),
        ],
    )


def same_disk(file: Path, folder: Path) -> bool:
    """Return whether a hard link can be made, so that no photo need be copied."""
    return file.stat().st_dev == folder.stat().st_dev


def main() -> None:
    parser = argparse.ArgumentParser(description="Timings, each against the alternative in the same run.")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("prep", help=prep.__doc__)
    one.add_argument("--image_path", type=Path, required=True)
    one.add_argument("--label_path", type=Path, required=True, help="CSV with the columns image_name and label")
    one.set_defaults(job=prep)
    arguments = vars(parser.parse_args())
    arguments.pop("job")(**arguments)


if __name__ == "__main__":
    main()
