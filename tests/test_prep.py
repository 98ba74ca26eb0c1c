"""prep.py as its users run it."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, ROOT, call, drawn_photo, run_program, write_photos
from datasets import load_dataset, load_from_disk
from huggingface_hub import DatasetCard
from PIL import Image, ImageEnhance, ImageOps
from pillow_heif import register_heif_opener

import prep


def flags(folder, *more):
    """Return the arguments for a folder; photos are checked without other processes, which take a second to start."""
    paths = ["--image_path", folder / "images", "--label_path", folder / "labels.csv", "--dst_path", folder / "dataset"]
    return [*paths, "--num_proc", 1, *more]


def add_rows(folder, *rows):
    with (folder / "labels.csv").open("a") as file:
        file.write("".join(f"{row}\n" for row in rows))


def dropped(folder):
    """Return {file: (row, reason)} of the list of what was left out; of a file named twice the last one."""
    with (folder / "dataset" / "dropped.csv").open(encoding="utf-8") as file:
        return {row["file"]: (row["row"], row["reason"]) for row in csv.DictReader(file)}


def pixels(part):
    return [(image.tobytes(), label) for image, label in zip(part["image"], part["label"], strict=True)]


def contents(folder):
    """Return every file below a folder with its bytes."""
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def prepare(folder, *more):
    """Call prep.py, which has to succeed; return what it printed and the dataset."""
    result = call("prep.py", *flags(folder, *more))
    assert result.returncode == 0, result.stderr
    return result.stdout, load_from_disk(str(folder / "dataset"))


def labelled(dataset):
    """Return {pixels: label name} of all splits."""
    return {photo: part.features["label"].names[n] for part in dataset.values() for photo, n in pixels(part)}


def test_every_row_that_cannot_be_used_is_left_out_with_row_and_reason(tmp_path):
    images, _ = write_photos(tmp_path)
    whole = (images / "Cat0.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "text.jpg").write_text("not a photo")
    (images / "empty.jpg").write_bytes(b"")
    (images / "folder.jpg").mkdir()
    os.mkfifo(images / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(images / "socket.jpg"))  # relative, as such a path may not be long
    secret = drawn_photo("Cat", 7777)
    secret.save(tmp_path / "secret.jpg")
    (images / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (images / "LINK2.jpg").symlink_to("../secret.jpg")
    (images / "loop.jpg").symlink_to("loop.jpg")
    (images / "device.jpg").symlink_to("/dev/zero")
    Image.new("1", (20_000, 20_000)).save(images / "bomb.png")
    Image.new("1", (10_000, 9_000)).save(images / "large.png")
    rows = {
        "nolabel.jpg,": "empty label",
        "gone.jpg,Cat": "missing file",
        "cut.jpg,Cat": "undecodable file: image file is truncated",
        "text.jpg,Dog": "undecodable file: cannot identify",
        "empty.jpg,Dog": "undecodable file: cannot identify",
        "folder.jpg,Dog": "missing file",
        "pipe.jpg,Dog": "not a file: it is a pipe or device",
        "socket.jpg,Dog": "not a file: it is a pipe or device",
        "bomb.png,Dog": "too many pixels: the limit is 89000000",
        "large.png,Dog": "too many pixels: 10000 x 9000",
        "http://localhost/cat.jpg,Cat": "URL: only files in the folder are read",
        "file:///etc/passwd,Cat": "URL",
        "../secret.jpg,Cat": "outside the folder",
        f"{tmp_path / 'secret.jpg'},Cat": "outside the folder",
        "/etc/passwd,Cat": "outside the folder",
        "link.jpg,Cat": "outside the folder",
        "link2.JPG,Cat": "outside the folder",
        "device.jpg,Cat": "outside the folder",
        "..\\secret.jpg,Cat": "outside the folder",
        "loop.jpg,Cat": "missing file",
        f"{'long' * 100}.jpg,Cat": "missing file",
        ",Cat": "empty name",
        "Cat1.jpg,Cat": "listed twice: the same photo as row 5, Cat1.jpg",
    }
    add_rows(tmp_path, "", *rows)
    before = contents(tmp_path)
    output, dataset = prepare(tmp_path)
    found = dropped(tmp_path)
    for number, (row, reason) in enumerate(rows.items(), 39):  # 36 photos, the header and a blank line
        name = row.rsplit(",", 1)[0]
        assert found[name][0] == str(number) and found[name][1].startswith(reason), (name, found[name])
    assert len(found) == len(rows) and sum(part.num_rows for part in dataset.values()) == 36
    assert "Dropped for outside the folder: 7" in output and "Dropped for undecodable file: 3" in output
    report = json.loads((tmp_path / "dataset" / "report.json").read_text())
    assert sum(report["dropped"].values()) == len(rows) and report["rows"] == 36 + len(rows)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    private = (tmp_path / "secret.jpg").read_bytes()[-90:-10]  # the head of a JPEG is like that of another
    assert not any(private in content for name, content in after.items() if name.parts[0] == "dataset")
    assert secret.tobytes() not in labelled(dataset)


def as_text(rows, separator=",", encoding="utf-8", header="image_name,label"):
    lines = [header.replace(",", separator), *(separator.join(row) for row in rows)]
    return ("\n".join(lines) + "\n").encode(encoding)


@pytest.mark.parametrize(
    ("write", "name", "label"),
    [
        (lambda rows: as_text(rows, ";"), "image_name", "label"),
        (lambda rows: as_text(rows, "\t", "utf-16"), "image_name", "label"),
        (lambda rows: as_text(rows, encoding="utf-8-sig", header="filename,class"), "filename", "class"),
        (lambda rows: as_text(rows, encoding="latin-1", header="Path,Größe"), "Path", "Größe"),
        (lambda rows: as_text([(f' "{n}"'.strip(), f'"{t}"') for n, t in rows], header="id,breed"), "id", "breed"),
        (lambda rows: as_text([(n.removesuffix(".jpg"), t) for n, t in rows], header="id,breed"), "id", "breed"),
        (lambda rows: as_text([(n.upper(), t) for n, t in rows], header="image,category"), "image", "category"),
        (lambda rows: as_text([(f".\\{n}", t) for n, t in rows]), "image_name", "label"),
        (lambda rows: as_text([(t, "7", n) for n, t in rows], header="label,id,picture"), "picture", "label"),
        (lambda rows: as_text([("7", n, t, "") for n, t in rows], header="id,x,class,note"), "x", "class"),
    ],
)
def test_the_tables_that_people_have_are_read_and_the_guess_is_printed(tmp_path, write, name, label):
    images, labels = write_photos(tmp_path)
    expected = {Image.open(file).tobytes(): file.stem.rstrip("0123456789") for file in images.iterdir()}
    rows = [(file.name, file.stem.rstrip("0123456789")) for file in sorted(images.iterdir())]
    labels.write_bytes(write(rows))
    output, dataset = prepare(tmp_path)
    assert f"The column {name!r} names the photos, and {label!r} has their labels" in output
    assert labelled(dataset) == expected


def test_names_in_subfolders_with_windows_separators_and_commas_are_found(tmp_path):
    images, labels = write_photos(tmp_path)
    (images / "a, b" / "C").mkdir(parents=True)
    (images / "Cat0.jpg").rename(images / "a, b" / "C" / "Katze 1.JPG")
    text = labels.read_text().replace("Cat0.jpg,", '"a, b\\c\\katze 1.jpg",')
    labels.write_text(text)
    assert sum(part.num_rows for part in prepare(tmp_path)[1].values()) == 36


def test_a_name_that_could_mean_two_files_is_left_out(tmp_path):
    images, _ = write_photos(tmp_path)
    drawn_photo("Cat", 500).save(images / "extra.jpg")
    drawn_photo("Cat", 501).save(images / "extra.png")
    add_rows(tmp_path, "extra,Cat")
    output, _ = prepare(tmp_path)
    assert dropped(tmp_path)["extra"][1] == "ambiguous name: could be extra.jpg or extra.png"
    assert "Files that no row names: 2" in output


def test_columns_can_be_given(tmp_path):
    images, labels = write_photos(tmp_path)
    rows = [f"{file.name},{file.stem.rstrip('0123456789')},x{n % 2}" for n, file in enumerate(images.iterdir())]
    labels.write_text("\n".join(["image,label,side", *rows]))
    _, dataset = prepare(tmp_path, "--label-column", "side", "--image_column=image")
    assert dataset["train"].features["label"].names == ["x0", "x1"]


def test_class_folders_need_no_csv(tmp_path):
    images, _ = write_photos(tmp_path / "flat")
    expected = {Image.open(file).tobytes(): file.stem.rstrip("0123456789") for file in images.iterdir()}
    for file in images.iterdir():
        target = tmp_path / "images" / file.stem.rstrip("0123456789") / "deeper" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    (tmp_path / "images" / "Cat" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "images" / "Cat" / "notes.txt").write_text("x")
    drawn_photo("Dog", 900).save(tmp_path / "images" / "stray.jpg")
    result = call("prep.py", "--image_path", tmp_path / "images", "--dst_path", tmp_path / "dataset")
    assert result.returncode == 0, result.stderr
    assert labelled(load_from_disk(str(tmp_path / "dataset"))) == expected
    found = dropped(tmp_path)
    assert set(found) == {"Cat/notes.txt", "stray.jpg"} and found["stray.jpg"] == ("", "empty label")


def test_labels_that_differ_in_case_or_spaces_are_one_label(tmp_path):
    _, labels = write_photos(tmp_path)
    text = labels.read_text().replace("Cat0.jpg,Cat", "Cat0.jpg, cat ").replace("Dog1.jpg,Dog", "Dog1.jpg,DOG")
    labels.write_text(text)
    output, dataset = prepare(tmp_path)
    assert dataset["train"].features["label"].names == list(CLASSES)
    assert "The label 'cat' was taken as 'Cat'" in output and "The label 'DOG' was taken as 'Dog'" in output


def test_sizes_can_be_numbers_of_photos(tmp_path):
    write_photos(tmp_path, each=20)
    _, dataset = prepare(tmp_path, "--test_size", "10", "--validation_size", "7")
    assert {split: part.num_rows for split, part in dataset.items()} == {"train": 43, "validation": 7, "test": 10}
    for part in dataset.values():
        counts = [part["label"].count(index) for index in range(3)]
        assert max(counts) - min(counts) <= 1


def test_hundreds_of_classes_are_all_in_every_split(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(600):
        drawn_photo("Cat", number, (40, 30)).save(tmp_path / "images" / f"{number}.jpg")
    rows = [f"{number}.jpg,class {number % 150:03d}" for number in range(600)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *rows]))
    _, dataset = prepare(tmp_path, "--test_size", "0.25", "--validation_size", "150")
    for part in dataset.values():
        assert len(set(part["label"])) == 150


def test_copies_of_a_photo_are_kept_once_and_under_two_labels_not_at_all(tmp_path):
    images, _ = write_photos(tmp_path)
    (images / "twin.jpg").write_bytes((images / "Dog3.jpg").read_bytes())
    Image.open(images / "Dog4.jpg").save(images / "same-pixels.png")
    (images / "liar.jpg").write_bytes((images / "Cat5.jpg").read_bytes())
    add_rows(tmp_path, "twin.jpg,Dog", "same-pixels.png,Dog", "liar.jpg,Dog", "Cat6.jpg,Dog")
    output, dataset = prepare(tmp_path)
    found = dropped(tmp_path)
    assert found["twin.jpg"] == ("38", "duplicate: the same photo as row 12, Dog3.jpg")
    assert found["same-pixels.png"] == ("39", "duplicate: the same photo as row 15, Dog4.jpg")
    for name in ("liar.jpg", "Cat5.jpg", "Cat6.jpg"):
        assert found[name][1] == "conflicting labels: the same photo is labelled Cat and Dog"
    assert "Dropped for conflicting labels: 4" in output and "Dropped for duplicate: 2" in output
    kept = labelled(dataset)
    assert len(kept) == sum(part.num_rows for part in dataset.values()) == 34
    assert Image.open(images / "Cat5.jpg").tobytes() not in kept and Image.open(images / "twin.jpg").tobytes() in kept


def test_no_photo_of_one_split_has_a_near_duplicate_in_another(tmp_path):
    """Three changed copies of every fourth photo; compared here by small greys, with no hash."""
    images, labels = write_photos(tmp_path, each=20)
    rows = labels.read_text().splitlines()[1:]
    for number, row in enumerate(rows[::4]):
        name, label = row.split(",")
        photo = Image.open(images / name)
        for change, copy in {
            "small": photo.resize((60, 47)),
            "poor": photo,
            "bright": ImageEnhance.Brightness(photo).enhance(1.03),
        }.items():
            copy.save(images / f"{change}{number}.jpg", quality=60 if change == "poor" else 90)
            add_rows(tmp_path, f"{change}{number}.jpg,{label}")
    output, dataset = prepare(tmp_path, "--test_size", "0.3", "--validation_size", "0.3")
    places, greys = [], []
    for place, part in dataset.items():
        for image in part["image"]:
            places.append(place)
            greys.append(np.asarray(image.convert("L").resize((12, 12), Image.Resampling.BOX), float).ravel())
    greys = np.stack(greys)
    distance = np.abs(greys[:, None] - greys[None]).mean(-1)
    other = np.array(places)[:, None] != np.array(places)[None]
    close = distance < 5
    assert close.sum() - len(places) >= 15 * 4 * 3  # the copies are found by this measure
    assert not (close & other).any()
    assert "Near-duplicate photos, kept in the same split: 60\n" in output
    assert {place: places.count(place) for place in dataset} == {"train": 51, "validation": 22, "test": 32}


def test_the_split_does_not_depend_on_how_the_photos_look(tmp_path):
    """Else a change of the hash for near-duplicates would give a new split, and published numbers another test split."""
    images, labels = write_photos(tmp_path)
    names = {Image.open(images / row.split(",")[0]).tobytes(): row for row in labels.read_text().splitlines()[1:]}
    _, first = prepare(tmp_path)
    expected = {split: [names[photo] for photo, _ in pixels(part)] for split, part in first.items()}
    mirrored = {}
    for row in names.values():
        file = images / row.split(",")[0]
        ImageOps.mirror(Image.open(file)).save(file)
        mirrored[Image.open(file).tobytes()] = row
    _, second = prepare(tmp_path, "--overwrite")
    assert {split: [mirrored[photo] for photo, _ in pixels(part)] for split, part in second.items()} == expected


def test_photos_are_stored_upright_and_the_users_stay_as_they_are(tmp_path):
    images, _ = write_photos(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    marked = drawn_photo("Dog", 4321, (80, 40))
    marked.save(images / "phone.jpg", exif=exif, quality=95)
    marked.convert("L").save(images / "scan.tif", exif=exif)
    add_rows(tmp_path, "phone.jpg,Dog", "scan.tif,Dog")
    before = contents(images)
    _, dataset = prepare(tmp_path)
    assert contents(images) == before
    turned = [image for part in dataset.values() for image in part["image"] if image.size == (40, 80)]
    assert len(turned) == 2 and all(image.getexif().get(0x0112) is None for image in turned)
    expected = np.asarray(marked.convert("L").transpose(Image.Transpose.ROTATE_270), int)
    for image in turned:
        assert np.abs(np.asarray(image.convert("L"), int) - expected).mean() < 6
    stored = [row["bytes"] for part in dataset.values() for row in part.data.column("image").to_pylist()]
    assert (images / "Cat0.jpg").read_bytes() in stored  # what need not be turned is stored byte for byte


def test_image_size_makes_larger_photos_smaller_and_no_photo_larger(tmp_path):
    images, _ = write_photos(tmp_path)
    drawn_photo("Dog", 77, (300, 200)).save(images / "large.png")
    drawn_photo("Dog", 78, (20, 30)).save(images / "small.png")
    add_rows(tmp_path, "large.png,Dog", "small.png,Dog")
    _, dataset = prepare(tmp_path, "--image_size", "40")
    sizes = {image.size for part in dataset.values() for image in part["image"]}
    assert sizes == {(51, 40), (60, 40), (20, 30)}


def test_the_card_and_the_report_say_what_is_in_the_dataset(tmp_path):
    write_photos(tmp_path)
    add_rows(tmp_path, "gone.jpg,Cat")
    _, dataset = prepare(tmp_path, "--seed", "5")
    card = DatasetCard.load(tmp_path / "dataset" / "README.md")
    report = json.loads((tmp_path / "dataset" / "report.json").read_text())
    assert card.data.task_categories == ["image-classification"]
    for split, part in dataset.items():
        names = part.features["label"].names
        assert report["splits"][split] == {name: part["label"].count(index) for index, name in enumerate(names)}
    for index, name in enumerate(CLASSES):
        counts = " | ".join(str(part["label"].count(index)) for part in dataset.values())
        assert f"| {name} | {counts} |" in card.text
    assert "- missing file: 1" in card.text and "seed 5" in card.text and report["seed"] == 5
    assert "python prep.py" in card.text and "--seed 5" in card.text and "--test_size 0.3" in card.text
    assert Image.open(tmp_path / "dataset" / "class_balance.png").width > 300


def test_splits_are_stratified_and_hold_every_photo_once(tmp_path):
    write_photos(tmp_path, each=20)
    call("prep.py", *flags(tmp_path, "--test_size", "0.3", "--validation_size", "0.5"))
    dataset = load_from_disk(str(tmp_path / "dataset"))
    assert {split: part.num_rows for split, part in dataset.items()} == {"train": 21, "validation": 21, "test": 18}
    assert dataset["train"].features["label"].names == list(CLASSES)
    for part in dataset.values():
        assert [part["label"].count(index) for index in range(3)] == [part.num_rows // 3] * 3
    assert len(set(sum((pixels(part) for part in dataset.values()), []))) == 60


def test_the_same_seed_gives_the_same_dataset_byte_for_byte_and_another_seed_another(tmp_path):
    images, _ = write_photos(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 8
    drawn_photo("Dog", 4321).save(images / "phone.jpg", exif=exif)
    (images / "twin.jpg").write_bytes((images / "Dog3.jpg").read_bytes())
    add_rows(tmp_path, "phone.jpg,Dog", "twin.jpg,Dog", "gone.jpg,Dog")
    found = []
    for run, seed, processes in ((call, 1, 1), (run_program, 1, 2), (call, 2, 1)):
        more = ["--seed", seed, "--overwrite", "--num_proc", processes]
        assert run("prep.py", *flags(tmp_path, *more)).returncode == 0
        found.append(contents(tmp_path / "dataset"))
    assert found[0] == found[1]
    name = next(name for name in found[0] if name.parts[0] == "test" and name.suffix == ".arrow")
    assert found[0][name] != found[2][name]


def test_flags_with_hyphens_work_and_help_names_every_flag_with_its_default():
    text = " ".join(call("prep.py", "--help").stdout.split())
    for flag, default in (
        ("--test_size", "0.3"),
        ("--validation_size", "0.1"),
        ("--seed", "42"),
        ("--overwrite", "False"),
    ):
        assert f"default: {default}" in text.split(flag, 2)[2].split("--")[0]
    assert "is not a folder" in call("prep.py", "--image-path=no-where", "--label-path=a-b", "--dst-path=c-d").stderr


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (None, ["--test_size", "1.5"], "--test_size 1.5 is neither a share"),
        (None, ["--label_path", "nothing.csv"], "--label_path nothing.csv is not a file"),
        ("shot,kind\na,Cat\n", [], "Give --image_column, one of: shot, kind"),
        ("image_name,label\nCat0.jpg,Cat\n", [], "two classes or more"),
        ("", [], "it has no rows. prep.py reads CSV"),
        ("+tree.jpg,Tree\n", [], "These have fewer: 'Tree' (1)"),
        (None, ["--test_size", "0.01"], "test split would hold no photo of these classes"),
        (None, ["--test_size", "36"], "--test_size 36 cannot be met: there are 36"),
        (None, ["--test_size", "20", "--validation_size", "16"], "--validation_size 16 cannot be met: there are 16"),
        (None, ["--test_size", "0"], "--test_size 0 is neither"),
        (None, ["--test_size", "some"], "argument --test_size: invalid size value: 'some'"),
        (
            None,
            ["--image_column", "photo"],
            "--image_column photo: there is no such column. The columns are: image_name, label",
        ),
        (None, ["--image_size", "0"], "--image_size 0 must be 1 or more"),
        (None, ["--push_to_hub", "you/pets"], "hf auth login"),
        ("image_name\nCat0.jpg\n", [], "Which column holds the labels?"),
        ("image_name,a,b\nCat0.jpg,1,2\n", [], "Give --label_column, one of: image_name, a, b"),
        ('image_name,label\nCat0.jpg,"Cat\n', [], "in line 2 the quotes do not match"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(tmp_path, logged_out, change, more, words):
    images, labels = write_photos(tmp_path)
    drawn_photo("Dog", 1).save(images / "tree.jpg")
    if change is not None:
        labels.write_text(labels.read_text() + change[1:] if change.startswith("+") else change)
    before = sorted(tmp_path.rglob("*"))
    result = call("prep.py", *flags(tmp_path, *more))
    assert result.returncode != 0 and words in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("prep.py: error: ")
    (tmp_path / "dataset.dropped.csv").unlink(missing_ok=True)  # what was found, where photos were looked at
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dataset_that_exists_is_replaced_only_on_demand_and_nothing_else_ever(tmp_path):
    write_photos(tmp_path)
    call("prep.py", *flags(tmp_path))
    (tmp_path / "dataset" / "mine.txt").write_text("mine")
    refused = call("prep.py", *flags(tmp_path))
    assert refused.returncode != 0 and "--overwrite" in refused.stderr
    assert (tmp_path / "dataset" / "mine.txt").exists()
    assert call("prep.py", *flags(tmp_path, "--overwrite")).returncode == 0
    assert not (tmp_path / "dataset" / "mine.txt").exists()
    refused = call("prep.py", *flags(tmp_path, "--overwrite", "--dst_path", tmp_path / "images"))
    assert refused.returncode != 0 and "is not a dataset" in refused.stderr
    assert len(list((tmp_path / "images").iterdir())) == 36
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dataset", "images", "labels.csv"]


def test_prepare_can_be_called_from_a_notebook(tmp_path):
    images, labels = write_photos(tmp_path)
    dataset = prep.prepare(image_path=images, label_path=labels, dst_path=tmp_path / "dataset", num_proc=1)
    assert list(dataset) == ["train", "validation", "test"]
    assert ROOT.joinpath("prep.py").exists() and dataset["train"][0]["image"].size == (90, 70)


def checking(folder):
    """Return a running prep.py whose processes have begun to check photos."""
    command = [sys.executable, str(ROOT / "prep.py"), *map(str, flags(folder, "--num_proc", 2))]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # A shell starts background jobs, and so these tests perhaps, deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    shown = b""
    while shown.count(b"%|") < 2:  # the bar at 0 %, and when the first ones are back
        shown += process.stderr.read(1)
        assert process.poll() is None
    return process


def test_a_killed_run_leaves_no_dataset_and_no_process_and_the_next_one_says_so_and_succeeds(tmp_path):
    write_photos(tmp_path, each=600)
    with checking(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)  # until the last process that could write is gone
    partial = tmp_path / ".dataset.partial"
    assert partial.exists() and not (tmp_path / "dataset").exists()
    output, dataset = prepare(tmp_path)
    assert "the unfinished dataset of a run that was stopped" in output
    assert sum(part.num_rows for part in dataset.values()) == 1800 and not partial.exists()


def test_a_dataset_whose_replacement_was_killed_comes_back(tmp_path):
    write_photos(tmp_path)
    prepare(tmp_path)
    (tmp_path / "dataset").rename(tmp_path / ".dataset.replaced")  # where a kill between two renames leaves it
    refused = call("prep.py", *flags(tmp_path))
    assert "Put back" in refused.stdout and "--overwrite" in refused.stderr
    assert load_from_disk(str(tmp_path / "dataset")) and not (tmp_path / ".dataset.replaced").exists()


def test_a_damaged_utf_16_csv_is_refused_in_one_sentence(tmp_path):
    write_photos(tmp_path)
    whole = (tmp_path / "labels.csv").read_text().encode("utf-16")
    for damaged in (whole[:-1], whole[:42] + b"\x00\xdc" + whole[44:]):
        (tmp_path / "labels.csv").write_bytes(damaged)
        result = call("prep.py", *flags(tmp_path))
        assert result.returncode == 1 and "cannot be read as utf-16" in result.stderr
        assert "Traceback" not in result.stderr and not (tmp_path / "dataset").exists()


def test_an_iphones_photos_are_jpeg_in_the_dataset_and_equal_copies_are_found(tmp_path):
    register_heif_opener()
    images, _ = write_photos(tmp_path)
    photo = drawn_photo("Cat", 12345)
    for name in ("one.heic", "two.heic"):
        photo.save(images / name, quality=95)
    add_rows(tmp_path, "one.heic,Cat", "two.heic,Cat")
    said, dataset = prepare(tmp_path)
    assert "Dropped for duplicate: 1\n" in said
    stored = {image["bytes"][:2] for part in dataset.values() for image in part.data["image"].to_pylist()}
    assert sum(part.num_rows for part in dataset.values()) == 37 and stored == {b"\xff\xd8"}


def test_control_c_says_so_in_one_line_and_leaves_nothing(tmp_path):
    write_photos(tmp_path, each=600)
    with checking(tmp_path) as process:
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130 and "Traceback" not in stderr
    assert stderr.splitlines()[-1] == "prep.py: stopped, no dataset was written"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "labels.csv"]


def test_a_killed_process_that_checks_photos_stops_the_run_with_one_sentence(tmp_path):
    write_photos(tmp_path, each=600)
    with checking(tmp_path) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        stderr = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 1 and "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("prep.py: error: A process that checks photos was killed")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "labels.csv"]


def test_the_pushed_dataset_loads_back_as_it_was(hub, tmp_path):
    write_photos(tmp_path)
    _, dataset = prepare(tmp_path, "--push_to_hub", "you/pets")
    assert hub.private == {"datasets/you/pets": True} and len(hub.commits["datasets/you/pets"]) == 2
    assert {"README.md", "report.json", "dropped.csv", "class_balance.png"} < set(hub.commits["datasets/you/pets"][1])
    loaded = load_dataset("you/pets", cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].features == dataset["train"].features
    assert {name: pixels(part) for name, part in loaded.items()} == {name: pixels(p) for name, p in dataset.items()}
    streamed = load_dataset("you/pets", split="train", streaming=True)
    assert len(list(streamed)) == dataset["train"].num_rows


def test_a_push_gets_over_a_fault_at_any_call_with_exactly_one_commit(hub, no_waiting, tmp_path):
    write_photos(tmp_path)
    prepare(tmp_path)

    def push():
        hub.commits.clear()
        hub.lfs.clear()
        hub.requests.clear()
        prep.create_repo("you/pets")
        prep.push(tmp_path / "dataset", "you/pets")

    push()  # the first one of a process has a call more
    push()
    calls, whole = len(hub.requests), hub.commits["datasets/you/pets"][-1]
    assert calls >= 8
    commit = next(number for number, made in enumerate(hub.requests, 1) if "/commit/" in made)
    for number in range(1, calls + 1):
        hub.faults = {number: "cut after" if number == commit else (503, "cut", 429, "cut after")[number % 4]}
        push()
        assert not hub.faults and hub.commits["datasets/you/pets"] == [{}, whole], number


def test_a_refusal_ends_the_push_in_words_and_the_dataset_stays(hub, tmp_path):
    write_photos(tmp_path)
    hub.private["datasets/you/pets"] = True
    for _ in range(2):  # the first push of a process has a call more
        hub.requests.clear()
        hub.commits["datasets/you/pets"] = [{}]
        prepare(tmp_path, "--overwrite", "--push_to_hub", "you/pets")
    commit = next(number for number, made in enumerate(hub.requests, 1) if "/commit/" in made)
    for status in (401, 403, 412):
        hub.requests.clear()
        hub.commits["datasets/you/pets"] = [{}]
        hub.faults = {commit: status}
        result = call("prep.py", *flags(tmp_path, "--overwrite", "--push_to_hub", "you/pets"))
        assert result.returncode == 1 and "the upload to the Hub failed" in result.stderr.splitlines()[-1]
        assert load_from_disk(str(tmp_path / "dataset")) and hub.commits["datasets/you/pets"] == [{}]


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    images, labels = write_photos(tmp_path)
    (tmp_path / "mine.py").write_text(
        f"import multiprocessing, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "multiprocessing.set_start_method('spawn', force=True)\nfrom prep import prepare\n"
        f"prepare(image_path={str(images)!r}, label_path={str(labels)!r}, dst_path='out', num_proc=2)\n"
    )
    result = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (
        result.returncode == 1 and 'under if __name__ == "__main__"' in result.stderr and "Removed" not in result.stdout
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "labels.csv", "mine.py"]
