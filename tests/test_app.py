"""The app's API, as scripts meet it, and the reading of ImageNet models."""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path

import gradio as gr
import numpy as np
import onnx
import pytest
from conftest import ROOT, app_process, ask, call_endpoint, data_url, running_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from odd_files import stored
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

import app
import finetune

EXAMPLES = {file.name: file.name.split("-")[0].title() for file in sorted(app.EXAMPLES.glob("*.jpg"))}


@pytest.fixture
def client(app_url):
    return Client(app_url, verbose=False)


@pytest.mark.parametrize(("name", "label"), EXAMPLES.items())
def test_the_shipped_checkpoint_is_right_about_every_example(client, name, label):
    answer = client.predict(handle_file(app.EXAMPLES / name), "mobilenet", api_name="/predict")
    assert answer["label"] == label
    confidences = {entry["label"]: entry["confidence"] for entry in answer["confidences"]}
    assert set(confidences) == {"Cat", "Dog", "Neither"} and sum(confidences.values()) == pytest.approx(1, abs=1e-5)


def test_mobilenet_is_the_model_of_a_call_that_names_none(client):
    photo = handle_file(app.EXAMPLES / "cat-chelsea.jpg")
    named = client.predict(photo, "mobilenet", api_name="/predict")
    assert client.predict(image=photo, api_name="/predict") == named


def test_a_model_that_cannot_be_had_says_so_and_the_other_goes_on(client):
    photo = handle_file(app.EXAMPLES / "cat-chelsea.jpg")
    with pytest.raises(AppError, match="The model vit .* cannot be loaded: the Hub cannot be reached"):
        client.predict(photo, "vit", api_name="/predict")
    assert client.predict(photo, "mobilenet", api_name="/predict")["label"] == "Cat"


def test_what_is_no_photo_is_refused_in_words(client, tmp_path):
    whole = (app.EXAMPLES / "cat-chelsea.jpg").read_bytes()
    for name, content in {"text.jpg": b"hello", "cut.jpg": whole[: len(whole) // 2], "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AppError, match="cannot be read as a photo"):
            client.predict(handle_file(tmp_path / name), "mobilenet", api_name="/predict")
    with pytest.raises(AppError, match="Upload a photo first"):
        client.predict(None, "mobilenet", api_name="/predict")


def test_plain_http_with_a_data_url_works_and_its_mistakes_have_words(app_url):
    assert '[{"label": "Dog"' in call_endpoint(app_url, "predict", data_url(app.EXAMPLES / "dog-red.jpg"), "mobilenet")
    assert "not valid base64" in call_endpoint(app_url, "predict", {"url": "data:image/jpeg;base64,!"}, "mobilenet")


def test_a_path_on_the_server_is_never_opened(app_url):
    for path in (app.EXAMPLES / "page.png", app.EXAMPLES / ".." / "README.md", "/etc/passwd"):
        for file in ({"path": str(path)}, {"path": str(path), "meta": {"_type": "gradio.FileData"}}):
            assert "event: error" in call_endpoint(app_url, "predict", file, "mobilenet")
            rows = call_endpoint(app_url, "predict_batch", [file], "mobilenet")
            assert "event: error" in rows or "are not read" in rows


def test_batch_answers_every_file_in_order_and_a_broken_one_with_its_reason(client, tmp_path):
    (tmp_path / "broken.jpg").write_text("no photo")
    paths = [*[app.EXAMPLES / name for name in EXAMPLES], tmp_path / "broken.jpg"] * 3
    answer = client.predict([handle_file(path) for path in paths], "mobilenet", api_name="/predict_batch")
    assert answer["headers"] == ["file", "label", "confidence", "note"]
    expected = [[name, label] for name, label in [*EXAMPLES.items(), ("broken.jpg", "")]] * 3
    assert [row[:2] for row in answer["data"]] == expected
    for file, _, confidence, note in answer["data"]:
        assert ("cannot be read" in note and confidence is None) if file == "broken.jpg" else 1 / 3 <= confidence <= 1


def forms_of(photo: Image.Image):
    """Yield (name, file, plain photo that has to be answered equally) for the ways in which a photo may be stored."""
    turns = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270")
    for orientation, turn in enumerate(turns, start=2):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield turn, stored(photo.transpose(Image.Transpose[turn]), "JPEG", quality=98, exif=exif), photo
    half = Image.new("L", photo.size, 255)
    half.paste(0, (0, 0, photo.width // 4, photo.height))
    over_white = Image.composite(photo, Image.new("RGB", photo.size, "white"), half)
    see_through = photo.copy()
    see_through.putalpha(half)
    grey = photo.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    few = photo.quantize(256)
    yield "RGBA", stored(see_through, "PNG"), over_white
    yield "WebP with transparency", stored(see_through, "WEBP", lossless=True), over_white
    yield "grey", stored(grey, "PNG"), grey.convert("RGB")
    yield "grey and alpha", stored(grey.convert("LA"), "PNG"), grey.convert("RGB")
    yield "16 bits, PNG", stored(deep, "PNG"), grey.convert("RGB")
    yield "16 bits, TIFF", stored(deep, "TIFF"), grey.convert("RGB")
    yield "CMYK", stored(photo.convert("CMYK"), "JPEG", quality=98), photo
    yield "palette", stored(few, "PNG"), few.convert("RGB")
    yield "animated", stored(few, "GIF", save_all=True, append_images=[Image.new("P", photo.size)]), few.convert("RGB")
    yield "large JPEG", stored(photo.resize((4000, 3200)), "JPEG"), photo
    yield "large PNG", stored(photo.resize((1500, 1200)), "PNG", compress_level=1), photo


def test_however_a_photo_is_stored_it_gets_the_answer_of_the_plain_one():
    """By the logits, as our model is as sure of a photo upside down; a mirrored one is 0.6 away."""
    photo = Image.open(app.EXAMPLES / "cat-chelsea.jpg").convert("RGB").resize((420, 336))
    model = app.classifier("mobilenet")
    for name, file, plain in forms_of(photo):
        got, expected = (model.logits(model.pixels([one])) for one in (app.open_photo(io.BytesIO(file)), plain))
        assert np.abs(got - expected).max() < 0.2, name


def test_an_imagenet_model_answers_cat_dog_neither(client, put_behind, tiny_vit):
    put_behind(vit=tiny_vit)
    answer = client.predict(handle_file(app.EXAMPLES / "cat-chelsea.jpg"), "vit", api_name="/predict")
    confidences = {entry["label"]: entry["confidence"] for entry in answer["confidences"]}
    assert confidences["Neither"] > 0.9 and confidences["Cat"] == pytest.approx(confidences["Dog"], abs=0.02)
    assert answer["model"] == tiny_vit.name


def test_imagenets_priors_are_corrected():
    """One cat of five is as likely as all else together: by the classes that is a cat, by sums only half of one."""
    logits = np.zeros((4, 1000))
    logits[1, 282] = logits[2, 200] = logits[3, 999] = app.PET_TEMPERATURE * np.log(999)
    sums = {"Cat": 1 / 2 + 4 / 1998, "Dog": 118 / 1998, "Neither": 877 / 1998}
    found = app.pet_probabilities(logits)
    assert np.allclose(found.sum(1), 1) and np.allclose(found[0], app.PET_SHARES)
    expected = np.array([sums[label] for label in app.PET_LABELS]) * app.PET_SHARES / np.array([5, 118, 877])
    assert np.allclose(found[1], expected / expected.sum()) and found[1][0] > 0.95
    assert [app.PET_LABELS[row.argmax()] for row in found[2:]] == ["Dog", "Neither"]


def test_an_answer_from_memory_is_that_of_the_same_model(tiny_vit, put_behind):
    put_behind(vit=tiny_vit)
    photo = app.open_photo(app.EXAMPLES / "cat-chelsea.jpg")
    fresh = {model: app.answers([photo], model)[0] for model in ("vit", "mobilenet")}
    for _ in range(2):
        assert {model: app.answer(photo, model) for model in fresh} == fresh
    assert fresh["vit"][0] != fresh["mobilenet"][0] and fresh["vit"][1] and not fresh["mobilenet"][1]


def test_a_model_of_two_labels_is_not_sure_below_its_own_threshold(tmp_path, put_behind):
    photo = app.open_photo(app.EXAMPLES / "cat-chelsea.jpg")
    found = {}
    for threshold in (0.0, 0.999):
        folder = str(tmp_path / f"below-{threshold}")
        model, processor = finetune.build_model("mobilenet_v3_small", ["Cat", "Dog"], "none", 48)
        finetune.write_model(Path(folder), model.eval(), processor, threshold)
        put_behind(vit=folder)
        found[threshold] = app.answers([photo], "vit")[0][0]
        assert sum(found[threshold].values()) == pytest.approx(1)
    assert sorted(found[0.0]) == ["Cat", "Dog"]
    assert max(found[0.999], key=found[0.999].get) == "Not sure"


# Hugging Face's module as it behaves on ZeroGPU: there is a GPU only while a function runs that asks for it, which gets
# its arguments in another process; what was put on "cuda" before the page went up is there, too.
SPACES = """
import os, pickle, sys

assert "torch" not in sys.modules, "it must be imported before torch"
import torch

log = open(os.environ["SPACES_LOG"], "a", buffering=1)
state = "before the page"

def cuda(tensor, *_):
    print("cuda", state, file=log)
    return tensor

torch.Tensor.cuda, torch.cuda.is_available = cuda, lambda: True

def GPU(function):
    import gradio  # which imports this module itself

    def launch(*arguments, launch=gradio.Blocks.launch, **named):
        global state
        state = "behind the page"
        return launch(*arguments, **named)

    def call(*arguments):
        global state
        before, state = state, f"lent for {arguments[0]}"
        print(state, file=log)
        try:
            return pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(arguments)))))
        finally:
            state = before

    gradio.Blocks.launch = launch
    return call
"""


def test_on_zerogpu_only_a_model_without_an_onnx_file_asks_for_the_gpu(tmp_path, tiny_vit):
    (tmp_path / "spaces.py").write_text(SPACES)
    log, photo = tmp_path / "log", (app.EXAMPLES / "dog-red.jpg").read_bytes()
    space = {"SPACES_ZERO_GPU": "true", "SPACES_LOG": str(log), "PYTHONPATH": str(tmp_path)}
    with running_app(VIT_MODEL=str(tiny_vit), **space) as url:
        assert json.loads(ask(f"{url}/api/predict", photo)[2])[0]["label"] == "Dog"
        assert "lent" not in log.read_text()
        assert json.loads(ask(f"{url}/api/predict?model=vit", photo)[2])[0]["label"] == "Neither"
    said = log.read_text().splitlines()
    assert said.count("lent for vit") == 1 and "cuda behind the page" not in said
    assert said.count("cuda before the page") == len(list(load_file(tiny_vit / "model.safetensors")))
    assert said.count("cuda lent for vit") == 1  # the pixels alone


def test_the_imagenet_classes_are_read_by_index():
    """timm's own class names say which 118 are dogs and which 5 are cats; names alone would mislead."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    names = [info.index_to_description(index).lower() for index in range(1000)]
    verdicts = [app.PET_LABELS[row.argmax()] for row in app.pet_probabilities(20 * np.eye(1000))]
    assert (verdicts.count("Cat"), verdicts.count("Dog"), verdicts.count("Neither")) == (5, 118, 877)
    expected = dict.fromkeys(
        ("catamaran", "hotdog", "bullfrog", "timber wolf", "cougar", "lynx", "sea lion"), "Neither"
    )
    expected |= dict.fromkeys(("tabby", "tiger cat", "persian cat", "siamese cat", "egyptian cat"), "Cat")
    expected |= dict.fromkeys(("chihuahua", "mexican hairless", "beagle", "toy poodle", "rottweiler"), "Dog")
    for word, label in expected.items():
        found = [index for index, name in enumerate(names) if any(part.startswith(word) for part in name.split(", "))]
        assert found and {verdicts[index] for index in found} == {label}, word


def test_the_teacher_like_timm_wrapper_loads(tmp_path):
    """timm models come with an image processor of their own, which takes other arguments than the rest."""
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    config = TimmWrapperConfig(
        architecture="resnet10t",
        num_labels=1000,
        pretrained_cfg={
            "input_size": [3, 32, 32],
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
    )
    TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
    served = app.load_classifier(str(tmp_path))
    assert served.logits(served.pixels([app.open_photo(app.EXAMPLES / "cat-chelsea.jpg")] * 2)).shape == (2, 1000)


def test_a_model_that_transformers_loads_keeps_its_own_labels(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    labels = {0: "wombat", 1: "quokka"}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(image_size=32, id2label=labels, **sizes)).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert app.load_classifier(str(tmp_path)).labels == ["wombat", "quokka"]


def pickled(folder, config, weights):
    import torch

    torch.save(weights, folder / "pytorch_model.bin")
    weights.clear()


def own_code(folder, config, weights):
    config.update(model_type="mine", auto_map=dict.fromkeys(("AutoConfig", "AutoModel"), "code.Mine"))
    (folder / "code.py").write_text("raise SystemExit('this code has run')")


def renumbered(folder, config, weights):
    config.update(id2label={str(int(i) + 1): label for i, label in config["id2label"].items()}, label2id={})
    config.pop("label_names", None)


# What may be wrong with a model: the words of the answer, and what does it to folder, config and weights.
FAULTS = {
    "no safetensors file": pickled,
    "custom code|mine": own_code,
    "no config.json": lambda folder, config, weights: config.clear(),
    "do not agree about .*classifier": lambda folder, config, weights: [
        weights.pop(n) for n in list(weights) if HEAD in n
    ],
    "do not agree about .*extra": lambda folder, config, weights: weights.update(
        extra=weights[next(iter(weights))].clone()
    ),
    "not finite": lambda folder, config, weights: weights[next(n for n in weights if HEAD in n)].fill_(float("nan")),
    "from 0 on": renumbered,
}
HEAD = "classifier"
# What may lie where the weights should be.
FALSE_WEIGHTS = {
    "a header of 10^18 bytes": struct.pack("<Q", 10**18) + b"{}",
    "a header of 100 MB": struct.pack("<Q", 100_000_001) + b" " * 100_000_001,
    "more data than there is": struct.pack("<Q", 60)
    + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,8]}}'[:60],
    "a zip file": b"PK\x03\x04" + bytes(1000),
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.",
    "nothing": b"",
}


@pytest.fixture
def refusal(put_behind):
    """Return the function from a model's folder to the one sentence with which the app refuses it."""

    def words(folder) -> str:
        put_behind(vit=folder)
        with pytest.raises(gr.Error, match="The model vit .* cannot be loaded: ") as error:
            app.classifier("vit")
        assert "\n" not in error.value.message and error.value.message.endswith("Choose mobilenet instead.")
        return error.value.message

    return words


@pytest.mark.parametrize("words", FAULTS)
@pytest.mark.parametrize("kind", ["ours", "transformers"])
def test_a_model_with_a_fault_is_refused_in_one_sentence(kind, words, tiny_vit, tmp_path, refusal):
    from safetensors.torch import load_file, save_file

    """Read from the safetensors file: there is no ONNX."""
    shutil.copytree({"ours": app.EXAMPLES / "mobilenet_v3_small", "transformers": tiny_vit}[kind], tmp_path / "model")
    folder = tmp_path / "model"
    shutil.rmtree(folder / "onnx", ignore_errors=True)
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    FAULTS[words](folder, config, weights)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    if weights:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert re.search(words, refusal(folder))


@pytest.mark.parametrize("content", FALSE_WEIGHTS)
@pytest.mark.parametrize("file", ["onnx/model.onnx", "model.safetensors"])
def test_a_file_that_is_not_what_it_says_is_refused(file, content, tiny_vit, tmp_path, monkeypatch, refusal):
    source = app.EXAMPLES / "mobilenet_v3_small" if "onnx" in file else tiny_vit
    folder = shutil.copytree(source, tmp_path / "model")
    (folder / file).write_bytes(FALSE_WEIGHTS[content])
    monkeypatch.chdir(tmp_path)
    assert "damaged" in refusal(folder) and sorted(tmp_path.iterdir()) == [folder]


def outside(model):
    """Have the largest tensor lie in another file."""
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    tensor.ClearField("raw_data")


def somebodys(model):
    model.graph.node[0].MergeFrom(onnx.NodeProto(op_type="Evil", domain="somebody"))


def infinite(model):
    head = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.weight"))
    head.CopyFrom(onnx.numpy_helper.from_array(np.full(head.dims, np.inf, np.float32), head.name))


ONNX_FAULTS = {
    "takes data from other files": outside,
    "needs operators of somebody": somebodys,
    "not finite": infinite,
    "3 outputs, and its config.json names 2 labels": lambda model: None,
}


@pytest.mark.parametrize("words", ONNX_FAULTS)
def test_an_onnx_file_with_a_fault_is_refused_in_one_sentence(words, tmp_path, refusal):
    folder = shutil.copytree(app.EXAMPLES / "mobilenet_v3_small", tmp_path / "model")
    file = folder / "onnx" / "model.onnx"
    model = onnx.load(file)
    if "labels" in words:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "Cat", "1": "Dog"}}))
    ONNX_FAULTS[words](model)
    file.write_bytes(model.SerializeToString())
    assert words in refusal(folder)


def test_a_model_of_independent_or_single_labels_is_not_given_a_softmax(tmp_path, put_behind):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    photo = app.open_photo(app.EXAMPLES / "cat-chelsea.jpg")
    for labels, problem in (({0: "furry", 1: "indoors"}, "multi_label_classification"), ({0: "pet"}, None)):
        folder = tmp_path / labels[0]
        model = ViTForImageClassification(ViTConfig(image_size=32, id2label=labels, problem_type=problem, **sizes))
        model.save_pretrained(folder)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        put_behind(vit=folder)
        found, _ = app.answer(photo, "vit")
        expected = {one["label"]: one["score"] for one in pipeline("image-classification", model=str(folder))(photo)}
        assert {label: found[label] for label in expected} == pytest.approx(expected, abs=1e-3)
    assert sorted(found) == ["Not pet", "pet"] and sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "config",
    [
        "[" * 100_000,
        "[1]",
        '{"model_type": "timm_wrapper", "id2label": {"0": "Cat", "9999999999": "Dog", "2": "Neither"}}',
        '{"model_type": "timm_wrapper", "id2label": {"0": "Cat"}}',
        '{"model_type": "timm_wrapper", "id2label": 5}',
        '{"model_type": "vit", "hidden_size": 1000000000}',
        "not json",
    ],
)
def test_a_config_that_makes_no_sense_is_refused(config, tmp_path, refusal):
    shutil.copytree(app.EXAMPLES / "mobilenet_v3_small", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(config)
    refusal(tmp_path / "model")


def test_a_conversion_is_read_at_the_next_start_if_weights_and_file_are_whole(tiny_vit, tmp_path, monkeypatch):
    from huggingface_hub import constants
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    folder = shutil.copytree(tiny_vit, tmp_path / "model")
    pixels = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    weights, kept = load_file(folder / "model.safetensors"), {}

    def logits(bias: float) -> np.ndarray:
        changed = {**weights, "classifier.bias": weights["classifier.bias"] + bias}
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        found = app.load_classifier(str(folder)).logits(pixels)
        kept.setdefault(bias, max((tmp_path / "assets" / "cat-dog-neither").iterdir(), key=os.path.getmtime))
        return found

    plain = logits(0)
    assert np.allclose(logits(1), plain + 1, atol=1e-3)  # other weights, another conversion
    shutil.copytree(kept[1], kept[0], dirs_exist_ok=True)  # which shows that it is read
    assert np.allclose(logits(0), plain + 1, atol=1e-3)
    damaged = (kept[0] / "model.bin").read_bytes()[:1000]
    (kept[0] / "model.bin").write_bytes(damaged)
    assert np.allclose(logits(0), plain, atol=1e-3) and (kept[0] / "model.bin").read_bytes() != damaged
    for bias in range(2, app.CONVERTED + 2):
        logits(bias)
    assert [folder.exists() for folder in kept.values()] == [False] * 2 + [True] * app.CONVERTED


# Programs rely on these names and shapes: endpoint, parameters, what it returns.
API = {
    "/predict": (["image", "model"], ["Answer"]),
    "/predict_batch": (["files", "model"], ["Answers"]),
    "/compare": (["image"], ["mobilenet", "vit", "In words"]),
    "/explain": (["image", "model"], ["What the answer rests on", "Legend"]),
    "/models": ([], ["1st"]),
}


def test_the_api_keeps_its_names(client):
    described = client.view_api(return_format="dict")["named_endpoints"]
    found = {
        name: ([one["parameter_name"] for one in endpoint["parameters"]], [one["label"] for one in endpoint["returns"]])
        for name, endpoint in described.items()
    }
    assert found == API
    assert described["/predict"]["parameters"][1]["type"]["enum"] == ["mobilenet", "vit"]
    assert all(endpoint["description"] for endpoint in described.values())


def test_compare_explain_and_models_answer_programs(client, put_behind, tiny_vit):
    photo = handle_file(app.EXAMPLES / "dog-red.jpg")
    put_behind(vit=tiny_vit)
    mobilenet, vit, words = client.predict(photo, api_name="/compare")
    tinted, legend = client.predict(photo, "vit", api_name="/explain")
    models = client.predict(api_name="/models")
    assert mobilenet["label"] == "Dog" and vit["label"] == "Neither" and words.startswith("They disagree: mobilenet")
    assert mobilenet == client.predict(photo, "mobilenet", api_name="/predict")
    assert (
        Image.open(tinted).size == app.open_photo(app.EXAMPLES / "dog-red.jpg").size
        and "answer Neither depends" in legend
    )
    assert [one["name"] for one in models] == ["mobilenet", "vit"]
    assert all(one["loaded"] and one["labels"] == ["Cat", "Dog", "Neither"] for one in models)
    assert "right that it was tested with" in models[0]["measured"] and not models[1]["measured"]
    assert "gives each photo one of them" in models[0]["limits"]


def test_compare_answers_with_what_there_is(client, put_behind):
    put_behind(vit="you/nothing")
    mobilenet, vit, words = client.predict(handle_file(app.EXAMPLES / "cat-chelsea.jpg"), api_name="/compare")
    assert mobilenet["label"] == "Cat" and "the Hub cannot be reached" in vit["error"]
    assert re.fullmatch(r"Only one model answered: mobilenet says Cat \(> 99 %\)\.", words)


@pytest.mark.parametrize("model", ["mobilenet", "vit"])
def test_the_heatmap_tells_what_the_answer_rests_on(model, tiny_vit, put_behind):
    """Covering the hottest fifth lowers the answer's score more than covering a random fifth does."""
    put_behind(vit=tiny_vit)
    chance, falls = np.random.default_rng(0), []
    for name in EXAMPLES:
        photo = app.open_photo(app.EXAMPLES / name)
        label, heat = app.heat(photo, model)
        fifth = heat.size // 5
        masks = np.zeros((21, heat.size), bool)
        masks[0, heat.argsort(axis=None)[-fifth:]] = True
        for mask in masks[1:]:
            mask[chance.choice(heat.size, fifth, replace=False)] = True
        mean = Image.new("RGB", photo.size, photo.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))
        covers = [
            Image.fromarray(mask.reshape(heat.shape)).resize(photo.size, Image.Resampling.NEAREST) for mask in masks
        ]
        covered = [Image.composite(mean, photo, cover) for cover in covers]
        scores = np.array([probabilities[label] for probabilities, _ in app.answers(covered, model)])
        falls.append(scores[1:].mean() - scores[0])
    assert np.mean(falls) > 0 and sum(fall > 0 for fall in falls) > len(falls) / 2


def test_openapi_describes_the_endpoints(app_url):
    paths = json.load(urllib.request.urlopen(f"{app_url}/gradio_api/openapi.json"))["paths"]
    for name in API:
        assert any(path.endswith(f"/{name.strip('/')}") for path in paths), sorted(paths)


def test_importing_the_app_starts_nothing_and_needs_no_torch():
    code = "import sys, app; sys.exit(bool({'torch', 'transformers'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_default_model_is_answered_without_torch_and_transformers_in_little_memory():
    """Libraries that are loaded show in the process's map; transformers' own is that of its tokenizers."""
    with app_process(VIT_MODEL="none") as (process, url):
        client = Client(url, verbose=False)
        for name in [*EXAMPLES, *EXAMPLES][:10]:
            answer = client.predict(handle_file(app.EXAMPLES / name), "mobilenet", api_name="/predict")
            assert answer["label"] == EXAMPLES[name]
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        status = Path(f"/proc/{process.pid}/status").read_text()
        named = client.view_api(return_format="dict")["named_endpoints"]
    assert "openvino" in maps and "torch" not in maps and "tokenizers" not in maps
    assert int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) < 400_000
    assert named["/predict"]["parameters"][1]["type"]["enum"] == ["mobilenet"]
