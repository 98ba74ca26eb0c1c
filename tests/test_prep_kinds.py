"""What people have: lists, folders, archives and datasets of every kind that prep.py takes, or refuses in words."""

import csv
import io
import json
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import call, drawn_photo, share
from datasets import Dataset, DatasetDict, load_from_disk
from huggingface_hub import DatasetCard
from PIL import Image

CLASSES = ("Cat", "Dog", "Neither")


def class_of(number: int) -> str:
    return CLASSES[number % 3]


def draw(folder: Path, name, count=30) -> None:
    """Save photo number i as folder / name(i); each looks different."""
    for number in range(count):
        file = folder / name(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn_photo(class_of(number), number).save(file, "PNG")


def write_list(file: Path, rows, separator=",", encoding="utf-8", start="") -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows(rows)
    file.write_bytes((start + text.getvalue()).encode(encoding))


def listed(name, label=class_of, header=("file", "label"), count=30) -> list:
    return [header, *((name(number), label(number)) for number in range(count))]


def run(folder: Path, *more, images="images", labels=None):
    paths = ["--image_path", folder / images, "--dst_path", folder / "out", "--num_proc", 1]
    return call("prep.py", *paths, *(["--label_path", folder / labels] if labels else []), *more)


def prepare(folder: Path, *more, label=class_of, numbers=range(30), split=None, **paths) -> str:
    """Run prep.py; every photo has to come back under the label (and in the split) of its number; return what it said."""
    result = run(folder, *more, **paths)
    assert result.returncode == 0, result.stderr
    found, places = {}, {}
    for place, part in load_from_disk(str(folder / "out")).items():
        for image, index in zip(part["image"], part["label"], strict=True):
            found[image.convert("RGB").tobytes()] = part.features["label"].names[index]
            places[image.convert("RGB").tobytes()] = place
    pixels = {number: drawn_photo(class_of(number), number).tobytes() for number in numbers}
    assert found == {pixels[number]: label(number) for number in numbers}
    if split:
        assert {n: places[pixels[n]] for n in numbers if split(n)} == {n: split(n) for n in numbers if split(n)}
    return result.stdout


def refusal(folder: Path, *more, **paths) -> str:
    """Run prep.py, which has to refuse in one sentence and to leave no dataset; return the sentence."""
    result = run(folder, *more, **paths)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert not (folder / "out").exists() and not (folder / ".out.partial").exists()
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("written", "file"),
    [
        (lambda i: f"photos/set 1/p{i}.png", lambda i: f"p{i}.png"),
        (lambda i: f"/home/me/data/{class_of(i)}/p{i}.png", lambda i: f"{class_of(i)}/p{i}.png"),
        (lambda i: rf"D:\data\p{i}.PNG", lambda i: f"p{i}.png"),
        (lambda i: f"https://example.org/store/my%20photo%20{i}.png?width=100#top", lambda i: f"my photo {i}.png"),
        (lambda i: f"../input/train/p{i}.png", lambda i: f"p{i}.png"),
        (lambda i: f"p{i}.bmp", lambda i: f"p{i}.png"),
        (lambda i: f"scan.v{i}", lambda i: f"deep/er/scan.v{i}.png"),
        (lambda i: str(i), lambda i: f"{i:05d}.png"),
        (lambda i: f"{i}.0", lambda i: f"half{i % 2}/{i:03d}.png"),
        (lambda i: f"LESION_{i}", lambda i: f"lesion_{i:07d}.png"),
        (lambda i: unicodedata.normalize("NFD", f"für {i}.png"), lambda i: f"für {i}.png"),
        (lambda i: rf"{class_of(i)}\{i // 3}", lambda i: f"part{i % 4}/{class_of(i)}/{i // 3}.png"),
        (lambda i: f"/data/local-files/?d=set/p{i}.png", lambda i: f"p{i}.png"),
    ],
)
def test_a_name_is_found_however_the_list_writes_it(tmp_path, written, file):
    draw(tmp_path / "images", file)
    write_list(tmp_path / "labels.csv", listed(written, header=("image_id", "label")))
    prepare(tmp_path, labels="labels.csv")


def test_where_two_files_fit_the_row_is_left_out_and_both_are_named(tmp_path):
    draw(tmp_path / "images", lambda i: f"p{i}.png")
    draw(tmp_path / "images", lambda i: f"old/q{i}.png", 2)
    draw(tmp_path / "images", lambda i: f"new/q{i}.png", 2)
    rows = [*listed(lambda i: f"p{i}.png"), ("q0.png", "Cat"), ("x/q1.png", "Cat")]
    write_list(tmp_path / "labels.csv", rows)
    assert "Dropped for ambiguous name: 2" in prepare(tmp_path, labels="labels.csv")
    assert "could be new/q0.png or old/q0.png" in (tmp_path / "out" / "dropped.csv").read_text()


def test_a_name_that_only_resembles_a_file_of_another_row_takes_nothing_from_it(tmp_path):
    draw(tmp_path / "images", lambda i: f"train/{i}.png")
    rows = listed(lambda i: f"train/{i}.png") + listed(lambda i: f"test/{i}.png", lambda i: class_of(i + 1))[1:]
    write_list(tmp_path / "labels.csv", rows)
    assert "Dropped for ambiguous name: 30" in prepare(tmp_path, labels="labels.csv")


def test_a_file_in_the_right_folder_and_one_of_the_right_name_contradict(tmp_path):
    draw(tmp_path / "images", lambda i: f"p{i}.png")
    for name in ("cat/1.tif", "dog/1.png"):
        (tmp_path / "images" / name).parent.mkdir()
        drawn_photo("Cat", hash(name) % 1000 + 100).save(tmp_path / "images" / name)
    write_list(tmp_path / "labels.csv", [*listed(lambda i: f"p{i}.png"), ("cat/1.png", "Cat")])
    prepare(tmp_path, labels="labels.csv")
    assert "ambiguous name: could be cat/1.tif or dog/1.png" in (tmp_path / "out" / "dropped.csv").read_text()


def test_where_no_name_fits_one_sentence_shows_one_and_what_is_there_and_a_list_says_the_rest(tmp_path):
    draw(tmp_path / "images", lambda i: f"p{i}.png")
    write_list(tmp_path / "labels.csv", listed(lambda i: str(7000 + i), header=("image_id", "label")))
    said = refusal(tmp_path, labels="labels.csv")
    assert "'7000'" in said and "'p0.png'" in said and "out.dropped.csv" in said
    assert (tmp_path / "out.dropped.csv").read_text().count("missing file") == 30


def split_of(number: int) -> str:
    return ("train", "train", "train", "validation", "test")[number // 3 % 5]


@pytest.mark.parametrize(
    ("names", "wrapper", "inner"),
    [
        ({"train": "Training", "validation": "valid", "test": "testing"}, "", ""),
        ({"train": "train", "validation": "dev", "test": "test"}, "pets-v2/data/", ""),
        ({"train": "training_set/training_set", "validation": "val_set/val_set", "test": "test_set/test_set"}, "", ""),
        ({"train": "pets_train", "validation": "pets_validation", "test": "pets_test"}, "", "images/"),
    ],
)
def test_folders_that_are_splits_are_kept_and_the_class_folders_below_are_the_classes(tmp_path, names, wrapper, inner):
    draw(tmp_path / "images", lambda i: f"{wrapper}{names[split_of(i)]}/{inner}{class_of(i)}/{i}.png")
    prepare(tmp_path, split=split_of)


def test_splits_inside_the_class_folders_are_kept_and_a_missing_one_is_cut_from_train(tmp_path):
    draw(tmp_path / "images", lambda i: f"{class_of(i)}/{'test' if i > 20 else 'train'}/{i}.png")
    prepare(tmp_path, split=lambda i: "test" if i > 20 else "")
    dataset = load_from_disk(str(tmp_path / "out"))
    assert dataset["test"].num_rows == 9 and dataset["validation"].num_rows == 3


def test_a_class_may_be_called_train_and_photos_without_a_class_are_left_out(tmp_path):
    draw(tmp_path / "images", lambda i: f"{'train' if i % 3 else 'tram'}/{i}.png")
    prepare(tmp_path, label=lambda i: "train" if i % 3 else "tram")


def test_a_test_folder_without_class_folders_is_left_out(tmp_path):
    draw(tmp_path / "images", lambda i: f"train/{class_of(i)}/{i}.png")
    for number in range(40, 50):
        (tmp_path / "images" / "test").mkdir(exist_ok=True)
        drawn_photo("Cat", number).save(tmp_path / "images" / "test" / f"{number}.png")
    assert "Dropped for empty label: 10" in prepare(tmp_path)


def test_flat_folders_are_refused_with_the_list_that_lies_there(tmp_path):
    draw(tmp_path / "images", lambda i: f"{'test' if i % 3 else 'train'}/{i}.png")
    write_list(tmp_path / "images" / "answers.csv", listed(lambda i: f"{i}.png"))
    said = refusal(tmp_path)
    assert "no class folders" in said and "--label_path, perhaps answers.csv" in said


@pytest.mark.parametrize(
    "columns",
    [
        ("age", "picture", "kind"),
        ("", "path", "label"),
        ("id", "filename", "label"),
        ("Unnamed: 0", "width", "photo", "class"),
    ],
)
def test_a_numbering_beside_the_names_never_counts_as_names(tmp_path, columns):
    draw(tmp_path / "images", lambda i: f"{i}.png")
    numbers = [(29 - i,) + ((640,) if len(columns) > 3 else ()) for i in range(30)]
    rows = [(*numbers[i], f"set/{i}.png", class_of(i)) for i in range(30)]
    write_list(tmp_path / "labels.csv", [columns, *rows])
    prepare(tmp_path, labels="labels.csv")


def test_two_numberings_are_asked_about_and_names_that_do_not_fit_are_no_reason_to_take_a_numbering(tmp_path):
    draw(tmp_path / "images", lambda i: f"{i}.png")
    write_list(tmp_path / "labels.csv", [("a", "b", "label"), *((i, 29 - i, class_of(i)) for i in range(30))])
    assert "Give --image_column, one of: a, b, label" in refusal(tmp_path, labels="labels.csv")
    write_list(
        tmp_path / "labels.csv", [("id", "file", "label"), *((i, f"x{29 - i}.jpg", class_of(i)) for i in range(30))]
    )
    assert "'x29.jpg'" in refusal(tmp_path, labels="labels.csv")


NAMED = [(f"{i}.png", class_of(i)) for i in range(30)]
COCO = {
    "images": [{"id": 50 + i, "file_name": f"{i}.png"} for i in range(30)],
    "annotations": [{"id": i, "image_id": 50 + i, "category_id": i % 3} for i in range(30)],
    "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES)],
}
STUDIO = [
    {
        "id": i,
        "data": {"image": f"/data/upload/{i}.png"},
        "annotations": [{"result": [{"value": {"choices": [label]}}]}],
    }
    for i, (_, label) in enumerate(NAMED)
]
VIA = {"_via_img_metadata": {f"{name}99": {"filename": name, "file_attributes": {"class": k}} for name, k in NAMED}}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", "\n".join(f"{name} {label}" for name, label in NAMED)),
        (
            "list.txt",
            "\n\n# made, by hand\n" + "\n".join(f"{name}|{label}" for name, label in [("file", "label"), *NAMED]),
        ),
        ("list.csv", "sep=|\r\n" + "\r\n".join(f"{name}|{label}" for name, label in [("file", "label"), *NAMED])),
        ("list.csv", "\n".join(f"{i},{name},{label}" for i, (name, label) in enumerate(NAMED))),
        ("list.xls", "\n".join(f"{name}\t{label}\t" for name, label in [("fichier", "classe"), *NAMED])),
        ("list.json", json.dumps(dict(NAMED))),
        ("list.json", json.dumps({kind: [n for n, label in NAMED if label == kind] for kind in CLASSES})),
        ("list.json", json.dumps({"version": 1, "items": [{"file": {"name": n}, "class": k} for n, k in NAMED]})),
        ("list.json", json.dumps({"labels": [[name, label] for name, label in NAMED]})),
        ("list.json", pd.DataFrame(NAMED, columns=["file", "label"]).to_json()),
        ("list.json", pd.DataFrame(NAMED, columns=["file", "label"]).to_json(orient="split")),
        ("list.json", pd.DataFrame(NAMED, columns=["file", "label"]).set_index("file").to_json()),
        ("list.json", json.dumps(COCO)),
        ("list.json", json.dumps(STUDIO)),
        ("list.json", json.dumps(VIA)),
        ("list.jsonl", "\n".join(json.dumps({"image": {"path": name}, "label": label}) for name, label in NAMED)),
    ],
)
def test_lists_of_labels_are_read_in_the_forms_that_tools_write(tmp_path, name, content):
    draw(tmp_path / "images", lambda i: f"{i}.png")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    prepare(tmp_path, labels=name)


def test_workbooks_and_parquet_files_are_read(tmp_path):
    draw(tmp_path / "images", lambda i: f"{i:03d}.png")
    frame = pd.DataFrame({"id": range(30), "label": [class_of(i) for i in range(30)]})
    frame.to_parquet(tmp_path / "labels.parquet")
    prepare(tmp_path, labels="labels.parquet")
    with pd.ExcelWriter(tmp_path / "labels.xlsx") as book:
        pd.DataFrame({"about": ["who", "when"], "text": ["we", "now"]}).to_excel(book, sheet_name="Notes", index=False)
        frame[:24].to_excel(book, sheet_name="Training")
        frame[24:].to_excel(book, sheet_name="Test")
    prepare(tmp_path, "--overwrite", labels="labels.xlsx", split=lambda i: "test" if i >= 24 else "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file,label\n" + "\n".join(f"{n},{k}" for n, k in NAMED[:5]) + "\n9.png,Cat, big\n", "line 7 has 3 cells"),
        ("file\tlabel\n0.png\tCat\n\n1.png\tDog\tx\n", "line 4 has 3 cells"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "old Excel workbook"),
        ('{"file": "a.png",', "Expecting property name"),
        ("", "it has no rows"),
        ('file,label\n0.png,Cat\n1.png,"Dog\n2.png,Dog\n', "in line 3 the quotes do not match"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused_with_its_line_and_what_is_known(tmp_path, content, words):
    draw(tmp_path / "images", lambda i: f"{i}.png")
    (tmp_path / "labels.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refusal(tmp_path, labels="labels.json")
    assert words in said and "JSON Lines, Excel" in said


def test_metadata_files_beside_the_photos_are_their_list(tmp_path):
    for split, numbers in (("train", range(24)), ("test", range(24, 30))):
        folder = tmp_path / "images" / split
        folder.mkdir(parents=True)
        for number in numbers:
            drawn_photo(class_of(number), number).save(folder / f"{number % 24}.png")
        write_list(
            folder / "metadata.csv", [("file_name", "label"), *((f"{n % 24}.png", class_of(n)) for n in numbers)]
        )
    prepare(tmp_path, split=lambda i: "test" if i >= 24 else "")


def pack(folder: Path, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))


def test_archives_are_unpacked_with_those_inside_and_without_what_a_mac_adds(tmp_path):
    draw(tmp_path / "raw", lambda i: f"{class_of(i)}/{i}.png")
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "raw", "./photos")
    prepare(tmp_path, images="photos.tar.gz")
    (tmp_path / "packed").mkdir()
    for kind in CLASSES:
        pack(tmp_path / "raw" / kind, tmp_path / "packed" / f"{kind}.zip")
    prepare(tmp_path, "--overwrite", images="packed")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for kind in CLASSES:
            archive.write(tmp_path / "packed" / f"{kind}.zip", f"all/{kind}.zip")
        archive.writestr("__MACOSX/all/._Cat.png", b"x")
        archive.writestr("all/.DS_Store", b"x")
    assert "Dropped" not in prepare(tmp_path, "--overwrite", images="all.zip")


def link(archive: tarfile.TarFile) -> None:
    entry = tarfile.TarInfo("Cat/link.png")
    entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    archive.addfile(entry)


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "..\\evil.png", "C:\\evil.png", "a/../../evil.png", None])
def test_an_archive_that_would_write_elsewhere_is_refused_without_a_trace(tmp_path, name):
    draw(tmp_path / "in" / "raw", lambda i: f"{class_of(i)}/{i}.png", 6)
    with tarfile.open(tmp_path / "in" / "photos.tar", "w") as archive:
        archive.add(tmp_path / "in" / "raw", "photos")
        if name:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        else:
            link(archive)
    pack(tmp_path / "in" / "raw", tmp_path / "in" / "photos.zip")
    with zipfile.ZipFile(tmp_path / "in" / "photos.zip", "a") as archive:
        entry = zipfile.ZipInfo(name or "Cat/link.png")
        entry.external_attr = 0 if name else 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    before = sorted(tmp_path.parent.rglob("*"))
    for kind in ("tar", "zip"):
        said = refusal(tmp_path, "--dst_path", tmp_path / "new" / "folder" / "out", images=f"in/photos.{kind}")
        assert "is refused" in said and "is a link, or would lie outside" in said
        assert sorted(tmp_path.parent.rglob("*")) == before


def test_archives_have_a_limit_and_damaged_ones_are_refused(tmp_path, monkeypatch):
    import prep

    draw(tmp_path / "raw", lambda i: f"{class_of(i)}/{i}.png")
    pack(tmp_path / "raw", tmp_path / "photos.zip")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "photos.zip").read_bytes()[:-300])
    assert "is refused" in refusal(tmp_path, images="cut.zip")
    monkeypatch.setattr(prep, "MAX_UNPACKED_BYTES", 10_000)
    assert "it holds more than" in refusal(tmp_path, images="photos.zip")
    monkeypatch.setattr(prep, "MAX_UNPACKED_FILES", 29)
    assert "more than 29 files" in refusal(tmp_path, images="photos.zip")


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        ("png", lambda grey: (1000 + grey * 1023).astype(np.uint16)),
        ("tif", lambda grey: (grey * 70_000 - 30_000).astype(np.int32)),
        ("tif", lambda grey: np.where(grey == grey.max(), np.nan, grey * 4000 - 1000).astype(np.float32)),
    ],
)
def test_grey_of_more_than_eight_bits_is_scaled_from_its_darkest_to_its_brightest(tmp_path, suffix, change):
    for number in range(30):
        file = tmp_path / "images" / class_of(number) / f"{number}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        grey = np.asarray(drawn_photo(class_of(number), number).convert("L"), float) / 255
        Image.fromarray(change(grey)).save(file)
    assert run(tmp_path).returncode == 0
    dataset = load_from_disk(str(tmp_path / "out"))
    for part in dataset.values():
        for image in part["image"]:
            assert image.mode in ("L", "RGB") and image.convert("L").getextrema() == (0, 255)
    assert "each scaled from its darkest to its brightest" in (tmp_path / "out" / "README.md").read_text()


def dataset_of(numbers, label="label", image="image", text=False) -> Dataset:
    kind = datasets.Value("string") if text else datasets.ClassLabel(names=list(CLASSES))
    features = datasets.Features({image: datasets.Image(), label: kind})
    rows = {image: [], label: [class_of(number) for number in numbers]}
    for number in numbers:
        content = io.BytesIO()
        drawn_photo(class_of(number), number).save(content, "PNG")
        rows[image].append({"bytes": content.getvalue(), "path": None})
    return Dataset.from_dict(rows, features)


def test_saved_datasets_are_taken_with_their_columns_and_splits(tmp_path):
    parts = {"train": dataset_of(range(18)), "valid": dataset_of(range(18, 24)), "test": dataset_of(range(24, 30))}
    DatasetDict(parts).rename_columns({"image": "img", "label": "fine_label"}).save_to_disk(tmp_path / "saved")
    where = lambda i: "train" if i < 18 else "validation" if i < 24 else "test"  # noqa: E731
    prepare(tmp_path, images="saved", split=where)
    dataset_of(range(30), "breed", "photo", text=True).save_to_disk(tmp_path / "one")
    prepare(tmp_path, "--overwrite", images="one")
    prepare(tmp_path, "--overwrite", "--image_column", "photo", "--label_column", "breed", images="one")
    assert (
        "--image_column"
        in call("prep.py", "--image_path", tmp_path / "one", "--dst_path", tmp_path / "x", "--image_column", "z").stderr
    )


def test_parquet_files_are_taken_also_with_bare_bytes(tmp_path):
    dataset_of(range(30)).to_parquet(tmp_path / "photos.parquet")
    prepare(tmp_path, images="photos.parquet")
    rows = [{"name": str(29 - i), "png": dataset_of([i])[0:1]["image"][0], "species": class_of(i)} for i in range(30)]
    for row in rows:
        content = io.BytesIO()
        row["png"].save(content, "PNG")
        row["png"] = content.getvalue()
    pd.DataFrame(rows).to_parquet(tmp_path / "bytes.parquet")
    prepare(tmp_path, "--overwrite", images="bytes.parquet")


def test_a_dataset_of_the_hub_is_taken_at_its_revision_without_its_code(hub, tmp_path, monkeypatch):
    folder = tmp_path / "repo"
    (folder / "data").mkdir(parents=True)
    dataset_of(range(24), "labels", "img").to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    dataset_of(range(24, 30), "labels", "img").to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    (folder / "pets.py").write_text("raise SystemExit('this ran')")
    share(hub, folder, "datasets/you/photos")
    monkeypatch.chdir(tmp_path)
    paths = ["--image_path", "you/photos@main", "--dst_path", tmp_path / "out", "--num_proc", 1]
    result = call("prep.py", *paths)
    assert result.returncode == 0, result.stderr
    dataset = load_from_disk(str(tmp_path / "out"))
    assert dataset["test"].num_rows == 6 and sum(part.num_rows for part in dataset.values()) == 30
    assert not any("pets.py" in request for request in hub.requests)
    refused = call("prep.py", "--image_path", "you/nothing", "--dst_path", tmp_path / "x")
    assert refused.returncode == 1 and "cannot be downloaded from the Hub" in refused.stderr


def test_class_folders_on_the_hub_are_taken_with_their_splits(hub, tmp_path, monkeypatch):
    draw(tmp_path / "repo", lambda i: f"{split_of(i)}/{class_of(i)}/{i}.png")
    share(hub, tmp_path / "repo", "datasets/you/folders")
    monkeypatch.chdir(tmp_path)
    prepare(Path(), images="you/folders", split=split_of)


def test_a_dataset_that_only_names_files_is_given_none_of_them(tmp_path):
    draw(tmp_path / "images", lambda i: f"{i}.png")
    rows = {
        "image": [str(tmp_path / "images" / f"{i}.png") for i in range(30)],
        "label": [class_of(i) for i in range(30)],
    }
    named = Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    pq.write_table(named.data.table, tmp_path / "named.parquet")
    assert "two classes or more; there are: none" in refusal(tmp_path, images="named.parquet")


def test_all_rare_classes_are_named_at_once_and_min_photos_leaves_them_out(tmp_path):
    kind = lambda i: class_of(i) if i < 36 else f"rare {i // 2}"  # noqa: E731
    draw(tmp_path / "images", lambda i: f"{kind(i)}/{i}.png", 42)
    said = refusal(tmp_path)
    assert all(f"'rare {n}' (2)" in said for n in (18, 19, 20)) and "--min_photos 3" in said
    said = prepare(tmp_path, "--min_photos", 4, numbers=range(36))
    assert "Classes with fewer than 4 photos: rare 18, rare 19, rare 20" in said


def test_one_hot_columns_are_proposed_and_joined_and_a_row_without_exactly_one_is_refused(tmp_path):
    draw(tmp_path / "images", lambda i: f"{i}.png")
    rows = [(f"{i}.png", i, *(str(one == class_of(i)) for one in CLASSES)) for i in range(30)]
    write_list(tmp_path / "labels.csv", [("photo", "age", *CLASSES), *rows])
    assert "--label_column Cat,Dog,Neither" in refusal(tmp_path, labels="labels.csv")
    prepare(tmp_path, "--label_column", "Cat,Dog,Neither", labels="labels.csv")
    rows[4] = ("4.png", 4, "False", "False", "False")
    write_list(tmp_path / "labels.csv", [("photo", "age", *CLASSES), *rows])
    said = run(tmp_path, "--overwrite", "--label_column", "Cat,Dog,Neither", labels="labels.csv").stderr
    assert "Row 6 needs a 1 in exactly one column" in said


def test_lists_in_a_cell_are_labels_and_those_made_of_others_are_counted(tmp_path):
    draw(tmp_path / "images", lambda i: f"{i}.png")
    kind = lambda i: ("Cat", "Dog", "Cat|Dog")[i % 3]  # noqa: E731
    written = lambda i: ("['Cat']", '["Dog"]', "['Cat', 'Dog']")[i % 3]  # noqa: E731
    write_list(tmp_path / "labels.csv", listed(lambda i: f"{i}.png", written))
    said = prepare(tmp_path, labels="labels.csv", label=kind)
    assert "Photos with a label that combines other labels and is a class of its own: 10" in said


@pytest.mark.parametrize(
    ("encoding", "kinds"),
    [
        ("cp1252", ("Größe", "Hündin", "Übung")),
        ("latin-1", ("crème brûlée", "gâteau", "maïs")),
        ("cp1252", ("niño", "limão", "l’œuf")),
        ("utf-8-sig", ("狗", "猫", "кот")),
        ("utf-16-le", ("狗", "猫", "кот")),
    ],
)
def test_encodings_that_are_certain_are_read(tmp_path, encoding, kinds):
    """UTF, and Windows-1252 whose letters stand as Western European languages write them; no bytes of the next test."""
    draw(tmp_path / "images", lambda i: f"{i}.png")
    write_list(tmp_path / "labels.csv", listed(lambda i: f"{i}.png", lambda i: kinds[i % 3]), encoding=encoding)
    said = prepare(tmp_path, labels="labels.csv", label=lambda i: kinds[i % 3])
    assert ("read as Windows-1252" in said) == (encoding in ("cp1252", "latin-1"))


@pytest.mark.parametrize(
    ("encoding", "kinds"),
    [
        ("gb18030", ("苹果", "香蕉", "梨")),
        ("big5", ("貓", "狗", "鳥")),
        ("shift_jis", ("ネコ", "いぬ", "表")),
        ("euc_kr", ("개", "고양이", "새")),
        ("cp1251", ("кошка", "Пёс", "я")),
        ("koi8_r", ("кошка", "пёс", "птица")),
        ("cp1250", ("kočka", "řeka", "dům")),
        ("cp1250", ("słoń", "ryś", "pies")),
        ("cp1254", ("kuş", "ağaç", "kedi")),
        ("cp1253", ("γάτα", "σκύλος", "πουλί")),
        ("cp850", ("été", "Größe", "niño")),
    ],
)
def test_encodings_that_are_not_certain_are_refused_and_read_on_demand(tmp_path, encoding, kinds):
    """Bytes that more than one encoding can read without a contradiction, so that a guess could garble the labels."""
    draw(tmp_path / "images", lambda i: f"{i}.png")
    write_list(tmp_path / "labels.csv", listed(lambda i: f"{i}.png", lambda i: kinds[i % 3]), encoding=encoding)
    assert "is not UTF-8. Give --encoding" in refusal(tmp_path, labels="labels.csv")
    prepare(tmp_path, "--encoding", encoding, labels="labels.csv", label=lambda i: kinds[i % 3])


def test_names_in_a_zip_without_the_mark_of_utf_8_are_never_garbled(tmp_path):
    draw(tmp_path / "raw", lambda i: f"{'XX' if i % 2 else 'YY'}/{i}.png")
    pack(tmp_path / "raw", tmp_path / "plain.zip")
    content = (tmp_path / "plain.zip").read_bytes()
    for placeholder, name in ((b"XX/", "狗/"), (b"YY/", "猫/")):
        content = content.replace(placeholder, name.encode("gbk"))
    (tmp_path / "photos.zip").write_bytes(content)
    assert "--encoding" in refusal(tmp_path, images="photos.zip")
    prepare(tmp_path, "--encoding", "gbk", images="photos.zip", label=lambda i: "狗" if i % 2 else "猫")


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("Subset", ("TRAIN", "Dev", "testing")),
        ("is_valid", ("False", "True", "False")),
        ("phase", ("", "valid", "test")),
    ],
)
def test_a_column_of_splits_is_used_and_named_unless_it_is_turned_off(tmp_path, header, values):
    draw(tmp_path / "images", lambda i: f"{i}.png")
    value = lambda i: values[0 if i < 18 else 1 if i < 24 else 2]  # noqa: E731
    write_list(
        tmp_path / "labels.csv", [("name", header, "kind"), *((f"{i}.png", value(i), class_of(i)) for i in range(30))]
    )
    where = lambda i: "validation" if 18 <= i < 24 else "test" if i >= 24 and header != "is_valid" else ""  # noqa: E731
    assert f"The column {header!r} gives the splits" in prepare(tmp_path, labels="labels.csv", split=where)
    said = prepare(tmp_path, "--overwrite", "--split_column", "none", "--label_column", "kind", labels="labels.csv")
    assert "gives the splits" not in said
    assert load_from_disk(str(tmp_path / "out"))["test"].num_rows == 9


def test_groups_stay_in_one_split_and_are_proposed(tmp_path):
    draw(tmp_path / "images", lambda i: f"{i}.png", 60)
    rows = [(f"{i}.png", class_of(i), f"P{i // 6}") for i in range(60)]
    write_list(tmp_path / "labels.csv", [("file", "label", "patient_id"), *rows])
    assert "add --group_column patient_id" in prepare(tmp_path, labels="labels.csv", numbers=range(60))
    prepare(tmp_path, "--overwrite", "--group_column", "patient_id", labels="labels.csv", numbers=range(60))
    places = {}
    pixels = {drawn_photo(class_of(number), number).tobytes(): number // 6 for number in range(60)}
    for place, part in load_from_disk(str(tmp_path / "out")).items():
        for image in part["image"]:
            places.setdefault(pixels[image.tobytes()], set()).add(place)
    assert len(places) == 10 and all(len(place) == 1 for place in places.values())
    rows = [(*row, "test" if i > 50 else "train") for i, row in enumerate(rows)]
    write_list(tmp_path / "labels.csv", [("file", "label", "patient_id", "split"), *rows])
    result = run(tmp_path, "--overwrite", "--group_column", "patient_id", labels="labels.csv")
    assert "The group 'P8' is in more than one of the given splits" in result.stderr


def test_a_label_written_as_nothing_is_empty_and_takes_no_photo_from_another_row(tmp_path):
    draw(tmp_path / "images", lambda i: f"{i}.png")
    empty = [(f"{i}.png", word) for i, word in enumerate(("NaN", "nan", "<NA>", "null", "None"))]
    write_list(tmp_path / "labels.csv", [*listed(lambda i: f"{i}.png"), *empty])
    assert "Dropped for empty label: 5" in prepare(tmp_path, labels="labels.csv")
    assert "empty label: written as <NA>" in (tmp_path / "out" / "dropped.csv").read_text()


def test_class_names_are_shown_as_they_are(tmp_path):
    names = ("$5_$10", "Effusion|Mass", "<b>bold</b>")
    draw(tmp_path / "images", lambda i: f"{i}.png")
    write_list(tmp_path / "labels.csv", listed(lambda i: f"{i}.png", lambda i: names[i % 3]))
    prepare(tmp_path, labels="labels.csv", label=lambda i: names[i % 3])
    card = DatasetCard.load(tmp_path / "out" / "README.md").text
    assert r"| \$5\_\$10 |" in card and r"| Effusion\|Mass |" in card and "| &lt;b&gt;bold&lt;/b&gt; |" in card


def test_a_dry_run_shows_the_outcome_and_writes_nothing(tmp_path):
    draw(tmp_path / "images", lambda i: f"{class_of(i)}/{i}.png")
    result = run(tmp_path, "--dry_run")
    assert result.returncode == 0 and "test: 9 photos (Cat 3, Dog 3, Neither 3)" in result.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["images"]


def test_odd_photos_are_counted_and_the_worst_named(tmp_path):
    draw(tmp_path / "images", lambda i: f"{class_of(i)}/{i}.png")
    for name, photo in {
        "black": Image.new("RGB", (90, 70), (9, 9, 9)),
        "white": Image.new("RGB", (90, 70), (250, 250, 250)),
        "blurred": drawn_photo("Cat", 99).resize((6, 5)).resize((200, 190), Image.Resampling.BICUBIC),
        "tiny": drawn_photo("Cat", 98, (30, 20)),
    }.items():
        photo.save(tmp_path / "images" / "Cat" / f"{name}.png")
    assert run(tmp_path).returncode == 0
    notes = " ".join(json.loads((tmp_path / "out" / "report.json").read_text())["notes"])
    assert "Nearly black: 1, such as Cat/black.png" in notes
    assert "Nearly white: 1, such as Cat/white.png" in notes
    assert "Cat/blurred.png" in notes.split("Blurred: ")[1].split(",")[1]
    assert "Smaller than 32 pixels: 1, such as Cat/tiny.png" in notes


def test_suspects_lists_planted_label_errors_first_and_changes_nothing(tmp_path, tiny_vit):
    for number in range(150):
        file = tmp_path / "images" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        colour = Image.new("RGB", (90, 70), ("red", "lime", "blue")[number % 3])
        Image.blend(drawn_photo(class_of(number), number), colour, 0.5).save(file)
    flipped = (7, 50, 91, 120)
    label = lambda i: class_of(i + (i in flipped))  # noqa: E731
    write_list(tmp_path / "labels.csv", listed(lambda i: f"{i}.png", label, count=150))
    before = (tmp_path / "labels.csv").read_bytes()
    result = run(tmp_path, "--suspects", tiny_vit, labels="labels.csv")
    assert result.returncode == 0, result.stderr
    with (tmp_path / "out" / "suspects.csv").open() as file:
        rows = list(csv.DictReader(file))
    confidences = [float(row["confidence"]) for row in rows]
    assert confidences == sorted(confidences)
    first = {row["file"]: row["suggested"] for row in rows[:4]}
    assert first == {f"{number}.png": class_of(number) for number in flipped} and len(rows) <= 6
    assert Image.open(tmp_path / "out" / "suspects.png").width > 400
    assert (tmp_path / "labels.csv").read_bytes() == before
    assert (
        "cannot be loaded as an image classifier"
        in run(tmp_path, "--overwrite", "--suspects", tmp_path, labels="labels.csv").stderr
    )
