"""prep.py as its users run it."""

import csv
import os

import pytest
from conftest import CLASSES, ROOT, drawn_photo, run, write_photos
from datasets import load_from_disk
from PIL import Image


def flags(folder, *more):
    paths = ["--image_path", folder / "images", "--label_path", folder / "labels.csv", "--dst_path", folder / "dataset"]
    return [*paths, *more]


def add_rows(folder, *rows):
    with (folder / "labels.csv").open("a") as file:
        file.write("".join(f"{row}\n" for row in rows))


def dropped(folder):
    with (folder / "dataset" / "dropped.csv").open() as file:
        return [(row["file"], int(row["row"]), row["reason"]) for row in csv.DictReader(file)]


def pixels(part):
    return [(image.tobytes(), label) for image, label in zip(part["image"], part["label"], strict=True)]


def test_unusable_rows_are_dropped_counted_and_listed_with_row_and_reason(tmp_path):
    images, _ = write_photos(tmp_path)
    whole = images / "Cat0.jpg"
    (images / "cut.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (images / "text.jpg").write_text("not a photo")
    (images / "folder.jpg").mkdir()
    os.mkfifo(images / "pipe.jpg")
    (tmp_path / "secret.jpg").write_bytes(whole.read_bytes())
    (images / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    names = ["nolabel.jpg,", "gone.jpg,Cat", "cut.jpg,Cat", "text.jpg,Dog", "folder.jpg,Dog", "pipe.jpg,Dog"]
    outside = ["../secret.jpg,Cat", f"{tmp_path / 'secret.jpg'},Cat", "link.jpg,Cat"]
    add_rows(tmp_path, *names, "", *outside)
    result = run("prep.py", *flags(tmp_path))
    assert result.returncode == 0, result.stderr
    for line in ("empty label: 1", "missing file: 3", "undecodable file: 2", "outside the folder: 3"):
        assert f"Dropped for {line}" in result.stdout
    rows = {file: (row, reason) for file, row, reason in dropped(tmp_path)}
    assert rows["nolabel.jpg"] == (38, "empty label") and rows["gone.jpg"] == (39, "missing file")
    assert rows["cut.jpg"][0] == 40 and "truncated" in rows["cut.jpg"][1].lower()
    assert rows["../secret.jpg"][0] == 45  # the blank line before it is a row of the file too
    dataset = load_from_disk(str(tmp_path / "dataset"))
    assert sum(part.num_rows for part in dataset.values()) == 36
    assert str(tmp_path) not in (tmp_path / "dataset" / "dropped.csv").read_text().replace(
        f"{tmp_path / 'secret.jpg'}", ""
    )


def test_splits_are_stratified_and_hold_every_photo_once(tmp_path):
    write_photos(tmp_path, each=20)
    run("prep.py", *flags(tmp_path, "--test_size", "0.3", "--validation_size", "0.5"))
    dataset = load_from_disk(str(tmp_path / "dataset"))
    assert {split: part.num_rows for split, part in dataset.items()} == {"train": 21, "validation": 21, "test": 18}
    assert dataset["train"].features["label"].names == list(CLASSES)
    for part in dataset.values():
        assert [part["label"].count(index) for index in range(3)] == [part.num_rows // 3] * 3
    assert len(set(sum((pixels(part) for part in dataset.values()), []))) == 60


def test_the_photos_are_the_users_and_carry_the_users_labels(tmp_path):
    images, _ = write_photos(tmp_path)
    run("prep.py", *flags(tmp_path))
    dataset = load_from_disk(str(tmp_path / "dataset"))
    expected = {Image.open(file).tobytes(): file.stem.rstrip("0123456789") for file in images.iterdir()}
    for part in dataset.values():
        names = part.features["label"].names
        assert all(expected[photo] == names[label] for photo, label in pixels(part))


def test_the_same_seed_gives_the_same_split_and_another_seed_another(tmp_path):
    write_photos(tmp_path)
    found = []
    for seed in (1, 1, 2):
        run("prep.py", *flags(tmp_path, "--seed", seed, "--overwrite"))
        found.append(pixels(load_from_disk(str(tmp_path / "dataset"))["test"]))
    assert found[0] == found[1] != found[2]


def test_flags_with_hyphens_work_and_help_names_every_flag_with_its_default():
    text = " ".join(run("prep.py", "--help").stdout.split())
    for flag, default in (
        ("--test_size", "0.3"),
        ("--validation_size", "0.1"),
        ("--seed", "42"),
        ("--overwrite", "False"),
    ):
        assert f"default: {default}" in text.split(flag, 2)[2].split("--")[0]
    assert "is not a folder" in run("prep.py", "--image-path=no-where", "--label-path=a-b", "--dst-path=c-d").stderr


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (None, ["--test_size", "1.5"], "--test_size 1.5 is not a share"),
        (None, ["--label_path", "nothing.csv"], "--label_path nothing.csv is not a file"),
        ("name,kind\na.jpg,Cat\n", [], "no column 'image_name'; it has: name, kind"),
        ("image_name,label\nCat0.jpg,Cat\n", [], "two classes or more"),
        ("", [], "cannot be read as a CSV"),
        ("+tree.jpg,Tree\n", [], "Class 'Tree' has 1 usable photo"),
        (None, ["--test_size", "0.01"], "--test_size"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(tmp_path, change, more, words):
    images, labels = write_photos(tmp_path)
    drawn_photo("Dog", 1).save(images / "tree.jpg")
    if change is not None:
        labels.write_text(labels.read_text() + change[1:] if change.startswith("+") else change)
    before = sorted(tmp_path.rglob("*"))
    result = run("prep.py", *flags(tmp_path, *more))
    assert result.returncode != 0 and words in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("prep.py: error: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dataset_that_exists_is_replaced_only_on_demand_and_nothing_else_ever(tmp_path):
    write_photos(tmp_path)
    run("prep.py", *flags(tmp_path))
    (tmp_path / "dataset" / "mine.txt").write_text("mine")
    refused = run("prep.py", *flags(tmp_path))
    assert refused.returncode != 0 and "--overwrite" in refused.stderr
    assert (tmp_path / "dataset" / "mine.txt").exists()
    assert run("prep.py", *flags(tmp_path, "--overwrite")).returncode == 0
    assert not (tmp_path / "dataset" / "mine.txt").exists()
    refused = run("prep.py", *flags(tmp_path, "--overwrite", "--dst_path", tmp_path / "images"))
    assert refused.returncode != 0 and "is not a dataset" in refused.stderr
    assert len(list((tmp_path / "images").iterdir())) == 36
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dataset", "images", "labels.csv"]


def test_prepare_can_be_called_from_a_notebook(tmp_path):
    from prep import prepare

    images, labels = write_photos(tmp_path)
    dataset = prepare(image_path=images, label_path=labels, dst_path=tmp_path / "dataset")
    assert list(dataset) == ["train", "validation", "test"]
    assert ROOT.joinpath("prep.py").exists() and dataset["train"][0]["image"].size == (90, 70)
