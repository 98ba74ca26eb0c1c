"""`python app.py photos/`: answers without a server."""

import csv
import io
import re
import shutil
from pathlib import Path

import pytest
from conftest import call, run_program

import app

EXAMPLES = {file.name: file.name.split("-")[0].title() for file in sorted(app.EXAMPLES.glob("*.jpg"))}


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with the example photos, two of them in folders of their own under the same name, and what is no photo."""
    folder = tmp_path / "photos"
    for place, name in (("a", "cat-chelsea.jpg"), ("b", "cat-profile.jpg")):
        (folder / place).mkdir(parents=True)
        shutil.copy(app.EXAMPLES / name, folder / place / "cat.jpg")
    for name in EXAMPLES:
        shutil.copy(app.EXAMPLES / name, folder)
    (folder / "notes.txt").write_text("no photo")
    (folder / ".hidden").write_text("no photo")
    return folder


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_folders_and_files_are_answered_sorted_and_their_bad_files_named(photos, tmp_path):
    before = {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()}
    extra = app.EXAMPLES / "dog-red.jpg"
    outputs = ["--csv", tmp_path / "answers.csv", "--sort_into", tmp_path / "sorted"]
    result = run_program("app.py", photos, extra, *outputs, "--model", "mobilenet", VIT_MODEL="none")
    assert result.returncode == 0, result.stderr
    rows = read((tmp_path / "answers.csv").read_text())
    assert rows[0] == ["file", "label", "confidence", "note"] and len(rows) == 1 + 10
    found = {row[0]: row for row in rows[1:]}
    for name, label in EXAMPLES.items():
        assert found[str(photos / name)][1] == label and 0.3 < float(found[str(photos / name)][2]) <= 1
    assert found[str(extra)][1] == "Dog"
    assert found[str(photos / "notes.txt")][1] == "" and "cannot be read" in found[str(photos / "notes.txt")][3]
    assert f"{photos / 'notes.txt'}: This file cannot be read as a photo" in result.stderr
    assert "10 photos: 4 Cat, 3 Dog, 2 Neither, 1 could not be read; 0 of them" in result.stderr
    copied = {file.relative_to(tmp_path / "sorted").as_posix(): file for file in (tmp_path / "sorted").rglob("*.jpg")}
    assert len(copied) == 9 and {name.split("/")[0] for name in copied} == {"Cat", "Dog", "Neither"}
    assert {"Cat/cat.jpg", "Cat/2 cat.jpg", "Dog/dog-red.jpg", "Dog/2 dog-red.jpg"} <= set(copied)
    assert copied["Cat/cat.jpg"].read_bytes() == (photos / "a" / "cat.jpg").read_bytes()
    assert {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()} == before
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_without_a_file_for_them_the_answers_are_printed(photos):
    result = call("app.py", photos / "cat-chelsea.jpg")
    assert result.returncode == 0
    assert [row[1] for row in read(result.stdout)] == ["label", "Cat"]


def test_names_cannot_be_formulas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(app.EXAMPLES / "cat-chelsea.jpg", "=1+1.jpg")
    assert read(call("app.py", "=1+1.jpg").stdout)[1][0] == "'=1+1.jpg"


def test_the_exit_code_says_whether_anything_was_answered(photos):
    result = call("app.py", photos / "notes.txt")
    assert result.returncode == 1 and "1 photo: 1 could not be read" in result.stderr


BAD = {
    "There is no nowhere.jpg": ["nowhere.jpg"],
    "There are no files in empty": ["empty"],
    "answers.csv is there already": ["cat.jpg", "--csv", "answers.csv"],
    "sorted is there already": ["cat.jpg", "--sort-into", "sorted"],
    "no/answers.csv would lie in a folder that is not there": ["cat.jpg", "--csv", "no/answers.csv"],
    "The model vit .* cannot be loaded: the Hub cannot be reached": ["cat.jpg", "--model", "vit"],
    "invalid choice: 'resnet'": ["cat.jpg", "--model", "resnet"],
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_gets_one_sentence_and_changes_nothing(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(app.EXAMPLES / "cat-chelsea.jpg", "cat.jpg")
    for folder in ("empty", "sorted"):
        Path(folder).mkdir()
    Path("answers.csv").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    result = call("app.py", *BAD[words])
    assert result.returncode not in (0, None)
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(words, last), result.stderr
    assert sorted(tmp_path.rglob("*")) == before and Path("answers.csv").read_text() == "mine"
