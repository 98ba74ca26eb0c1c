"""finetune.py as its users run it, and its checkpoint in the app."""

import ast
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from accelerate import PartialState
from conftest import call, call_endpoint, data_url, run_program, share, write_photos
from datasets import load_from_disk
from huggingface_hub import ModelCard
from odd_files import stored
from PIL import Image, ImageFilter
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTForImageClassification,
    default_data_collator,
    pipeline,
)

import app
import finetune

SHORT = ["--weights", "none", "--epochs", "1", "--device", "cpu"]


@pytest.fixture(scope="session")
def checkpoint(dataset, tmp_path_factory):
    """A checkpoint of three epochs on the drawn photos."""
    folder = tmp_path_factory.mktemp("checkpoints") / "drawn"
    train(dataset, folder, "--epochs", "3", "--batch_size", "64", "--image_size", "64")
    return folder


def logits_of(folder, images) -> torch.Tensor:
    """Return what the app's engine answers to photos, before any softmax."""
    served = app.load_classifier(str(folder))
    return torch.from_numpy(served.logits(served.pixels([finetune.rgb(image) for image in images])))


@pytest.fixture(scope="session")
def few_photos(tmp_path_factory) -> Path:
    """A prepared dataset of 12 photos, for networks that need seconds for each."""
    folder = tmp_path_factory.mktemp("few")
    images, labels = write_photos(folder, each=4)
    paths = ["--image_path", images, "--label_path", labels, "--dst_path", folder / "prepared"]
    assert call("prep.py", *paths, "--num_proc", 1, "--validation_size", 3).returncode == 0
    return folder / "prepared"


def probabilities_by_pipeline(source, files) -> list[dict[str, float]]:
    classify = pipeline("image-classification", model=str(source))
    return [{one["label"]: one["score"] for one in classify(str(file), top_k=3)} for file in files]


def probabilities_by_timm(source, files) -> list[dict[str, float]]:
    model = timm.create_model(f"local-dir:{source}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    photos = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.inference_mode():
        scores = model(photos).softmax(1).tolist()
    return [dict(zip(model.pretrained_cfg["label_names"], row, strict=True)) for row in scores]


def probabilities_by_app(source, files, put_behind) -> list[dict[str, float]]:
    put_behind(mobilenet=source)
    return [app.answer(app.open_photo(file), "mobilenet")[0] for file in files]


def farthest(found: list[dict], expected: list[dict]) -> float:
    assert all(set(one) == set(other) for one, other in zip(found, expected, strict=True))
    return max(abs(one[label] - other[label]) for one, other in zip(found, expected, strict=True) for label in one)


def test_transformers_and_timm_open_the_shipped_model_and_say_the_same(put_behind):
    folder, files = app.EXAMPLES / "mobilenet_v3_small", sorted(app.EXAMPLES.glob("*.jpg"))
    expected = probabilities_by_app(folder, files, put_behind)
    assert farthest(probabilities_by_pipeline(folder, files), expected) < 1e-3
    assert farthest(probabilities_by_timm(folder, files), expected) < 5e-3


# A MobileNetV3 from random weights would give all photos the same logits for many steps.
@pytest.mark.parametrize(
    ("model_name", "weights", "size"),
    [("mobilenet_v3_small", app.OURS, 64), ("resnet18", "none", 64), ("vgg11", "none", 224)],
)
def test_each_family_trains_and_app_transformers_and_timm_answer_as_the_trained_model(
    dataset, few_photos, put_behind, tmp_path, model_name, weights, size
):
    folder = tmp_path / model_name
    model, metrics = finetune.finetune(
        data_path=few_photos if model_name == "vgg11" else dataset,
        model_name=model_name,
        checkpoints_path=folder,
        weights=weights,
        epochs=1,
        batch_size=8,
        lr=5e-3,
        image_size=size,
        monitor_metric_name="loss",
    )
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "confusion_matrix.png",
        "learning_curves.png",
        "mistakes.png",
        "model.safetensors",
        "onnx",
        "preprocessor_config.json",
        "reliability.png",
        "stress.png",
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == [model_name]  # no half-finished epochs beside it
    assert 0 <= metrics["accuracy"] <= 1
    files = sorted(app.EXAMPLES.glob("*.jpg"))[:3]
    put_behind(mobilenet=folder)
    served = app.classifier("mobilenet")
    pixels = served.pixels([app.open_photo(file) for file in files])
    with torch.inference_mode():
        trained = model(torch.from_numpy(pixels)).logits.numpy()
    # In float32, and the logits of a net that saw five steps may be in the thousands.
    assert np.abs(served.logits(pixels) - trained).max() < 1e-4 * max(1, np.abs(trained).max())
    assert np.ptp(trained, axis=0).max() > 1e-6  # the photos differ, so the comparison says something
    expected = probabilities_by_app(folder, files, put_behind)
    assert farthest(probabilities_by_pipeline(folder, files), expected) < 1e-3
    assert farthest(probabilities_by_timm(folder, files), expected) < 5e-3


def test_the_app_measures_the_accuracy_of_the_cards_best_epoch(checkpoint, dataset, put_behind, tmp_path):
    """Again, from files, through the page's preprocessing and the other engine."""
    put_behind(mobilenet=checkpoint)
    part = load_from_disk(str(dataset))["validation"]
    best = float(re.search(r"validation accuracy: epoch \d+, (\d+\.\d+)", (checkpoint / "README.md").read_text())[1])
    names, right = part.features["label"].names, []
    for image, label in zip(part["image"], part["label"], strict=True):
        image.save(tmp_path / "photo.png")
        found, _ = app.answer(app.open_photo(tmp_path / "photo.png"), "mobilenet")
        right.append(max(found, key=found.get) == names[label])
    assert np.mean(right) == pytest.approx(best, abs=1e-4)


def card_temperature(folder) -> float:
    return float(re.search(r"validation split best, (\d+\.\d+)", (folder / "README.md").read_text())[1])


def test_the_best_epoch_by_the_monitored_metric_is_saved(dataset, tmp_path):
    """At this learning rate the last epoch is not the best one, so saving the last would show."""
    chosen = set()
    for metric in ("accuracy", "loss"):
        folder = tmp_path / metric
        options = ["--epochs", "4", "--lr", "0.02", "--batch_size", "64", "--monitor_metric_name", metric]
        printed = train(dataset, folder, *options)
        values = [float(value) for value in re.findall(rf"'eval_{metric}': '([^']+)'", printed)]
        epoch, value = re.search(
            rf"validation {metric}: epoch (\d+), (\d+\.\d+)", (folder / "README.md").read_text()
        ).groups()
        best = max(values) if metric == "accuracy" else min(values)
        assert float(value) == pytest.approx(best, rel=1e-3) and values.index(best) == int(epoch) - 1
        splits = load_from_disk(str(dataset))
        logits = logits_of(folder, splits["validation"]["image"]) * card_temperature(folder)
        labels = torch.tensor(splits["validation"]["label"])
        again = {
            "accuracy": (logits.argmax(1) == labels).float().mean().item(),
            "loss": torch.nn.functional.cross_entropy(logits, labels).item(),
        }
        assert again[metric] == pytest.approx(best, rel=2e-2)
        chosen.add((metric, int(epoch)))
    assert any(epoch != 4 for _, epoch in chosen)


def test_the_card_holds_the_test_splits_numbers_for_readers_and_for_the_hub(checkpoint, dataset):
    card = ModelCard.load(checkpoint / "README.md")
    results = {result.metric_type: result for result in card.data.eval_results}
    assert set(results) == {"accuracy", "precision", "recall", "f1", "roc_auc"}
    assert {result.metric_name for result in results.values()} >= {"accuracy", "f1 (macro)", "roc_auc (macro)"}
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "other",
        "transformers",
        "image-classification",
    )
    assert "timm" in card.data.tags and card.data.base_model is None
    assert results["accuracy"].dataset_split == "test"
    test = load_from_disk(str(dataset))["test"]
    right = int((logits_of(checkpoint, test["image"]).argmax(1) == torch.tensor(test["label"])).sum())
    assert results["accuracy"].metric_value == pytest.approx(right / len(test), abs=1e-4)
    assert f"The test split ({len(test)} photos)" in card.text
    assert "python finetune.py --data_path" in card.text and "--epochs 3" in card.text
    low, high = map(float, re.search(r"95 % interval (\S+) to (\S+)\)", card.text).groups())
    assert 0 <= low < right / len(test) < high <= 1
    for picture in re.findall(r"\]\((\w+\.png)\)", card.text):
        assert Image.open(checkpoint / picture).width > 200
    assert re.search(r"SHA-256 of the test split: `[0-9a-f]{64}`", card.text)


def test_the_temperature_that_fits_the_validation_split_is_in_the_weights(checkpoint, dataset, put_behind):
    """So the plain softmax of what is written is calibrated, and no other temperature fits better."""
    validation = load_from_disk(str(dataset))["validation"]
    logits, labels = logits_of(checkpoint, validation["image"]), torch.tensor(validation["label"])
    assert abs(card_temperature(checkpoint) - 1) > 0.05  # else this says nothing
    loss = {t: torch.nn.functional.cross_entropy(logits / t, labels).item() for t in (1, 0.5, 0.8, 0.9, 1.1, 1.25, 2)}
    assert loss[1] <= min(loss.values()) + 1e-4
    put_behind(mobilenet=checkpoint)
    found, _ = app.answer(finetune.rgb(validation[0]["image"]), "mobilenet")
    expected = dict(zip(app.classifier("mobilenet").labels, logits[0].softmax(0).tolist(), strict=True))
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_calibration_error_is_that_of_the_definition():
    """Four answers of confidence 0.9 (three of them right), and one of 0.6 (wrong)."""
    logits = np.log([[0.9, 0.1]] * 4 + [[0.6, 0.4]])
    found = finetune.confidences(logits, np.array([0, 0, 0, 1, 1]))
    assert finetune.calibration_error(*found) == pytest.approx(4 / 5 * (0.9 - 0.75) + 1 / 5 * 0.6)


def train(dataset, folder, *more) -> str:
    """Call finetune.py, which has to succeed, with small photos; return what it printed."""
    small = ["--weights", "none", "--image_size", "48", "--batch_size", "8", "--checkpoints_path", folder]
    result = call("finetune.py", "--data_path", dataset, *small, *more)
    assert result.returncode == 0, result.stderr
    return result.stdout


def first_saved_epoch(command, unfinished):
    """Start finetune.py, kill it as soon as an epoch is saved, return the epoch's folder."""
    command = [sys.executable, str(finetune.__file__), *map(str, command)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (saved := finetune.last_epoch(unfinished)):
            time.sleep(0.01)
            assert process.poll() is None
        process.kill()
    return Path(saved)


def test_control_c_says_so_in_one_line_and_how_to_go_on(dataset, tmp_path):
    small = ["--weights", "none", "--image_size", "48", "--epochs", "50", "--checkpoints_path", tmp_path / "pets"]
    command = [sys.executable, finetune.__file__, "--data_path", dataset, *small]
    with subprocess.Popen(map(str, command), stderr=subprocess.PIPE) as process:
        while not finetune.last_epoch(tmp_path / ".pets.unfinished"):
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130 and "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("finetune.py: stopped. Add --resume to continue")
    assert [file.name for file in tmp_path.iterdir()] == [".pets.unfinished"]


def test_a_killed_run_resumes_to_the_weights_of_an_unbroken_one(dataset, checkpoint, tiny_vit, tmp_path):
    options = ["--epochs", "6", "--lr", "5e-3", "--monitor_metric_name", "loss", "--teacher", tiny_vit]
    options += ["--image_size", "48", "--batch_size", "8", "--weights", checkpoint / "model.safetensors"]
    train(dataset, tmp_path / "whole", *options, "--resume")  # with nothing to go on with, it starts
    command = ["--data_path", dataset, *options, "--checkpoints_path", tmp_path / "cut"]
    unfinished = tmp_path / ".cut.unfinished"
    saved = first_saved_epoch(command, unfinished)
    steps = int(saved.name.split("-")[1])
    half_saved = unfinished / f"checkpoint-{2 * steps}" / "trainer_state.json"  # as if killed while it wrote this
    half_saved.parent.mkdir(exist_ok=True)
    half_saved.write_text("{")
    assert "Add --resume to continue it" in call("finetune.py", *command).stderr
    assert "was started by another command" in call("finetune.py", *command, "--resume", "--seed", "3").stderr
    resumed = call("finetune.py", *command, "--resume")
    assert resumed.returncode == 0 and "Decoding photos" not in resumed.stderr
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cut", "whole"]
    again = call("finetune.py", *command, "--resume").stderr
    assert "is not empty" in again and f"add --weights {tmp_path / 'cut'} " in again


def test_two_processes_take_the_same_steps_measure_the_whole_split_and_write_once(dataset, tmp_path):
    options = ["--weights", "none", "--image_size", "48", "--batch_size", "8", "--epochs", "1", "--lr", "5e-3"]
    one = train(dataset, tmp_path / "one", *options)
    test = load_from_disk(str(dataset))["test"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", finetune.__file__]
    command += ["--data_path", dataset, "--checkpoints_path", tmp_path / "two", *options]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Model written") == one.count("Model written") == 1
    speeds = [
        [float(re.search(rf"'{name}': '([^']+)'", text)[1]) for name in ("train_runtime", "train_steps_per_second")]
        for text in (one, result.stdout)
    ]
    assert round(speeds[0][0] * speeds[0][1]) == round(speeds[1][0] * speeds[1][1])
    card = (tmp_path / "two" / "README.md").read_text()
    right = (logits_of(tmp_path / "two", test["image"]).argmax(1).numpy() == np.array(test["label"])).mean()
    assert f"- accuracy: {right:.4f}" in card and f"The test split ({len(test)} photos)" in card
    assert "\ntorchrun --nproc_per_node 2 finetune.py --data_path" in card
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "two"]


NODE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import finetune
import torch
from datasets import load_from_disk
model, metrics = finetune.finetune(data_path=sys.argv[2], checkpoints_path="pets", **json.loads(sys.argv[3]))
test, processor = load_from_disk(sys.argv[2])["test"], finetune.image_processor(48)
with torch.no_grad():
    logits = model(**processor([finetune.rgb(image) for image in test["image"]], return_tensors="pt")).logits
torch.save({"right": (logits.argmax(1).numpy() == test["label"][:]).mean(), "weights": model.state_dict()}, "found")
"""


def test_two_machines_without_a_common_disk_end_with_the_model_that_the_card_is_about(dataset, tmp_path):
    """At this learning rate the last epoch is not the best one, so a machine that has not saved epochs would show."""
    options = {"weights": "none", "image_size": 48, "batch_size": 8, "epochs": 4, "lr": 0.03, "device": "cpu"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", rank]
        command += ["--master_addr", "127.0.0.1", "--master_port", port, "--no_python", sys.executable, "-c", NODE]
        command += [Path(finetune.__file__).parent, dataset, json.dumps({**options, "monitor_metric_name": "loss"})]
        machines.append(subprocess.Popen([*map(str, command)], cwd=tmp_path / str(rank), stderr=subprocess.PIPE))
    for machine in machines:
        _, stderr = machine.communicate(timeout=600)
        assert machine.returncode == 0, stderr.decode()
    assert [sorted(file.name for file in (tmp_path / str(rank)).iterdir()) for rank in range(2)] == [
        ["found", "pets"],
        ["found"],
    ]
    card = (tmp_path / "0" / "pets" / "README.md").read_text()
    assert "epoch 4, " not in card and "\ntorchrun --nnodes 2 --nproc_per_node 1 finetune.py" in card
    first, second = (torch.load(tmp_path / str(rank) / "found", weights_only=False) for rank in range(2))
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert f"- accuracy: {first['right']:.4f}" in card and first["right"] == second["right"]


SLOW = """
import os, sys, time
from datetime import timedelta
sys.path.insert(0, sys.argv[1])
import openvino
import torch.distributed.distributed_c10d as collective
collective.default_pg_timeout = timedelta(seconds=2)
compile_model, calls = openvino.compile_model, []
def compile_slow_model(*arguments):
    network = compile_model(*arguments)
    def answer(pixels):
        calls.append(pixels)
        time.sleep(4 * (os.environ["RANK"] == "1" and len(calls) in (1, 4)))
        return network(pixels)
    return answer
openvino.compile_model = compile_slow_model
import finetune
finetune.main(sys.argv[2:])
print("calls", len(calls))
"""


def test_processes_wait_for_one_whose_teacher_is_slow(dataset, tiny_vit, tmp_path):
    """Once before the first step and once in one, for longer than a collective call has by default here."""
    options = ["--weights", "none", "--image_size", "48", "--batch_size", "8", "--epochs", "1", "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, "--no_python", sys.executable, "-c"]
    command = [*launch, SLOW, Path(finetune.__file__).parent, "--data_path", dataset, "--teacher", tiny_vit]
    command += ["--checkpoints_path", tmp_path / "taught", *options]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "taught" / "config.json").is_file()
    assert min(map(int, re.findall(r"calls (\d+)", result.stdout))) > 4


def test_training_stops_early_when_no_epoch_is_better(dataset, tmp_path):
    output = train(dataset, tmp_path / "early", "--epochs", "9", "--early_stopping", "2", "--lr", "1e-7")
    assert output.count("'eval_loss'") < 9


def test_the_options_of_training_change_the_weights_and_the_card_stays_true(dataset, tiny_vit, tmp_path):
    options = ["--epochs", "2", "--lr", "5e-3", "--monitor_metric_name", "roc_auc"]
    variants = {
        "plain": [],
        "unweighted": ["--class_weights none"],
        "taught": [f"--teacher {tiny_vit}"],
        "not-kept": ["--cache_gb 0"],
    }
    test = load_from_disk(str(dataset))["test"]
    learnt = {}
    for name, more in variants.items():
        train(dataset, tmp_path / name, *options, *" ".join(more).split())
        learnt[name] = load_file(tmp_path / name / "model.safetensors")["conv_stem.weight"]
        right = (logits_of(tmp_path / name, test["image"]).argmax(1).numpy() == np.array(test["label"])).mean()
        card = (tmp_path / name / "README.md").read_text()
        assert f"- accuracy: {right:.4f}" in card and all(option in card for option in more)
    assert torch.equal(learnt.pop("not-kept"), learnt["plain"])  # whether photos are decoded once or each time
    assert not any(torch.equal(first, second) for first, second in itertools.combinations(learnt.values(), 2))


def test_a_teacher_answers_as_it_does_elsewhere(dataset, tiny_vit):
    photos = finetune.Photos(load_from_disk(str(dataset))["train"], finetune.image_processor(64))
    photos.side, photos.for_teacher = 48, True
    views = default_data_collator([photos[index] for index in range(8)])["plain"]
    teacher = finetune.Teacher(str(tiny_vit), "cpu")
    processor, model = AutoImageProcessor.from_pretrained(tiny_vit), ViTForImageClassification.from_pretrained(tiny_vit)
    with torch.inference_mode():
        expected = model(
            **processor([Image.fromarray(view.numpy()) for view in views], return_tensors="pt")
        ).logits.numpy()
    assert teacher.classes == 1000 and np.abs(teacher.logits(views) - expected).max() < 0.02 * np.ptp(expected)


def test_a_view_depends_on_seed_epoch_and_photo_alone(dataset):
    part, processor = load_from_disk(str(dataset))["train"], finetune.image_processor(64)
    one, same, other = (finetune.Photos(part, processor, seed) for seed in (1, 1, 2))
    for photos in (one, same, other):
        photos.side = 48
    first = one[3]["pixels"]
    assert first.shape == (48, 48, 3) and first.dtype == np.uint8
    random.seed(5)
    assert (same[3]["pixels"] == first).all() and (other[3]["pixels"] != first).any()
    same.epoch = 1
    assert (same[3]["pixels"] != first).any() and (one[4]["pixels"] != first).any()


def test_views_are_blurred_dark_turned_and_coarse_now_and_then():
    """A white square in the upper left quarter of a grey photo; the teacher's view has it there, and light."""
    photo = Image.new("RGB", (96, 96), (90, 90, 90))
    photo.paste((250, 250, 250), (4, 4, 44, 44))
    both = [finetune.vary(photo, 96, random.Random(seed)) for seed in range(400)]
    plain, views = ([np.asarray(view).astype(float) for view in part] for part in zip(*both, strict=True))
    assert all(view.shape == (96, 96, 3) for view in (*plain, *views))
    assert all(view.max() == 250 and view[:24, :24].mean() > view[48:].mean() + 30 for view in plain)
    light = np.array([view.max() for view in views])
    assert 20 < light.min() < 60 and (light > 200).mean() > 0.7
    edges = np.array([np.abs(np.diff(view, axis=1)).max() / np.ptp(view) for view in views if np.ptp(view) > 20])
    assert (edges > 0.7).mean() > 0.2 and (edges < 0.3).mean() > 0.04
    corners = np.array([[view[:48, :48].mean(), view[:48, 48:].mean(), view[48:].mean()] for view in views])
    places = np.bincount(corners.argmax(1), minlength=3) / len(views)
    assert places[:2].min() > 0.3 and places[2] > 0.05


def test_the_loss_has_the_three_parts_and_the_features_feel_each(dataset, tiny_vit):
    torch.manual_seed(0)
    names = ["Cat", "Dog", "Neither"]
    model, processor = finetune.build_model("mobilenet_v3_small", names, "none", None)
    model.timm_model.drop_rate = 0.0  # so that it repeats
    network = model.timm_model
    network.classifier.bias.data = torch.tensor([2.0, 0.0, -2.0])  # it disagrees with the teacher, so each part shows
    photos = finetune.Photos(load_from_disk(str(dataset))["train"], processor)
    teacher = finetune.Teacher(str(tiny_vit), "cpu")
    teacher.learn_our_classes(photos, len(names), PartialState(cpu=True))
    weights = torch.tensor([1.0, 2.0, 0.5])
    student = finetune.make_student(model, processor, weights, teacher)
    every = teacher.logits(default_data_collator(list(photos))["pixels"])
    photos.side, photos.for_teacher = 48, True
    rows = default_data_collator([photos[index] for index in range(4)])
    theirs = teacher.logits(rows["plain"])
    ours = teacher.read(theirs)
    assert ours.shape == (4, 3) and np.allclose(ours.sum(1), 1)
    expected = LogisticRegression(C=0.01, max_iter=200).fit(every, photos.labels).predict_proba(theirs)
    assert np.allclose(ours, expected, atol=1e-3)
    pixels = finetune.scale(rows["pixels"].permute(0, 3, 1, 2), processor)
    features = network.forward_head(network.forward_features(pixels), pre_logits=True)
    logits = network.get_classifier()(features)
    parts = [torch.nn.functional.cross_entropy(logits, rows["labels"], weights)]
    for answers, wanted in (
        (logits, torch.tensor(ours)),
        (student.imitation(features), torch.tensor(theirs).softmax(1)),
    ):
        parts.append((wanted * (wanted.log() - answers.log_softmax(1))).sum(1).mean())
    shares = (finetune.LABELS, finetune.OUR_CLASSES, finetune.ITS_CLASSES)
    found = student(**rows)
    assert torch.allclose(
        found["loss"], sum(share * part for share, part in zip(shares, parts, strict=True)), rtol=1e-3
    )
    found["loss"].backward()
    stem = network.conv_stem.weight
    felt = [torch.autograd.grad(part, stem, retain_graph=True)[0].norm() for part in parts]
    assert min(felt) > 0 and stem.grad.norm() > 0
    assert torch.allclose(
        student.eval()(**rows)["loss"],
        torch.nn.functional.cross_entropy(student(**rows)["logits"], rows["labels"], weights),
    )


def test_nineteen_of_twenty_right_answers_are_not_below_the_threshold():
    dice = np.random.default_rng(0)
    labels = dice.integers(0, 3, 400)
    logits = 3 * np.eye(3)[labels] + dice.normal(0, 2, (400, 3))
    temperature, threshold = finetune.calibrate(logits, labels)
    certain, right = finetune.confidences(logits, labels, temperature)
    assert 200 < right.sum() < 400 and (certain[right] >= threshold).mean() == pytest.approx(0.95, abs=0.003)
    assert finetune.calibrate(np.eye(3), np.array([1, 2, 0]))[1] == 0  # no answer is right


def test_a_model_of_the_hub_gets_a_new_head_and_its_own_preprocessing(tiny_vit, dataset, put_behind, tmp_path):
    """And then a folder that finetune.py wrote, with as many classes as before."""
    train(dataset, tmp_path / "vit", "--model_name", tiny_vit, "--weights", "DEFAULT", "--image_size", "32")
    files = sorted(app.EXAMPLES.glob("*.jpg"))
    expected = probabilities_by_app(tmp_path / "vit", files, put_behind)
    assert farthest(probabilities_by_pipeline(tmp_path / "vit", files), expected) < 1e-3
    before = ViTForImageClassification.from_pretrained(tiny_vit).state_dict()
    model, processor = finetune.build_model(str(tiny_vit), ["a", "b", "c"], "DEFAULT", None)
    kept = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])]
    assert set(before) - set(kept) == {"classifier.weight", "classifier.bias"}
    assert finetune.input_size(processor) == 32 and list(processor.image_mean) == [0.5] * 3
    again, _ = finetune.build_model(str(tmp_path / "vit"), ["a", "b", "c"], "DEFAULT", 32)
    assert not torch.equal(
        again.classifier.weight, load_file(tmp_path / "vit" / "model.safetensors")["classifier.weight"]
    )
    more = ["--weights", "DEFAULT", "--epochs", "1", "--image_size", "32"]
    train(dataset, tmp_path / "again", "--model_name", tmp_path / "vit", *more)
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "again").config.id2label[2] == "Neither"


def test_the_card_names_the_dataset_and_the_model_of_the_hub(hub, tiny_vit, tmp_path):
    """Both come from there, and the new model goes there."""
    write_photos(tmp_path, each=12)
    paths = ["--image_path", tmp_path / "images", "--label_path", tmp_path / "labels.csv", "--num_proc", 1]
    call("prep.py", *paths, "--dst_path", tmp_path / "dataset", "--push_to_hub", "you/photos")
    share(hub, tiny_vit, "them/tiny-vit")
    more = ["--epochs", "1", "--checkpoints_path", tmp_path / "new", "--license", "apache-2.0", "--device", "cpu"]
    names = ["--data_path", "you/photos", "--model_name", "them/tiny-vit", "--push_to_hub", "you/pets"]
    result = call("finetune.py", *names, *more)
    assert result.returncode == 0, result.stderr
    card = ModelCard(hub.commits["you/pets"][-1]["README.md"].decode())
    assert (card.data.base_model, card.data.datasets, card.data.license) == (
        "them/tiny-vit",
        ["you/photos"],
        "apache-2.0",
    )
    assert "onnx/model.onnx" in hub.commits["you/pets"][-1] and 'model="you/pets"' in card.text


def test_the_hub_is_read_at_a_revision_and_over_a_fault_at_any_call(hub, no_waiting, tmp_path):
    revisions = []
    for each in (12, 15):
        write_photos(tmp_path / str(each), each=each)
        paths = ["--image_path", tmp_path / str(each) / "images", "--label_path", tmp_path / str(each) / "labels.csv"]
        result = call(
            "prep.py", *paths, "--num_proc", 1, "--dst_path", tmp_path / f"d{each}", "--push_to_hub", "you/photos"
        )
        assert result.returncode == 0, result.stderr
        revisions.append(
            hub.revision(hub.commits["datasets/you/photos"][-1], len(hub.commits["datasets/you/photos"]) - 1)
        )

    def read(name: str) -> int:
        hub.requests.clear()
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)  # nothing is there from before
        return sum(map(len, finetune.load_splits(name).values()))

    assert read("you/photos") == 45
    assert read(f"you/photos@{revisions[0]}") == read(f"you/photos@{revisions[0]}") == 36
    for number in range(1, len(hub.requests) + 1):
        hub.faults = {number: (503, "cut", 429)[number % 3]}
        assert read(f"you/photos@{revisions[0]}") == 36 and not hub.faults, number
    with pytest.raises(OSError, match="--data_path you/photos@nothing cannot be read"):
        read("you/photos@nothing")


def test_the_stress_table_is_that_of_the_photos_made_worse(checkpoint, dataset, tmp_path):
    """Blurred as Pillow blurs them, through the app's own engine."""
    card = (checkpoint / "README.md").read_text()
    rows = re.findall(r"\| ([^|]+) \| ([\d.]+) % \| ([\d.]+) % \|", card)
    assert len(rows) == 10 and rows[0][0] == "as they are" and rows[2][0] == "blurred by 4 px of 224"
    test = load_from_disk(str(dataset))["test"]
    photos = [finetune.rgb(image).resize((64, 64), Image.Resampling.BILINEAR) for image in test["image"]]
    blurred = [photo.filter(ImageFilter.GaussianBlur(4 * 64 / 224)) for photo in photos]
    turned = [photo.rotate(180) for photo in photos]
    for row, images in ((0, photos), (2, blurred), (6, turned)):
        found = logits_of(checkpoint, images).softmax(1)
        wrong = found.argmax(1) != torch.tensor(test["label"])
        surely = (wrong & (found.max(1).values > 0.9)).float().mean().item()
        assert float(rows[row][1]) == pytest.approx(100 - 100 * wrong.float().mean().item(), abs=0.06)
        assert float(rows[row][2]) == pytest.approx(100 * surely, abs=0.06)
    worst = min(rows[1:], key=lambda row: float(row[1]))
    assert (
        f"does worst on photos {worst[0]}: {worst[1]} % are answered right, and {worst[2]} % are answered wrong with"
        in card
    )


def test_the_stress_table_counts_the_answers_about_photos_made_worse(dataset):
    """Of a judge of edges, which are all sharp enough until the photos are blurred."""
    test = finetune.Photos(load_from_disk(str(dataset))["test"], finetune.image_processor(64))
    blurred = [test.photo(index).filter(ImageFilter.GaussianBlur(4 * 64 / 224)) for index in range(len(test))]
    edges = np.array([np.abs(np.diff(np.asarray(photo, float), axis=1)).max() for photo in blurred])

    class Judge(torch.nn.Module):
        class_weights = torch.ones(3)

        def forward(self, pixels, labels):
            sharp = pixels.float().diff(dim=2).abs().amax((1, 2, 3)) - np.median(edges)
            return {"logits": torch.nn.functional.one_hot(labels, 3) * sharp[:, None]}

    right = {row["photos"]: row["right"] for row in finetune.stress(Judge(), test)}
    assert right["as they are"] == 100
    expected = 100 * (edges > np.median(edges)).mean()
    assert right["blurred by 4 px of 224"] == pytest.approx(expected) and expected < 60


def test_the_card_compares_with_a_baseline_on_the_same_photos(checkpoint, dataset, tmp_path):
    train(dataset, tmp_path / "new", "--epochs", "8", "--lr", "5e-3", "--baseline", checkpoint)
    test = load_from_disk(str(dataset))["test"]
    new, old = (
        logits_of(folder, test["image"]).argmax(1).numpy() == test["label"][:]
        for folder in (tmp_path / "new", checkpoint)
    )
    better, worse = (new & ~old).sum(), (old & ~new).sum()
    p = min(1, 2 * sum(math.comb(better + worse, k) for k in range(min(better, worse) + 1)) / 2 ** (better + worse))
    said = f"is right on {old.mean():.2%} and this model on {new.mean():.2%}: {better} are answered right by this model only,"
    card = (tmp_path / "new" / "README.md").read_text()
    assert better + worse > 0 and f"{said} {worse} by the other" in card and f"(p = {p:.3g})" in card
    unlike = finetune.compare("other", np.arange(9) < 3, np.arange(9) > 1)
    assert "6 are answered right by this model only, 2 by the other only" in unlike


def test_a_trial_goes_to_the_card_and_says_what_the_whole_run_takes(dataset, tmp_path):
    printed = train(dataset, tmp_path / "trial", "--epochs", "40", "--max_steps", "2")
    said = re.search(
        r"The whole run, 40 epochs of (\d+) steps, would take about \d+ minutes on this cpu, and meanwhile [\d.]+ GB",
        printed,
    )
    assert int(said[1]) == -(-len(load_from_disk(str(dataset))["train"]) // 8)
    assert printed.splitlines()[-1] == f"Look at it on a page: MOBILENET_MODEL={tmp_path / 'trial'} python app.py"
    assert "trained by `finetune.py` on 16 photos" in (tmp_path / "trial" / "README.md").read_text()
    assert "epochs of" not in train(dataset, tmp_path / "whole", "--epochs", "1")


SMALL_MACHINE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import datasets, sklearn.metrics, timm, torchvision, transformers.trainer
import finetune
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30,) * 2)
finetune.main(sys.argv[2:])
"""


def test_too_little_memory_is_one_sentence_with_the_batch_size_to_try(dataset, tmp_path):
    command = [sys.executable, "-c", SMALL_MACHINE, Path(finetune.__file__).parent, "--data_path", dataset]
    command += ["--model_name", "resnet50", "--weights", "none", "--image_size", 640, "--batch_size", 36]
    command += ["--checkpoints_path", tmp_path / "large", "--device", "cpu"]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert result.returncode == 1 and "Traceback" not in result.stderr.splitlines()[-1]
    assert "There is too little memory for --batch_size 36. Try --batch_size 18" in result.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_plain_python_takes_the_first_of_several_gpus(dataset, tmp_path, monkeypatch):
    """With more the Trainer would multiply the batch."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert call(
        "finetune.py", "--data_path", dataset, "--nclasses", 2, "--checkpoints_path", tmp_path / "no"
    ).returncode
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"


def test_weights_of_a_folder_start_a_model_of_the_hub_too(dataset, tiny_vit, tmp_path):
    options = ["--model_name", tiny_vit, "--image_size", "32", "--epochs", "1"]
    train(dataset, tmp_path / "first", *options, "--weights", "DEFAULT")
    model, _ = finetune.build_model(str(tiny_vit), ["a", "b", "c"], str(tmp_path / "first"), None)
    learnt = ViTForImageClassification.from_pretrained(tmp_path / "first").state_dict()
    state = model.state_dict()
    assert [name for name in state if not torch.equal(state[name], learnt[name])] == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_the_header_for_uv_names_the_versions_of_the_requirements():
    header = re.search(r"# /// script\n(.*?)# ///", Path(finetune.__file__).read_text(), re.DOTALL)[1]
    wanted = set(tomllib.loads(re.sub(r"(?m)^# ?", "", header))["dependencies"])
    files = [Path(finetune.__file__).parent / name for name in ("requirements.txt", "tests/requirements.txt")]
    assert wanted <= {line for file in files for line in file.read_text().splitlines()}
    nodes = list(ast.walk(ast.parse(Path(finetune.__file__).read_text())))
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    imported = {module.split(".")[0] for module in modules} - sys.stdlib_module_names
    names = {re.split(r"[<>=]", line)[0].replace("scikit-learn", "sklearn").replace("pillow", "PIL") for line in wanted}
    assert imported - names <= {"scipy", "httpx2"}  # those come with the others
    assert {"onnx", "openvino", "timm"} <= names


def test_photos_from_the_file_are_those_that_are_decoded_each_time(dataset, tmp_path):
    part, processor = load_from_disk(str(dataset))["train"].shuffle(seed=1), finetune.image_processor(48)
    kept = finetune.Photos(part, processor, 0, tmp_path / "train.arrow")
    anew = finetune.Photos(part, processor)
    assert (
        len(kept) == len(anew) == len(part) > 2 and (tmp_path / "train.arrow").stat().st_size > len(part) * 48 * 48 * 3
    )
    for index, label in enumerate(part["label"]):
        assert kept[index]["labels"] == anew[index]["labels"] == label
        assert (kept[index]["pixels"] == anew[index]["pixels"]).all() and kept[index]["pixels"].dtype == np.uint8


def test_training_photos_grow_from_half_to_five_sixths_of_the_size():
    def side(size: int, epoch: int) -> int:
        train = SimpleNamespace(size=size)
        finetune.by_epoch(train, False).on_epoch_begin(
            SimpleNamespace(num_train_epochs=8), SimpleNamespace(epoch=epoch), None
        )
        return train.side

    assert [side(192, epoch) for epoch in (0, 3, 6, 8)] == [96, 128, 160, 160]
    assert side(32, 0) == 32  # the networks need as much


def test_the_same_seed_gives_the_same_weights(checkpoint, dataset, tmp_path):
    for folder, seed in (("again", 42), ("other", 43)):
        options = ["--epochs", "3", "--batch_size", "64", "--image_size", "64", "--seed", seed]
        train(dataset, tmp_path / folder, *options)
    first, second, other = (
        load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "again", tmp_path / "other")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv_stem.weight"], other["conv_stem.weight"])


def test_the_test_split_has_no_say_in_the_training(checkpoint, dataset, tmp_path):
    """With other test photos, most of them labelled wrongly, the weights are the same."""
    splits = load_from_disk(str(dataset))
    cats = splits["test"].filter(lambda label: label == 0, input_columns="label")
    labels = [number % 3 for number in range(len(cats))]
    splits["test"] = cats.remove_columns("label").add_column("label", labels).cast(cats.features)
    splits.save_to_disk(str(tmp_path / "other"))
    train(tmp_path / "other", tmp_path / "again", "--epochs", "3", "--batch_size", "64", "--image_size", "64")
    first, second = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert f"The test split ({len(cats)} photos)" in (tmp_path / "again" / "README.md").read_text()


def test_training_starts_from_the_weights_of_a_file_or_folder_with_a_new_head(checkpoint):
    given = load_file(checkpoint / "model.safetensors")
    for weights in (checkpoint, checkpoint / "model.safetensors"):
        model, _ = finetune.build_model("mobilenet_v3_small", list("abcdefg"), str(weights), None)
        state = model.timm_model.state_dict()
        assert state["classifier.weight"].shape[0] == 7
        assert all(torch.equal(state[name], given[name]) for name in given if not name.startswith("classifier."))


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "resnet18", "resnet50", "vgg11_bn"]
)
def test_timms_network_with_torchvisions_weights_is_the_same_function(name, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, num_classes=1000).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as a trained one, whose statistics are not those of a new one
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    model, _ = finetune.build_model(name, ["a", "b"], str(tmp_path / "weights.safetensors"), 64)
    head = finetune.head_name(theirs)
    with torch.no_grad():
        for one, other in zip(
            model.get_submodule(finetune.head_name(model)).parameters(),
            theirs.get_submodule(head).parameters(),
            strict=True,
        ):
            one.copy_(other[:2])
        pixels = torch.randn(2, 3, 64, 64)
        expected = theirs(pixels)[:, :2]
        found = model.eval()(pixels).logits
    assert expected.std() > 0 and torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


def test_features_without_a_classifier_are_taken_and_one_line_says_what_is_new(tmp_path, capsys):
    state = torchvision.models.get_model("mobilenet_v3_small").state_dict()
    features = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    save_file(features, tmp_path / "features.safetensors")
    model, _ = finetune.build_model("mobilenet_v3_small", ["a", "b"], str(tmp_path / "features.safetensors"), None)
    assert torch.equal(model.timm_model.conv_stem.weight, features["features.0.0.weight"])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "has no classifier: " in said[0] and "conv_head.weight" in said[0]
    spoilt = {
        "blocks.2.0.conv_pw.weight is missing": lambda tensors: tensors.pop("features.4.block.0.0.weight"),
        "more is missing, not finite, or of another network": lambda tensors: tensors.update(more=torch.zeros(1)),
        "not finite": lambda tensors: tensors["features.0.0.weight"].fill_(float("nan")),
        "conv_stem.weight is": lambda tensors: tensors.update({"features.0.0.weight": torch.zeros(3)}),
    }
    for words, change in spoilt.items():
        tensors = {name: tensor.clone() for name, tensor in features.items()}
        change(tensors)
        save_file(tensors, tmp_path / "spoilt.safetensors")
        with pytest.raises(ValueError, match=words):
            finetune.build_model("mobilenet_v3_small", ["a", "b"], str(tmp_path / "spoilt.safetensors"), None)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--nclasses", "2"], "--nclasses 2 contradicts the dataset, which has 3: Cat, Dog, Neither"),
        (["--weights", "DEFAULT"], "--weights none"),
        (["--weights", "nothing.safetensors"], "--weights nothing.safetensors cannot be downloaded or read"),
        (["--weights", "WRONG"], "is not a mobilenet_v3_small"),
        (["--data_path", "nowhere"], "--data_path nowhere cannot be read as a folder of prep.py or a Hub dataset"),
        (["--data_path", "."], "). Prepare it first: python prep.py --image_path . --dst_path dataset"),
        (["--epochs", "0"], "--epochs 0 must be greater than 0"),
        (["--model_name", "alexnet"], "--model_name alexnet cannot be loaded by transformers as an image classifier"),
        (
            ["--model_name", "them/vit", "--weights", "x.safetensors"],
            "--weights x.safetensors cannot be loaded by transformers",
        ),
        (["--report_to", "wandb"], "wandb is not installed. Run: pip install wandb"),
        (["--baseline", "VIT"], "has other labels than the dataset"),
        (["--monitor_metric_name", "luck"], "invalid choice: 'luck'"),
        (["--device", "cuda"], "--device cuda is not available"),
        (["--push_to_hub", "you/pets"], "hf auth login"),
        (["--lr", "1e30"], "diverged"),
        (["--image_size", "16"], "--image_size 16 is too small: mobilenet_v3_small needs 32 or more"),
        (["--teacher", "."], "--teacher . cannot be loaded by transformers"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(
    dataset, tiny_vit, tmp_path, logged_out, monkeypatch, more, words
):
    if "cuda" in more and torch.cuda.is_available():
        more, words = ["--epochs", "-1"], "--epochs -1"
    save_file({"fc.weight": torch.zeros(3, 4)}, tmp_path / "wrong.safetensors")
    places = {"WRONG": str(tmp_path / "wrong.safetensors"), "VIT": str(tiny_vit)}
    more = [places.get(word, word) for word in more]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing is downloaded, with a network neither
    size = ["--image_size", "48", "--checkpoints_path", tmp_path / "checkpoint"]
    result = call("finetune.py", "--data_path", dataset, *SHORT, *size, *more)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert result.returncode != 0 and words in result.stderr
    assert "finetune.py: error: " in result.stderr.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistake_in_a_program_is_one_sentence_without_a_traceback(dataset, tmp_path):
    result = run_program("finetune.py", "--data_path", dataset, "--nclasses", 2, "--checkpoints_path", tmp_path / "new")
    assert result.returncode == 1 and not list(tmp_path.iterdir())
    assert result.stderr.splitlines()[-1].startswith("finetune.py: error: --nclasses 2 contradicts the dataset")
    assert "Traceback" not in result.stderr


def test_a_checkpoint_that_exists_is_replaced_only_on_demand(checkpoint, dataset, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(checkpoint, folder)
    command = ["--data_path", dataset, *SHORT, "--image_size", "48", "--checkpoints_path", folder]
    assert "--overwrite" in call("finetune.py", *command).stderr
    assert (folder / "README.md").read_text() == (checkpoint / "README.md").read_text()
    assert call("finetune.py", *command, "--overwrite").returncode == 0
    assert (folder / "README.md").read_text() != (checkpoint / "README.md").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_push_makes_a_private_repo_with_one_commit_that_the_app_pulls_by_revision(
    dataset, hub, app_url, put_behind, browser, tmp_path
):
    options = ["--image_size", "48", "--checkpoints_path", tmp_path / "local", "--push_to_hub", "you/pets"]
    result = call("finetune.py", "--data_path", dataset, *SHORT, *options)
    assert result.returncode == 0, result.stderr
    assert hub.private == {"you/pets": True} and len(hub.commits["you/pets"]) == 2
    folder = tmp_path / "local"
    local = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert hub.commits["you/pets"][-1] == local
    revision = re.search(r"revision (\w{40})", result.stdout)[1]
    photo = data_url(sorted(app.EXAMPLES.glob("*.jpg"))[0])
    answers = []
    names = {f"you/pets@{revision}": f"you/pets, revision {revision[:7]}", str(tmp_path / "local"): "local"}
    for source, name in names.items():
        put_behind(mobilenet=source)
        answers.append(call_endpoint(app_url, "predict", photo, "mobilenet"))
        page = browser.new_page()
        page.goto(app_url)
        page.get_by_role("tab", name="About").click()
        expect(page.get_by_text(f"mobilenet is {name}.")).to_be_visible(timeout=60_000)
        page.close()
    confidences = [re.search(r'"confidences": (\[.*?\])', answer)[1] for answer in answers]
    assert confidences[0] == confidences[1] and f"you/pets, revision {revision[:7]}" in answers[0]


def test_a_push_gets_over_a_fault_at_any_call_with_exactly_one_commit(checkpoint, hub, no_waiting):
    def push():
        hub.commits.clear()
        hub.lfs.clear()
        hub.requests.clear()
        finetune.create_repo("you/pets")
        finetune.push(checkpoint, "you/pets")

    push()  # the first one of a process has a call more
    push()
    calls, whole = len(hub.requests), hub.commits["you/pets"][-1]
    commit = next(number for number, made in enumerate(hub.requests, 1) if "/commit/" in made)
    assert whole["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes() and calls >= 6
    for number in range(1, calls + 1):
        hub.faults = {number: "cut after" if number == commit else (503, "cut", 429, "cut after")[number % 4]}
        push()
        assert not hub.faults and hub.commits["you/pets"] == [{}, whole], number


def test_a_refusal_ends_the_push_in_words_and_the_checkpoint_stays(checkpoint, hub):
    for status in (401, 403, 412):
        hub.commits["you/pets"], hub.private["you/pets"] = [{}], True
        hub.requests.clear()
        hub.faults = dict.fromkeys(range(2, 99), status)
        with pytest.raises(OSError, match=f"Upload it later with: hf upload you/pets {checkpoint}") as refusal:
            finetune.push(checkpoint, "you/pets")
        assert len(str(refusal.value).splitlines()) == 1
        assert len(hub.requests) < 12 and hub.commits["you/pets"] == [{}]


def test_model_names_are_torchvisions_and_help_lists_them():
    from torchvision import models

    families = [name for name in models.list_models(models) if re.match(r"(resnet|vgg|mobilenet)", name)]
    assert sorted(finetune.NETWORKS) == sorted(families)
    text = "".join(call("finetune.py", "--help").stdout.split())
    assert ",".join(finetune.NETWORKS) in text


def test_the_cards_python_snippets_work_as_pasted_and_say_what_predict_says(
    checkpoint, put_behind, tmp_path, monkeypatch, capsys
):
    card = (checkpoint / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 2
    monkeypatch.chdir(tmp_path)
    shutil.copy(app.EXAMPLES / "dog-red.jpg", tmp_path / "photo.jpg")
    [expected] = probabilities_by_app(checkpoint, [tmp_path / "photo.jpg"], put_behind)
    for snippet, tolerance in zip(snippets, (1e-3, 5e-3), strict=True):
        exec(snippet, {})
        said = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
        found = {one["label"]: one["score"] for one in said} if isinstance(said, list) else said
        assert farthest([found], [expected]) < tolerance


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "CMYK"])
def test_app_and_finetune_see_the_same_pixels_of_a_photo(tmp_path, mode):
    photo = Image.radial_gradient("L").resize((40, 30)).convert("RGB")
    if mode in ("RGBA", "LA"):
        photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    photo = photo.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    file = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    photo.save(file, exif=exif)
    in_app, in_training = app.open_photo(file), finetune.rgb(Image.open(io.BytesIO(file.read_bytes())))
    assert in_app.size == (30, 40) and in_app.mode == "RGB"
    assert in_app.tobytes() == in_training.tobytes()


def test_the_network_is_given_the_same_numbers_in_training_and_in_the_app(checkpoint, dataset):
    part, processor = load_from_disk(str(dataset))["validation"], finetune.image_processor(64)
    photos = finetune.Photos(part, processor)
    pixels = default_data_collator(list(photos))["pixels"]
    in_training = finetune.scale(pixels.permute(0, 3, 1, 2), processor)
    files = [io.BytesIO(row["bytes"]) for row in part.data.column("image").to_pylist()]
    served = app.load_classifier(str(checkpoint))
    in_app = torch.from_numpy(served.pixels([app.open_photo(file) for file in files]))
    assert torch.allclose(in_app, in_training, atol=1e-5)


def test_transparent_parts_of_a_photo_are_white():
    photo = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    photo.putpixel((0, 0), (0, 0, 0, 0))
    assert list(app.open_photo(io.BytesIO(stored(photo, "PNG"))).getdata()) == [(255, 255, 255), (200, 0, 0)]
