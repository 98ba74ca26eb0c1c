"""Cat, dog or neither: a page and an API around two image classifiers.

    python app.py
    MOBILENET_MODEL=checkpoints/mobilenet_v3_small python app.py
    VIT_MODEL=you/your-vit@main GRADIO_SERVER_PORT=8000 python app.py

A model is a Hub id, `id@revision`, or a local folder: a checkpoint that finetune.py wrote, or any image classifier that
transformers loads. A private one needs HF_TOKEN or `hf auth login`. From another program:

    from gradio_client import Client, handle_file
    Client("http://127.0.0.1:7860").predict(handle_file("photo.jpg"), "mobilenet", api_name="/predict")
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image, ImageOps

try:
    import spaces  # Hugging Face's, on its own machines; before torch, as it says
except ImportError:
    spaces = None

EXAMPLES = Path(__file__).resolve().parent / "examples"
MODELS = {
    "mobilenet": os.environ.get("MOBILENET_MODEL") or str(EXAMPLES / "mobilenet_v3_small"),
    "vit": os.environ.get("VIT_MODEL") or "google/vit-base-patch16-224",
}
PET_LABELS = ["Cat", "Dog", "Neither"]
# The answer of a model that has no "Neither", where it is less sure than it is of photos like its own.
UNSURE = "Not sure"
IMAGENET = 1000  # classes; a model with as many is taken to know them, in the usual order
# The ImageNet-1k indices of the 5 domestic cats (tabby to Egyptian cat) and the 118 dog breeds (Chihuahua to Mexican
# hairless). Names would not do: catamaran and bullfrog are no pets, and 105 breeds do not say "dog".
CATS, DOGS = slice(281, 286), slice(151, 269)
# Pillow's other formats are rarely looked after; JPEG includes MPO.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 89_000_000  # above it a small file can fill the memory; Pillow's own warning starts just above
ENOUGH = 448  # pixels of a photo's shorter side, twice what the models look at; larger ones are reduced first
MAX_FILES = 200
BATCH_SIZE = 16
REMEMBERED = 1000  # answers, so that the same photo need not be looked at again
CONVERTED = 4  # models that stay on disk as OpenVINO wants them, so that the next start is shorter
HOUR = 3600

INTRODUCTION = "# Cat, dog or neither?\nDrop a photo of a cat, a dog, or something else. The answer comes at once."
NOTES = """A model that knows the 1000 classes of ImageNet answers with the sums of its 5 cats, its 118 dogs and all the
rest. Do not rely on either for drawings, wolves, or several animals in one photo. Photos are deleted from the server after
two hours at most."""


def open_photo(file) -> Image.Image:
    """Return the photo upright and in RGB, transparent parts white, as in finetune.py; a large one reduced.

    Args:
        file: path or binary file.

    Raises:
        gr.Error: if it is not a photo, or damaged, or too large.
    """
    try:
        # Not by its name: Pillow 12.3 would map an uncompressed TIFF into memory, and garble it if it is to be turned.
        with (
            file if hasattr(file, "read") else Path(file).open("rb") as opened,
            Image.open(opened, formats=IMAGE_FORMATS) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise gr.Error(
                    f"The photo has more than {MAX_PIXELS // 1_000_000} million pixels.", print_exception=False
                )
            image.draft("RGB", (ENOUGH, ENOUGH))  # a JPEG file can be decoded at a half, a quarter or an eighth
            photo = rgb(image)
            return photo.reduce(max(1, min(photo.size) // ENOUGH))
    except gr.Error:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything for a damaged file
        raise gr.Error(
            "This file cannot be read as a photo. Send a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file that opens elsewhere.",
            print_exception=False,
        ) from error


def rgb(image: Image.Image) -> Image.Image:
    """Return a PIL photo upright and in RGB, transparent parts white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = image.point(lambda grey: grey / 256)  # of 16 bits, which Pillow would cut off at 255
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def open_upload(path: str) -> Image.Image:
    """Return `open_photo` of an uploaded file, and of no other file on this server, whatever path a client sends.

    Raises:
        gr.Error: also if the path is not that of an upload.
    """
    if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise gr.Error("Upload the photo first; a path on the server is not taken.", print_exception=False)
    return open_photo(path)


def sent_photo(payload) -> Image.Image | None:
    """Return the photo that the page or an API client sent, as an upload or a data URL; None if there is none."""
    if payload is None:
        return None
    if payload.path:
        return open_upload(payload.path)
    try:
        return open_photo(io.BytesIO(base64.b64decode((payload.url or "").partition(";base64,")[2], validate=True)))
    except ValueError as error:
        raise gr.Error("The photo's data URL is not valid base64.", print_exception=False) from error


# gradio's own loader would fail on a damaged file before our code can say why. It is replaced for all image boxes, as
# gradio makes a new one of the page's box when an example is chosen.
gr.Image.preprocess = lambda self, payload: sent_photo(payload)


@dataclass(frozen=True)
class Classifier:
    """A model that is ready to answer."""

    name: str  # for people: the Hub id and revision, or the folder
    labels: list[str]
    processor: Callable  # a transformers image processor
    logits: Callable[[np.ndarray], np.ndarray]  # pixel values (N, 3, height, width) to logits (N, len(labels))
    temperature: float  # by which the logits are divided, so that the percentages mean something
    unsure_below: float  # confidence below which the answer is UNSURE; 0: never


def model_folder(source: str) -> Path:
    """Return the local folder of a model, downloaded (weights as safetensors only) if `source` is a Hub id.

    Raises:
        OSError, ValueError: if it cannot be had.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import errors, snapshot_download

    repo_id, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=["*.json", "*.safetensors"]))
    except errors.LocalEntryNotFoundError as error:
        raise OSError("the Hub cannot be reached, and there is no copy in the cache") from error
    except errors.RevisionNotFoundError as error:
        raise OSError(f"the Hub has no revision {revision!r} of it") from error
    except errors.RepositoryNotFoundError as error:
        raise OSError("the Hub has no such model, or it is private and HF_TOKEN may not read it") from error
    except errors.HFValidationError as error:
        raise ValueError("it is neither a folder nor a Hub id") from error


def torchvision_module(folder: Path, config: dict):
    """Return the network of a checkpoint that finetune.py wrote.

    Raises:
        ValueError: if the weights are not exactly those of the named architecture, or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torchvision import models

    architecture = config["architecture"]
    if architecture not in models.list_models(models):
        raise ValueError(f"its architecture {architecture!r} is not one of torchvision's")
    module = models.get_model(architecture, weights=None, num_classes=len(config["id2label"]))
    try:
        module.load_state_dict(load_file(folder / "model.safetensors"))
    except SafetensorError as error:
        raise ValueError("its model.safetensors is damaged") from error
    except RuntimeError as error:
        raise ValueError(f"its model.safetensors does not hold the tensors of a {architecture}") from error
    return finite(module)


def transformers_module(folder: Path):
    """Return the image classifier as a module from pixel values to logits.

    Raises:
        OSError, ValueError: if the weights are not exactly those that its config.json asks for, or not finite.
    """
    import torch
    from transformers import AutoModelForImageClassification

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, found = AutoModelForImageClassification.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            for problem in ("missing_keys", "unexpected_keys"):  # transformers would fill a missing head at random
                if found[problem]:
                    verb = "lack" if problem == "missing_keys" else "hold, though the model has none,"
                    raise ValueError(f"its weights {verb} {min(found[problem])}")

        def forward(self, pixel_values):
            return self.model(pixel_values=pixel_values).logits

    return finite(Logits())


def finite(module):
    """Return the module.

    Raises:
        ValueError: if one of its weights is not a finite number.
    """
    if not all(tensor.isfinite().all() for tensor in module.state_dict().values()):
        raise ValueError("its weights are not finite numbers")
    return module.eval()


def conversion_folder(folder: Path, shape: tuple[int, ...]) -> Path:
    """Return where the conversion of exactly these weights, by the installed versions, is kept."""
    from huggingface_hub.constants import HF_ASSETS_CACHE

    versions = [f"{package} {version(package)}" for package in ("openvino", "torch", "torchvision", "transformers")]
    digest = hashlib.sha256(repr((versions, shape)).encode())
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return Path(HF_ASSETS_CACHE, "cat-dog-neither", digest.hexdigest()[:32])


def converted(module, example: np.ndarray, kept: Path):
    """Return the OpenVINO model of a torch module, and keep it in the folder `kept` for the next start if that can be."""
    import openvino
    import torch

    with warnings.catch_warnings(action="ignore"):  # torch's, about the tracing that openvino does
        model = openvino.convert_model(module, example_input=torch.from_numpy(example), input=[-1, *example.shape[1:]])
    with contextlib.suppress(OSError, RuntimeError):  # of a disk that is full or may not be written
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            openvino.save_model(model, Path(scratch, "new", "model.xml"), compress_to_fp16=False)
            shutil.rmtree(kept, ignore_errors=True)  # damaged, or it would have been read
            Path(scratch, "new").rename(kept)
        for old in sorted(kept.parent.iterdir(), key=os.path.getmtime)[:-CONVERTED]:
            shutil.rmtree(old)
    return model


def compiled(module: Callable, example: np.ndarray, kept: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from pixel values to logits: in half precision on CUDA, else through OpenVINO on the CPU.

    Args:
        module: returns the torch module; not called if its conversion is in the folder `kept`.
        example: pixel values (1, 3, height, width); the function takes any number of this size.
    """
    import torch

    if torch.cuda.is_available():
        module = module().half()

        @torch.inference_mode()
        def on_cuda(pixel_values):
            network = module.cuda()  # not before: on ZeroGPU there is a GPU only while `logits` runs
            return network(torch.from_numpy(pixel_values).half().cuda()).float().cpu().numpy()

        return on_cuda

    # Without this, converting a model reports the use to its vendor; openvino then takes its own stub.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino
    from joblib import cpu_count

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cpu_count()}  # as a container allows
    try:
        network = openvino.compile_model(kept / "model.xml", "CPU", options)
    except RuntimeError:  # there is none, or it is damaged
        network = openvino.compile_model(converted(module(), example, kept), "CPU", options)

    def on_cpu(pixel_values):
        return network.create_infer_request().infer(pixel_values)[0]  # a request of its own, so that threads may call

    return on_cpu


BUILDING = threading.Lock()  # neither transformers' lazy imports nor torch's tracing stand two threads at once


def load_classifier(source: str) -> Classifier:
    """Return the model of a Hub id, `id@revision` or folder.

    Raises:
        OSError, ValueError: with the reason, if it cannot be had.
    """
    folder = model_folder(source)  # not under the lock: one model's download must not hold up the other
    # huggingface_hub names the folder of a download by its revision.
    name = folder.name if Path(source).is_dir() else f"{source.partition('@')[0]}, revision {folder.name[:7]}"
    with BUILDING:
        return build_classifier(folder, name)


def build_classifier(folder: Path, name: str) -> Classifier:
    """Return the model of a folder, ready to answer.

    Raises:
        OSError, ValueError: with the reason, if the folder does not hold one.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, AutoImageProcessor

    if not (folder / "config.json").is_file():
        raise OSError("there is no config.json, so it is no model of finetune.py or transformers")
    if not any(folder.glob("*.safetensors")):
        raise OSError("it has no safetensors file; pickled weights, such as .bin and .pt files, are not loaded")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "architecture" in config and "model_type" not in config:
        module = partial(torchvision_module, folder, config)
        id2label = {int(index): label for index, label in config["id2label"].items()}
    elif config.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"transformers has no model type {config.get('model_type')!r}, and code that comes with a model is not run"
        )
    else:
        module = partial(transformers_module, folder)
        id2label = AutoConfig.from_pretrained(folder, trust_remote_code=False).id2label
    if sorted(id2label) != list(range(len(id2label))):
        raise ValueError("id2label in its config.json does not number the labels from 0 on")
    if len(set(id2label.values())) < len(id2label) != IMAGENET:  # there, two are cranes
        raise ValueError("id2label in its config.json gives two outputs the same label")
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    example = processor(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"].numpy()
    temperature, unsure_below = config.get("temperature", 1.0), config.get("unsure_below", 0.0)
    if not (isinstance(temperature, int | float) and 0 < temperature < float("inf")):
        raise ValueError("the temperature in its config.json is not a number above 0")
    if not (isinstance(unsure_below, int | float) and 0 <= unsure_below <= 1):
        raise ValueError("unsure_below in its config.json is not a number from 0 to 1")
    labels = [id2label[index] for index in range(len(id2label))]
    network = compiled(module, example, conversion_folder(folder, example.shape))
    return Classifier(name, labels, processor, network, temperature, unsure_below)


READY: dict[str, Classifier] = {}
LOADING = {name: threading.Lock() for name in MODELS}


def classifier(name: str) -> Classifier:
    """Return the model of the dropdown, loaded once: whoever asks while it is loading is told, and waits for it.

    A failure is not remembered, so the next call tries again.

    Raises:
        gr.Error: with one sentence, if it cannot be had.
    """
    if name in READY:
        return READY[name]
    try:
        gr.Info(f"The model {name} is being loaded. The answer comes as soon as it is there.")
        with LOADING[name]:
            if name not in READY:
                READY[name] = load_classifier(MODELS[name])
            return READY[name]
    except Exception as error:  # noqa: BLE001 - whatever a stranger's repo does, the page and the other model go on
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        others = " or ".join(other for other in MODELS if other != name)
        raise gr.Error(
            f"The model {name} ({MODELS[name]}) cannot be had: {reason}. Choose {others} instead.",
            print_exception=False,
        ) from error


def logits(model: str, pixel_values: np.ndarray) -> np.ndarray:
    """Return the logits, calibrated, of a model that is ready: the one function that needs a GPU, if there is one.

    It takes the model's name, as ZeroGPU hands the arguments to another process.
    """
    return READY[model].logits(pixel_values) / READY[model].temperature


if spaces:
    logits = spaces.GPU(logits)  # has no effect but on ZeroGPU


def pet_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Return cat, dog and neither, shape (N, 3), from probabilities of the 1000 ImageNet classes, shape (N, 1000)."""
    cats, dogs = probabilities[:, CATS].sum(1), probabilities[:, DOGS].sum(1)
    return np.stack([cats, dogs, np.clip(1 - cats - dogs, 0, 1)], axis=1)


def answers(photos: list[Image.Image], model: str) -> list[tuple[dict[str, float], str]]:
    """Return for each photo the probability of every label, which sum to 1, and the most likely of ImageNet's 1000 classes.

    The latter is "" for a model that has other classes.

    Raises:
        gr.Error: if the model cannot be had.
    """
    ready = classifier(model)
    scores = logits(model, ready.processor(photos, return_tensors="pt")["pixel_values"].numpy())
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    labels, details = ready.labels, [""] * len(photos)
    if len(labels) == IMAGENET:
        details = [labels[index].partition(",")[0] for index in probabilities.argmax(axis=1)]
        labels, probabilities = PET_LABELS, pet_probabilities(probabilities)
    elif ready.unsure_below and "Neither" not in labels:
        unsure = 0.5 * (probabilities.max(axis=1, keepdims=True) < ready.unsure_below)  # more than any label keeps
        labels, probabilities = [*labels, UNSURE], np.hstack([probabilities * (1 - unsure), unsure])
    return [
        (dict(zip(labels, map(float, row), strict=True)), detail)
        for row, detail in zip(probabilities, details, strict=True)
    ]


@gr.cache(max_size=REMEMBERED)
def answer(photo: Image.Image, model: str) -> tuple[dict[str, float], str]:
    """Return `answers` of one photo, from memory if it was asked before."""
    return answers([photo], model)[0]


def predict(image: Image.Image | None, model: str) -> dict[str, float]:
    """Say whether a photo shows a cat, a dog or neither, with the probability of each."""
    if image is None:
        raise gr.Error("Send a photo.", print_exception=False)
    return answer(image, model)[0]


def predict_batch(files: list[str] | None, model: str, progress=gr.Progress()) -> list[list]:
    """Classify many photos: one row of file, label, confidence and note each. A file that is no photo says so in its note."""
    if not files:
        raise gr.Error("Choose some photos.", print_exception=False)
    if len(files) > MAX_FILES:
        raise gr.Error(f"These are {len(files)} files; at most {MAX_FILES} go at a time.", print_exception=False)
    batches = [files[start : start + BATCH_SIZE] for start in range(0, len(files), BATCH_SIZE)]
    rows = []
    with ThreadPoolExecutor(2) as pool:
        opening = pool.map(photo_or_reason, batches[0])
        for some, following in progress.tqdm(list(zip(batches, [*batches[1:], []], strict=True)), unit="batches"):
            opened = list(opening)
            opening = pool.map(photo_or_reason, following)  # they are decoded while these are looked at
            photos = [photo for photo in opened if not isinstance(photo, str)]
            found = iter(answers(photos, model) if photos else [])
            for file, photo in zip(some, opened, strict=True):
                probabilities, note = ({"": None}, photo) if isinstance(photo, str) else next(found)
                label = max(probabilities, key=probabilities.get)
                rows.append([Path(file).name, label, probabilities[label], note])
    return rows


def photo_or_reason(file: str) -> Image.Image | str:
    """Return the photo, or in words why it cannot be read."""
    try:
        return open_upload(file)
    except gr.Error as error:
        return error.message


def page_answer(photo: Image.Image | None, model: str) -> tuple[dict[str, float] | None, str]:
    """Return `answer` for the page, where an empty photo box is no mistake."""
    if photo is None:
        return None, ""
    probabilities, detail = answer(photo, model)
    return probabilities, detail and f"Of ImageNet's 1000 classes it looks most like: {detail}."


def models_in_use() -> str:
    """Return in words which model and revision each choice of the dropdown is."""
    return "\n".join(
        f"- `{name}` is {READY[name].name if name in READY else f'{Path(source).name}, which is not loaded yet'}."
        for name, source in MODELS.items()
    )


with gr.Blocks(title="Cat, dog or neither?", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as demo:
    gr.Markdown(INTRODUCTION)
    model = gr.Dropdown(list(MODELS), value="mobilenet", label="Model")
    with gr.Tab("One photo"):
        with gr.Row():
            photo = gr.Image(label="Photo", sources=["upload", "webcam", "clipboard"], height=360)
            with gr.Column():
                label = gr.Label(label="Answer")
                detail = gr.Markdown()
        gr.Examples(
            [str(file) for file in sorted(EXAMPLES.glob("*.jpg"))], photo, label="Photos to try", cache_examples=False
        )
        api_only = gr.Button(visible=False)
    with gr.Tab("Many photos"):
        files = gr.File(label=f"Photos, {MAX_FILES} at most", file_count="multiple", height=200)
        classify = gr.Button("Classify", variant="primary")
        table = gr.Dataframe(
            headers=["file", "label", "confidence", "note"],
            datatype=["str", "str", "number", "str"],
            label="Answers",
            interactive=False,
        )
    models = gr.Markdown()
    gr.Markdown(NOTES)

    demo.load(models_in_use, None, models, api_visibility="private")
    answered = gr.on(
        [photo.change, model.change], page_answer, [photo, model], [label, detail], api_visibility="private"
    )
    answered.success(models_in_use, None, models, api_visibility="private")
    api_only.click(predict, [photo, model], label, api_name="predict")
    classify.click(predict_batch, [files, model], table, api_name="predict_batch")


def load_all() -> None:
    """Load every model, one after the other, so that the first visitor need not wait for it."""
    import torch

    # It only scales photos beside OpenVINO, whose threads a second one would wait for. This counts for the whole process,
    # so it is not for who imports this file.
    torch.set_num_threads(1)
    for name in MODELS:
        try:
            classifier(name)
            print(f"Model {name} is ready: {MODELS[name]}", flush=True)
        except gr.Error as error:
            print(error.message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    demo.queue(max_size=100).launch(
        max_file_size="20mb",
        footer_links=["api", "gradio"],
        run_history=False,
        prevent_thread_lock=True,
    )
    threading.Thread(target=load_all, daemon=True).start()  # after the page is up
    demo.block_thread()
