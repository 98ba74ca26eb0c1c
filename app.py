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
import csv
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import gradio as gr
import numpy as np
from gradio.context import LocalContext
from gradio.utils import get_upload_folder
from PIL import Image, ImageOps
from pillow_heif import register_heif_opener
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

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
# Pillow's other formats are rarely looked after; JPEG includes MPO. HEIF is what iPhones write as .heic.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
register_heif_opener()
MAX_PIXELS = 89_000_000  # above it a small file can fill the memory; Pillow's own warning starts just above
ENOUGH = 448  # pixels of a photo's shorter side, twice what the models look at; larger ones are reduced first
MAX_FILES = 500
BATCH_SIZE = 16
REMEMBERED = 1000  # answers, so that the same photo need not be looked at again
CONVERTED = 4  # models that stay on disk as OpenVINO wants them, so that the next start is shorter
THUMBNAIL = 160  # pixels
CELLS = 6  # of a heatmap, in each direction
HOUR = 3600
MAX_WAITING = 32  # calls in the queue; a ViT of 0.25 s a photo answers as many in 8 s
MAX_BODY = 28_000_000  # bytes of a call that is no upload: a photo of 20 MB as a data URL
FREE_BYTES = 200_000_000  # of the disk, which uploads leave free
LAST_SECONDS = 6  # that running predictions get when the server is to stop
BUSY = "The app is busy. Try again in a few seconds."

# The photos of examples/ and what each shows.
SHOWN = {
    "cat-chelsea.jpg": "A cat, close up",
    "cat-profile.jpg": "A cat from the side",
    "dog-grey.jpg": "A grey dog",
    "dog-porch.jpg": "A dog, a bicycle and a car",
    "dog-red.jpg": "A red dog",
    "neither-coffee.jpg": "Neither: a cup of coffee",
}
INTRODUCTION = "# Cat, dog or neither?\nDrop a photo of a cat, a dog, or something else. The answer comes at once."
EMPTY = "No photo yet"
HEADERS = ["file", "label", "confidence", "note"]
SOURCES = ["upload", "webcam", "clipboard"]
ABOUT = """## The models

{models}

A model that knows the 1000 classes of ImageNet, as the ViT does, answers with the sums of its 5 cats, its 118 dogs and
all the rest.

## What they cannot do

Do not rely on either for drawings, wolves and foxes, or several animals in one photo. The small MobileNet has seen few
things that are neither: it still takes one in six of them for a cat or a dog.

## Your photos

They are deleted from the server after two hours at most. Answers to the last {remembered}
photos are remembered until the page is restarted, with a fingerprint of the photo, not the photo.

## Train your own

A table of labels and a folder of photos are enough: `prep.py` makes a dataset of them, `finetune.py` a model with a card
of its own, and the variable `MOBILENET_MODEL` puts it on this page. {readme} tells how, and has the lines for Python,
JavaScript and curl that ask this page from a program.
"""


# Nothing is loaded from elsewhere for it; the labels are dark enough to be read by everybody.
THEME = gr.themes.Soft(
    primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono="monospace"
).set(
    block_label_text_color="*primary_800",
    block_title_text_color="*primary_800",
    block_label_background_fill_dark="*primary_800",
    block_title_background_fill_dark="*primary_800",
    block_label_text_color_dark="white",
    block_title_text_color_dark="white",
    link_text_color="*primary_800",
    link_text_color_visited="*primary_800",
    link_text_color_dark="*primary_200",
    link_text_color_visited_dark="*primary_200",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
)
# Room for the answer before it is there, all tabs and thumbnails on a phone, and a footer that can be read.
CSS = """
.thumbnails .grid-container { grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)) !important; }
.answer { min-height: 220px; }
@media (max-width: 480px) { .tab-container button { padding: 0 0.3rem; font-size: 0.9rem; } }
footer *, footer, .or, .download-link, [role=tab].selected { color: var(--body-text-color) !important; }
.icon-button:has(input), .cache-indicator { display: none; }
"""
# The table's filter has no name of its own, which screen readers need.
JS = """() => new MutationObserver(() =>
    document.querySelectorAll(".search-input").forEach(input => input.ariaLabel = "Filter the answers")
).observe(document.body, {childList: true, subtree: true})"""


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
            "This file cannot be read as a photo. Send a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC file that opens elsewhere.",
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


def error_in_words(error: BaseException | None, show_error: bool) -> dict:
    """Return what a client is told of an error: the words of a `gr.Error`, and of others no details of this server."""
    if not isinstance(error, gr.Error):
        error = gr.Error("This call cannot be answered. Upload the files, and send what /gradio_api/info asks for.")
    return {"error": error.message, "duration": error.duration, "visible": error.visible, "title": error.title}


async def no_download(url: str, cache_dir: str) -> str:
    """Refuse to fetch a photo from another server: its size is not known, and our address is not for others to use."""
    raise gr.Error("Send the photo itself, not its address.", print_exception=False)


def delete_files(blocks: gr.Blocks, age: float | None) -> None:
    """Delete the files of clients that are older than `age` seconds, all if it is None, and their folders."""
    keep = {file for block in blocks.blocks.values() for file in getattr(block, "keep_in_cache", ())}
    for files in blocks.temp_file_sets:
        for file in map(Path, list(files)):
            with contextlib.suppress(FileNotFoundError):
                if str(file) in keep or (age is not None and time.time() - file.lstat().st_ctime <= age):
                    continue
                file.unlink()
            files.discard(str(file))
            with contextlib.suppress(OSError):
                file.parent.rmdir()


def upload_file(**options):
    """Return the temporary file of an upload, which is known from now on: many an upload is cut off."""
    file = tempfile.NamedTemporaryFile(**options)  # noqa: SIM115 - gradio closes it
    demo.upload_file_set.add(file.name)
    return file


# gradio's own stops for good when a file arrives while it goes through the set of them, and forgets uploads that are cut.
gr.route_utils.delete_files_created_by_app = delete_files
gr.route_utils.NamedTemporaryFile = upload_file
# gradio would write an empty file for each file that a call names, and never delete it.
gr.File._process_single_file = gr.UploadButton._process_single_file = lambda self, file: file.path
# gradio would answer null where an error is not a gr.Error, and download any address of the internet.
gr.queueing.error_payload = error_in_words
gr.processing_utils.async_ssrf_protected_download = no_download


@dataclass(frozen=True)
class Classifier:
    """A model that is ready to answer."""

    name: str  # for people: the Hub id and revision, or the folder
    labels: list[str]
    processor: Callable  # a transformers image processor
    logits: Callable[[np.ndarray], np.ndarray]  # pixel values (N, 3, height, width) to logits (N, len(labels))
    temperature: float  # by which the logits are divided, so that the percentages mean something
    unsure_below: float  # confidence below which the answer is UNSURE; 0: never
    measured: str  # what its card says of its test, in words; "" if nothing


def model_folder(source: str) -> Path:
    """Return the local folder of a model, downloaded (weights as safetensors only) if `source` is a Hub id.

    Raises:
        OSError, ValueError: if it cannot be had.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import errors, snapshot_download
    from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential_jitter

    def passing(error: BaseException) -> bool:  # a fault of the Hub's, which snapshot_download hides behind its own
        response = getattr(error.__cause__ or error, "response", None)
        return response is not None and (response.status_code == 429 or response.status_code >= 500)

    repo_id, _, revision = source.partition("@")
    wanted = ["*.json", "*.safetensors", "README.md"]
    patiently = retry(
        retry=retry_if_exception(passing), stop=stop_after_attempt(4), wait=wait_exponential_jitter(max=8), reraise=True
    )
    try:
        return Path(patiently(snapshot_download)(repo_id, revision=revision or None, allow_patterns=wanted))
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
    from safetensors.torch import load_file
    from torchvision import models

    architecture = config["architecture"]
    if architecture not in models.list_models(models):
        raise ValueError(f"its architecture {architecture!r} is not one of torchvision's")
    module = models.get_model(architecture, weights=None, num_classes=len(config["id2label"]))
    try:
        module.load_state_dict(load_file(folder / "model.safetensors"))
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
            if found["missing_keys"]:  # transformers would fill a missing head at random
                raise ValueError(f"its weights lack {min(found['missing_keys'])}")
            if found["unexpected_keys"]:
                raise ValueError(f"its weights hold {min(found['unexpected_keys'])}, which the model does not have")

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


def compiled(module: Callable, example: np.ndarray, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from pixel values to logits: in half precision on CUDA, else through OpenVINO on the CPU.

    Args:
        module: returns the torch module; not called if its conversion is on disk.
        example: pixel values (1, 3, height, width); the function takes any number of this size.
        folder: where the weights are.
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
    kept = conversion_folder(folder, example.shape)
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
    from safetensors import SafetensorError, safe_open
    from transformers import CONFIG_MAPPING, AutoConfig, AutoImageProcessor

    if not (folder / "config.json").is_file():
        raise OSError("there is no config.json, so it is no model of finetune.py or transformers")
    if not any(folder.glob("*.safetensors")):
        raise OSError("it has no safetensors file; pickled weights, such as .bin and .pt files, are not loaded")
    for file in folder.glob("*.safetensors"):
        try:
            safe_open(file, "pt")
        except SafetensorError as error:
            raise ValueError(f"its {file.name} is damaged") from error
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
    network = compiled(module, example, folder)
    return Classifier(name, labels, processor, network, temperature, unsure_below, measured(folder))


def measured(folder: Path) -> str:
    """Return the accuracy that the model's card claims, in words; "" if it has none."""
    from huggingface_hub import ModelCard

    if not (folder / "README.md").is_file():
        return ""
    try:
        results = ModelCard.load(folder / "README.md").data.eval_results or []
        found = next(result for result in results if result.metric_type == "accuracy")
        return f"By its card it answers {float(found.metric_value):.1%} of the photos right that it was tested with."
    except Exception:  # noqa: BLE001 - strangers write their cards as they like
        return ""


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
        words = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__  # such as "Disk full"
        reason = words.splitlines()[0].rstrip(".")
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
def answer(photo: Image.Image | None, model: str) -> tuple[dict[str, float], str]:
    """Return `answers` of one photo, from memory if it was asked before.

    Raises:
        gr.Error: if there is no photo, or the model cannot be had.
    """
    if photo is None:
        raise gr.Error("Send a photo.", print_exception=False)
    return answers([photo], model)[0]


def predict(image: Image.Image | None, model: str) -> dict[str, float]:
    """Say whether a photo shows a cat, a dog or neither, with the probability of each.

    Args:
        image: the photo.
        model: mobilenet, which is small and quick, or vit, which knows the 1000 classes of ImageNet.
    """
    return answer(image, model)[0]


def predict_batch(files: list[str] | None, model: str, progress=gr.Progress()) -> list[list]:
    """Classify many photos: one row of file, label, confidence and note each. A file that is no photo says so in its note.

    Args:
        files: the photos.
        model: mobilenet, which is small and quick, or vit, which knows the 1000 classes of ImageNet.
    """
    return [row for row, _ in classified(files, model, progress)]


def classified(files: list[str] | None, model: str, progress) -> Iterator[tuple[list, Image.Image | None]]:
    """Yield each file's row of file, label, confidence and note, and its photo if it is one.

    Raises:
        gr.Error: if there are no files, or too many, or the model cannot be had.
    """
    if not files:
        raise gr.Error("Choose some photos.", print_exception=False)
    if len(files) > MAX_FILES:
        raise gr.Error(f"These are {len(files)} files; at most {MAX_FILES} go at a time.", print_exception=False)
    batches = [files[start : start + BATCH_SIZE] for start in range(0, len(files), BATCH_SIZE)]
    with ThreadPoolExecutor(2) as pool:
        opening = pool.map(photo_or_reason, batches[0])
        for some, following in progress.tqdm(list(zip(batches, [*batches[1:], []], strict=True)), unit="batches"):
            if nobody_waits():
                raise gr.Error("Whoever sent the photos has gone.", print_exception=False)
            opened = list(opening)
            opening = pool.map(photo_or_reason, following)  # they are decoded while these are looked at
            photos = [photo for photo in opened if not isinstance(photo, str)]
            found = iter(answers(photos, model) if photos else [])
            for file, photo in zip(some, opened, strict=True):
                if isinstance(photo, str):
                    yield [Path(file).name, "", None, photo], None
                else:
                    probabilities, note = next(found)
                    label = max(probabilities, key=probabilities.get)
                    yield [Path(file).name, label, round(probabilities[label], 4), note], photo


def nobody_waits() -> bool:
    """Return whether the client of the call that is running has closed its connection."""
    running = [event for events in demo._queue.active_jobs for event in events or []]
    return any(event._id == LocalContext.event_id.get(None) and not event.alive for event in running)


def photo_or_reason(file: str) -> Image.Image | str:
    """Return the photo, or in words why it cannot be read."""
    try:
        return open_upload(file)
    except gr.Error as error:
        return error.message


def compare(image: Image.Image | None) -> tuple[dict[str, float], dict[str, float], str]:
    """Ask both models about a photo: the probabilities by the MobileNet, by the ViT, and in words whether they agree.

    Args:
        image: the photo.
    """
    found = [answer(image, model)[0] for model in MODELS]
    said = [max(probabilities, key=probabilities.get) for probabilities in found]
    if len(set(said)) == 1:
        return *found, f"Both models say {said[0]}."
    words = [f"{model} says {label} ({one[label]:.0%})" for model, label, one in zip(MODELS, said, found, strict=True)]
    return *found, f"They disagree: {' and '.join(words)}."


def heat(photo: Image.Image | None, model: str, progress=gr.Progress()) -> tuple[str, np.ndarray]:
    """Return the most likely label, and how much each part of the photo matters for it, shape (CELLS, CELLS).

    A window of two by two cells is covered with the photo's mean colour, at each place in turn; a cell's number is the
    mean fall of the label's log-probability over the windows that cover it (Zeiler and Fergus 2014, Visualizing and
    Understanding Convolutional Networks). It needs nothing but the model's answers, so it is the same for every model.
    """
    probabilities, _ = answer(photo, model)
    label = max(probabilities, key=probabilities.get)
    colour = photo.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    rows, columns = (np.linspace(0, side, CELLS + 1).round().astype(int) for side in (photo.height, photo.width))
    falls, windows = np.zeros((CELLS, CELLS)), np.zeros((CELLS, CELLS))
    for row in progress.tqdm(range(CELLS - 1), desc="Covering parts of the photo"):
        covered = [photo.copy() for _ in range(CELLS - 1)]
        for column, copy in enumerate(covered):
            copy.paste(colour, (columns[column], rows[row], columns[column + 2], rows[row + 2]))
        for column, (found, _) in enumerate(answers(covered, model)):
            part = slice(row, row + 2), slice(column, column + 2)
            falls[part] += np.log(probabilities[label]) - np.log(max(found[label], 1e-12))
            windows[part] += 1
    return label, falls / windows


def explain(image: Image.Image | None, model: str, progress=gr.Progress()) -> tuple[tuple, str]:
    """Show which parts of a photo an answer rests on: the photo, the same with a heatmap over it, and a legend.

    Args:
        image: the photo.
        model: mobilenet, which is small and quick, or vit, which knows the 1000 classes of ImageNet.
    """
    from matplotlib import colormaps

    label, falls = heat(image, model, progress)
    if falls.max() <= 0:
        return (image, image), f"No part of the photo matters for {label}: whatever is covered, it stays."
    share = Image.fromarray((255 * np.clip(falls / falls.max(), 0, 1)).astype(np.uint8))
    share = np.asarray(share.resize(image.size, Image.Resampling.BICUBIC))
    coloured = Image.fromarray(colormaps["inferno"](share, bytes=True)[..., :3])
    return (image, Image.blend(image, coloured, 0.6)), f"The brighter a part, the more {label} depends on it."


def models() -> list[dict[str, str | bool | list[str]]]:
    """List the choices for `model`: what each stands for, whether it is loaded, and then its labels and its test accuracy."""
    found = []
    for name, source in MODELS.items():
        ready = READY.get(name)
        labels = ready.labels if ready else []
        found.append(
            {
                "name": name,
                "model": ready.name if ready else Path(source).name,
                "loaded": bool(ready),
                "labels": PET_LABELS if len(labels) == IMAGENET else labels,
                "measured": ready.measured if ready else "",
            }
        )
    return found


def page_answer(photo: Image.Image | None, model: str) -> tuple[dict[str, float] | str, str]:
    """Return `answer` for the page, where an empty photo box is no mistake, and who gave it, in which time."""
    if photo is None:
        return EMPTY, ""
    classifier(model)  # so that the time is not that of loading it
    start = time.perf_counter()
    probabilities, seen = answer(photo, model)
    words = f"{READY[model].name}, {1000 * (time.perf_counter() - start):.0f} ms."
    return probabilities, words + f" Of ImageNet's 1000 classes it looks most like: {seen}." * bool(seen)


def page_compare(photo: Image.Image | None) -> tuple[dict[str, float] | str, dict[str, float] | str, str]:
    """Return `compare` for the page, where an empty photo box is no mistake."""
    return (EMPTY, EMPTY, "") if photo is None else compare(photo)


def page_explain(photo: Image.Image | None, model: str, progress=gr.Progress()) -> tuple:
    """Return `explain` for the page, where the box for it shows up with the first one."""
    images, words = explain(photo, model, progress)
    return gr.ImageSlider(images, visible=True), words


def page_batch(files: list[str] | None, model: str, progress=gr.Progress()) -> tuple:
    """Return the rows of `predict_batch`, thumbnails in the order of the answers, and the rows as a CSV file."""
    rows, small = [], []
    for row, photo in classified(files, model, progress):
        rows.append(row)
        if photo is not None:
            name, label, confidence, _ = row
            photo.thumbnail((THUMBNAIL, THUMBNAIL))
            small.append((photo, f"{label} {confidence:.0%}: {name}"))
    table = Path(tempfile.mkdtemp(dir=get_upload_folder()), "answers.csv")
    with table.open("w", encoding="utf-8", newline="") as opened:
        # A spreadsheet would run a name such as =1+1.jpg as a formula.
        plain = [[f"'{name}" if name.startswith(("=", "+", "-", "@")) else name, *others] for name, *others in rows]
        csv.writer(opened).writerows([HEADERS, *plain])
    gallery = gr.Gallery(sorted(small, key=lambda one: one[1]), visible=bool(small))
    return gr.Dataframe(rows, visible=True), gallery, gr.DownloadButton(value=str(table), interactive=True)


def about() -> str:
    """Return the text of the page's last tab."""
    lines = []
    for one in models():
        repo_id = MODELS[one["name"]].partition("@")[0]
        name = one["model"] if Path(repo_id).is_dir() else f"[{one['model']}](https://huggingface.co/{repo_id})"
        lines.append(
            f"- `{one['name']}` is {name}{'' if one['loaded'] else ', which is not loaded yet'}. {one['measured']}"
        )
    space = os.environ.get("SPACE_ID")
    readme = f"[The README](https://huggingface.co/spaces/{space}/blob/main/README.md)" if space else "The README"
    return ABOUT.format(models="\n".join(lines), readme=readme, remembered=REMEMBERED)


with gr.Blocks(title="Cat, dog or neither?", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as demo:
    gr.Markdown(INTRODUCTION)
    model = gr.Dropdown(list(MODELS), value="mobilenet", label="Model")
    with gr.Tab("Classify"):
        with gr.Row():
            photo = gr.Image(label="Photo", sources=SOURCES, height=360)
            with gr.Column():
                label = gr.Label(EMPTY, label="Answer", elem_classes="answer")
                detail = gr.Markdown(min_height=48)
                why = gr.Button("Why?")
        heatmap = gr.ImageSlider(
            label="What the answer rests on",
            type="pil",
            slider_position=10,
            elem_classes="heatmap",
            buttons=["download"],
            visible=False,
            max_height=420,
        )
        legend = gr.Markdown(label="Legend")
        shows = gr.Textbox(label="What it shows", visible=False)
        gr.Examples(
            [[str(EXAMPLES / name), words] for name, words in SHOWN.items()],
            [photo, shows],
            label="Photos to try",
            cache_examples=False,
        )
    with gr.Tab("Compare"):
        both = gr.Image(label="Photo for both models", sources=SOURCES, height=360)
        agreement = gr.Markdown(label="In words")
        with gr.Row():
            opinions = [gr.Label(EMPTY, label=name, elem_classes="answer") for name in MODELS]
    with gr.Tab("Many photos"):
        files = gr.File(label=f"Photos, {MAX_FILES} at most", file_count="multiple", height=200)
        with gr.Row():
            folder = gr.UploadButton("Choose a folder", file_count="directory")
            classify = gr.Button("Classify", variant="primary")
            download = gr.DownloadButton("Download the answers as CSV", interactive=False)
        table = gr.Dataframe(
            headers=HEADERS,
            datatype=["str", "str", "number", "str"],
            label="Answers",
            interactive=False,
            show_search="filter",
            buttons=["fullscreen"],
            visible=False,
            wrap=True,
            column_widths=["180px", "90px", "110px", "280px"],
        )
        thumbnails = gr.Gallery(
            label="By answer",
            height="auto",
            object_fit="contain",
            interactive=False,
            elem_classes="thumbnails",
            visible=False,
        )
    with gr.Tab("About") as about_tab:
        text = gr.Markdown()

    page = {"api_visibility": "private"}
    at_once = {**page, "queue": False}  # what costs nothing takes no place from those who wait for an answer
    gr.on([demo.load, about_tab.select], about, None, text, show_progress="hidden", **at_once)
    new = [photo.change, model.change]
    gr.on(new, page_answer, [photo, model], [label, detail], **page)
    gr.on(new, lambda: (gr.ImageSlider(None, visible=False), ""), None, [heatmap, legend], **at_once)
    why.click(page_explain, [photo, model], [heatmap, legend], **page)
    both.change(page_compare, both, [*opinions, agreement], **page)
    folder.upload(lambda chosen: chosen, folder, files, **at_once)
    classify.click(page_batch, [files, model], [table, thumbnails, download], show_progress_on=files, **page)

    api = gr.Button(visible=False)  # the endpoints for programs; their texts are the functions' docstrings
    api.click(predict, [photo, model], label, api_name="predict")
    api.click(predict_batch, [files, model], table, api_name="predict_batch")
    api.click(compare, photo, [*opinions, agreement], api_name="compare")
    api.click(explain, [photo, model], [heatmap, legend], api_name="explain")
    gr.api(models, api_name="models")


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


def guarded(app: Callable) -> Callable:
    """Return the ASGI app with a limit on what a call may send, and with headers for browsers; it fetches no addresses."""

    async def call(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        if "/file=http" in scope["path"]:
            return await JSONResponse({"detail": "Other sites are not fetched."}, 403)(scope, receive, send)
        received = 0

        async def limited():
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if scope["path"].endswith("/upload"):
                if shutil.disk_usage(get_upload_folder()).free < FREE_BYTES:
                    raise HTTPException(507, "The server has no room for more photos. Try again in an hour.")
            elif received > MAX_BODY:
                raise HTTPException(413, f"A call may have {MAX_BODY // 1_000_000} MB. Upload the photo instead.")
            return message

        async def with_headers(message):
            if message["type"] == "http.response.start":
                # A browser must not take a file for a page because it looks like one, nor tell others where it was.
                headers = MutableHeaders(scope=message)
                headers.update({"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"})
            await send(message)

        return await app(scope, limited, with_headers)

    return call


async def busy(request, error) -> JSONResponse:
    """Answer a call that finds the queue full, or the server about to stop."""
    return JSONResponse({"detail": BUSY}, 503, {"Retry-After": "5"})


async def health(request) -> JSONResponse:
    """Answer programs that watch over the server."""
    return JSONResponse({"status": "ok", "loaded": list(READY)})


def launch() -> None:
    """Put the page up, and load the models behind it."""
    # Every call through the queue, which is bounded.
    demo.queue(max_size=MAX_WAITING, api_open=False).launch(
        max_file_size="20mb",
        footer_links=["api", "gradio"],
        run_history=False,
        state_session_capacity=100,  # each call over HTTP is a session, and gradio keeps 10,000 of 0.1 MB
        mcp_server=True,
        enable_monitoring=False,
        theme=THEME,
        css=CSS,
        js=JS,
        prevent_thread_lock=True,
        app_kwargs={
            "middleware": [Middleware(guarded)],
            "exception_handlers": {503: busy},
            "routes": [Route("/healthz", health)],
        },
    )
    threading.Thread(target=load_all, daemon=True).start()  # after the page is up


def serve() -> int:
    """Serve until SIGTERM or Ctrl-C, finish what is being answered, and return the exit code."""
    received: list[int] = []
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: (received.append(signum), stop.set()))
    launch()
    stop.wait()
    demo._queue.max_size = 0  # whoever comes now is told that the app is busy
    end = time.monotonic() + LAST_SECONDS
    # Until each answer is on its way: once the queue is closed, gradio sends an error instead.
    while any(list(demo._queue.pending_event_ids_session.values())) and time.monotonic() < end:
        time.sleep(0.05)
    # Seconds for the last bytes of an answer; pages that stay open would hold their connections for ever.
    demo.server.config.timeout_graceful_shutdown = 3
    demo.close(verbose=False)
    print("app.py: stopped", file=sys.stderr, flush=True)
    return 130 if received[0] == signal.SIGINT else 0


if __name__ == "__main__":
    os._exit(serve())  # not sys.exit, which would wait for a download that may take hours
