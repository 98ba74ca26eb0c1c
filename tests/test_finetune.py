"""finetune.py as its users run it, and its checkpoint in the app."""

import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import run, running_app
from datasets import load_from_disk
from gradio_client import Client, handle_file
from PIL import Image
from safetensors.torch import load_file, save_file
from stand_in_hub import TOKEN

import app
import finetune

SHORT = ["--weights", "none", "--epochs", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def checkpoint(dataset, tmp_path_factory):
    """A checkpoint of three epochs on the drawn photos."""
    folder = tmp_path_factory.mktemp("checkpoints") / "drawn"
    small = ["--weights", "none", "--epochs", "3", "--image_size", "64", "--checkpoints_path", folder]
    result = run("finetune.py", "--data_path", dataset, *small)
    assert result.returncode == 0, result.stderr
    return folder


def copy_with(checkpoint, folder, change):
    """Return a copy of the checkpoint, its tensors changed in place by `change`."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


# A MobileNetV3 from random weights gives all photos the same logits until it has seen some steps.
@pytest.mark.parametrize(("model_name", "epochs"), [("mobilenet_v3_small", 6), ("resnet18", 1), ("vgg11", 1)])
def test_each_family_trains_and_the_app_gives_the_trained_models_logits(dataset, tmp_path, model_name, epochs):
    folder = tmp_path / model_name
    model, metrics = finetune.finetune(
        data_path=dataset,
        model_name=model_name,
        checkpoints_path=folder,
        weights="none",
        epochs=epochs,
        batch_size=8,
        lr=5e-3,
        image_size=64,
    )
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == [model_name]  # no half-finished epochs beside it
    assert 0 <= metrics["accuracy"] <= 1
    photos = [app.open_photo(file) for file in sorted(app.EXAMPLES.glob("*.jpg"))[:3]]
    served = app.load_classifier(str(folder))
    pixels = served.processor(photos, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        trained = model(pixels).numpy()
    assert np.abs(served.logits(pixels.numpy()) - trained).max() < 1e-4
    assert np.ptp(trained, axis=0).max() > 1e-6  # the photos differ, so the comparison says something


def test_a_checkpoint_given_by_a_variable_is_what_the_app_answers_with(checkpoint, dataset):
    part = load_from_disk(str(dataset))["validation"]
    card = (checkpoint / "README.md").read_text()
    best = float(re.search(r"validation accuracy: epoch \d+, (\d+\.\d+)", card)[1])
    with running_app(MOBILENET_MODEL=str(checkpoint)) as url:
        client = Client(url, verbose=False)
        answers = []
        for index, image in enumerate(part["image"]):
            file = checkpoint.parent / f"{index}.png"
            image.save(file)
            answers.append(client.predict(handle_file(file), "mobilenet", api_name="/predict")["label"])
    names = part.features["label"].names
    right = [answer == names[label] for answer, label in zip(answers, part["label"], strict=True)]
    # The card's best epoch, measured again through page preprocessing and the other engine.
    assert np.mean(right) == pytest.approx(best, abs=1e-4)


def test_the_best_epoch_by_the_monitored_metric_is_saved(dataset, tmp_path):
    """At this learning rate the last epoch is not the best one, so saving the last would show."""
    chosen = set()
    for metric in ("accuracy", "loss"):
        folder = tmp_path / metric
        options = [
            "--weights",
            "none",
            "--epochs",
            "4",
            "--lr",
            "0.02",
            "--image_size",
            "48",
            "--monitor_metric_name",
            metric,
        ]
        result = run("finetune.py", "--data_path", dataset, "--checkpoints_path", folder, *options)
        assert result.returncode == 0, result.stderr
        values = [float(value) for value in re.findall(rf"'eval_{metric}': '([^']+)'", result.stdout)]
        epoch, value = re.search(
            rf"validation {metric}: epoch (\d+), (\d+\.\d+)", (folder / "README.md").read_text()
        ).groups()
        best = max(values) if metric == "accuracy" else min(values)
        assert float(value) == pytest.approx(best, rel=1e-3) and values.index(best) == int(epoch) - 1
        splits = load_from_disk(str(dataset))
        served = app.load_classifier(str(folder))
        photos = served.processor([finetune.rgb(image) for image in splits["validation"]["image"]], return_tensors="pt")
        logits = torch.from_numpy(served.logits(photos["pixel_values"].numpy()))
        labels = torch.tensor(splits["validation"]["label"])
        again = {
            "accuracy": (logits.argmax(1) == labels).float().mean().item(),
            "loss": torch.nn.functional.cross_entropy(logits, labels).item(),
        }
        assert again[metric] == pytest.approx(best, rel=2e-2)
        chosen.add((metric, int(epoch)))
    assert any(epoch != 4 for _, epoch in chosen)


def test_the_card_holds_the_test_splits_numbers_for_readers_and_for_the_hub(checkpoint, dataset):
    from huggingface_hub import ModelCard

    card = ModelCard.load(checkpoint / "README.md")
    results = {result.metric_type: result for result in card.data.eval_results}
    assert set(results) == {"accuracy", "precision", "recall", "f1"}
    assert results["accuracy"].dataset_split == "test"
    test = load_from_disk(str(dataset))["test"]
    served = app.load_classifier(str(checkpoint))
    right = 0
    for image, label in zip(test["image"], test["label"], strict=True):
        pixels = served.processor(finetune.rgb(image), return_tensors="pt")["pixel_values"].numpy()
        right += int(served.logits(pixels).argmax() == label)
    assert results["accuracy"].metric_value == pytest.approx(right / len(test), abs=1e-4)
    assert f"The test split ({len(test)} photos)" in card.text
    assert "python finetune.py --data_path" in card.text and "--epochs 3" in card.text


def test_the_same_seed_gives_the_same_weights(checkpoint, dataset, tmp_path):
    small = ["--weights", "none", "--epochs", "3", "--image_size", "64", "--checkpoints_path", tmp_path / "again"]
    assert run("finetune.py", "--data_path", dataset, *small).returncode == 0
    first, second = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_starts_from_the_weights_of_a_file_with_a_new_head(checkpoint):
    model = finetune.build_model("mobilenet_v3_small", 7, str(checkpoint / "model.safetensors"))
    given = load_file(checkpoint / "model.safetensors")
    state = model.state_dict()
    assert state["classifier.3.weight"].shape[0] == 7
    assert all(torch.equal(state[name], given[name]) for name in given if not name.startswith("classifier.3."))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--nclasses", "2"], "--nclasses 2 contradicts the dataset, which has 3: Cat, Dog, Neither"),
        (["--weights", "DEFAULT"], "--weights none"),
        (["--weights", "nothing.safetensors"], "--weights nothing.safetensors is neither DEFAULT, none, nor"),
        (["--weights", "WRONG"], "is not a mobilenet_v3_small"),
        (["--data_path", "nowhere"], "--data_path nowhere is neither a folder nor a dataset"),
        (["--data_path", "."], "not one that prep.py wrote"),
        (["--epochs", "0"], "--epochs 0 must be greater than 0"),
        (["--model_name", "alexnet"], "invalid choice: 'alexnet'"),
        (["--monitor_metric_name", "luck"], "invalid choice: 'luck'"),
        (["--device", "cuda"], "--device cuda is not available"),
        (["--push_to_hub", "you/pets"], "hf auth login"),
        (["--lr", "1e30"], "infinity"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(dataset, tmp_path, more, words):
    if "cuda" in more and torch.cuda.is_available():
        more, words = ["--epochs", "-1"], "--epochs -1"
    save_file({"fc.weight": torch.zeros(3, 4)}, tmp_path / "wrong.safetensors")
    more = [str(tmp_path / "wrong.safetensors") if word == "WRONG" else word for word in more]
    before = sorted(tmp_path.rglob("*"))
    size = ["--image_size", "48", "--checkpoints_path", tmp_path / "checkpoint"]
    cache = {"TORCH_HOME": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "cache")}
    result = run("finetune.py", "--data_path", dataset, *SHORT, *size, *more, cwd=tmp_path, **cache)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert result.returncode != 0 and words in result.stderr and "Traceback" not in result.stderr
    assert "finetune.py: error: " in result.stderr.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_that_exists_is_replaced_only_on_demand(checkpoint, dataset, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(checkpoint, folder)
    refused = run("finetune.py", "--data_path", dataset, *SHORT, "--checkpoints_path", folder)
    assert refused.returncode != 0 and "--overwrite" in refused.stderr
    assert (folder / "README.md").read_text() == (checkpoint / "README.md").read_text()
    done = run(
        "finetune.py", "--data_path", dataset, *SHORT, "--image_size", "48", "--checkpoints_path", folder, "--overwrite"
    )
    assert done.returncode == 0 and (folder / "README.md").read_text() != (checkpoint / "README.md").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_push_makes_a_private_repo_with_one_commit_that_the_app_pulls_by_revision(dataset, hub, tmp_path):
    login = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "cache")}
    options = ["--image_size", "48", "--checkpoints_path", tmp_path / "local", "--push_to_hub", "you/pets"]
    result = run("finetune.py", "--data_path", dataset, *SHORT, *options, **login)
    assert result.returncode == 0, result.stderr
    assert hub.private == {"you/pets": True} and len(hub.commits["you/pets"]) == 2
    local = {file.name: file.read_bytes() for file in (tmp_path / "local").iterdir()}
    assert hub.commits["you/pets"][-1] == local
    revision = re.search(r"revision (\w{40})", result.stdout)[1]
    photo = str(sorted(app.EXAMPLES.glob("*.jpg"))[0])
    answers = []
    for source in (f"you/pets@{revision}", str(tmp_path / "local")):
        with running_app(MOBILENET_MODEL=source, **login) as url:
            answers.append(Client(url, verbose=False).predict(handle_file(photo), "mobilenet", api_name="/predict"))
    assert answers[0] == answers[1]


def test_checkpoints_that_are_not_what_they_say_are_refused_in_words(checkpoint, tmp_path):
    first = "features.0.0.weight"
    spoilt = {
        "not finite": lambda tensors: tensors[first].view(-1)[:1].fill_(float("nan")),
        "does not hold the tensors": lambda tensors: tensors.pop(first),
        "the tensors of a mobilenet_v3_small": lambda tensors: tensors.update(more=torch.zeros(1)),
    }
    for number, (words, change) in enumerate(spoilt.items()):
        folder = copy_with(checkpoint, tmp_path / str(number), change)
        with pytest.raises(ValueError, match=words):
            app.load_classifier(str(folder))
    folder = copy_with(checkpoint, tmp_path / "renamed", dict)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "resnet9000"}))
    with pytest.raises(ValueError, match="resnet9000"):
        app.load_classifier(str(folder))


def test_model_names_are_torchvisions_and_help_lists_them():
    from torchvision import models

    families = [name for name in models.list_models(models) if re.match(r"(resnet|vgg|mobilenet)", name)]
    assert sorted(finetune.MODEL_NAMES) == sorted(families)
    text = "".join(run("finetune.py", "--help").stdout.split())
    assert ",".join(finetune.MODEL_NAMES) in text


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


def test_transparent_parts_of_a_photo_are_white():
    photo = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    photo.putpixel((0, 0), (0, 0, 0, 0))
    assert list(app.rgb(photo).getdata()) == [(255, 255, 255), (200, 0, 0)]
