"""Cat, dog or neither: a page and an API around two image classifiers.

    python app.py
    MOBILENET_MODEL=checkpoints/mobilenet_v3_small python app.py
    VIT_MODEL=you/your-vit@main GRADIO_SERVER_PORT=8000 python app.py

A model is a Hub id, `id@revision`, or a local folder: what finetune.py wrote, or any image classifier of transformers.
`VIT_MODEL=none` leaves the first model alone. A private one needs HF_TOKEN or `hf auth login`. From another program:

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
from importlib.metadata import version
from pathlib import Path

# Where gradio keeps uploads and results. Of this process alone, as all in it is deleted after two hours at most.
UPLOADS = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir(), f"cat-dog-neither-{os.getpid()}").resolve()
# The second, or gradio makes a table of all calls so far after each call.
os.environ |= {"GRADIO_TEMP_DIR": str(UPLOADS), "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(2**62)}

import gradio as gr  # which reads them when it is imported
import numpy as np
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
if MODELS["vit"] == "none":
    del MODELS["vit"]
PET_LABELS = ["Cat", "Dog", "Neither"]
# The answer of a model that has no "Neither", where it is less sure than it is of photos like its own.
UNSURE = "Not sure"
IMAGENET = 1000  # classes; a model with as many is taken to know them, in the usual order
# The ImageNet-1k indices of the 5 domestic cats (tabby to Egyptian cat) and the 118 dog breeds (Chihuahua to Mexican
# hairless). Names would not do: catamaran and bullfrog are no pets, and 105 breeds do not say "dog".
CATS, DOGS = slice(281, 286), slice(151, 269)
# How often a photo here is taken to show a cat, a dog or neither; by ImageNet's 5, 118 and 877 of 1000 classes half of all
# cats would be "Neither". And the temperature of such a model. Both measured: README, "How good it is".
PET_SHARES, PET_TEMPERATURE = (0.2, 0.2, 0.6), 0.7
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
KEEP_SECONDS = 3600  # how old uploads and results may be when they are looked through, which is as often
MAX_WAITING = 32  # calls in the queue; a ViT of 0.25 s a photo answers as many in 8 s
MAX_BODY = 28_000_000  # bytes of a call that is no upload: a photo of 20 MB as a data URL
FREE_BYTES = 200_000_000  # of the disk, which uploads leave free
LAST_SECONDS = 6  # that running predictions get when the server is to stop
BUSY = "The app is busy. Try again in a few seconds."

# The photos of examples/, which gradio may serve from there, and what each shows.
SHOWN = {
    "cat-chelsea.jpg": "A cat, close up",
    "cat-profile.jpg": "A cat from the side",
    "dog-grey.jpg": "A grey dog",
    "dog-porch.jpg": "A dog, a bicycle and a car",
    "dog-red.jpg": "A red dog",
    "neither-coffee.jpg": "Neither: a cup of coffee",
}
gr.set_static_paths([EXAMPLES / name for name in SHOWN])
INTRODUCTION = "# Cat, dog or neither?\nDrop a photo of a cat, a dog, or something else. The answer comes at once."
EMPTY = "No photo yet"
HEADERS = ["file", "label", "confidence", "note"]
SOURCES = ["upload", "webcam", "clipboard"]
ABOUT = """## The models

{models}

A model that knows the 1000 classes of ImageNet, as the ViT does, answers with its 5 cats, its 118 dogs and all the rest,
each taken together, as if of ten photos two showed a cat, two a dog and six neither. With those shares a network of this
kind (EfficientNet-Lite2) was right about at least 95 % of each; with ImageNet's own it took most cats for "Neither".

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
DARK = [f"{part}_text_color" for part in ("block_label", "block_title", "link")] + ["link_text_color_visited"]
BUTTON = [f"button_primary_background_fill{state}{mode}" for state in ("", "_hover") for mode in ("", "_dark")]
THEME = gr.themes.Soft(
    primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono="monospace"
).set(
    **dict.fromkeys(DARK, "*primary_800"),
    **{f"{name}_dark": "*primary_200" if "link" in name else "white" for name in DARK},
    **{f"block_{part}_background_fill_dark": "*primary_800" for part in ("label", "title")},
    **dict.fromkeys(BUTTON, "*primary_700"),
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


def refusal(message: str) -> gr.Error:
    """Return an error for the caller to read, which is not logged."""
    return gr.Error(message, print_exception=False)


def open_photo(file) -> Image.Image:
    """Return the photo of a path or binary file upright and in RGB, as in finetune.py; a large one reduced.

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
                raise refusal(f"The photo has more than {MAX_PIXELS // 1_000_000} million pixels.")
            image.draft("RGB", (ENOUGH, ENOUGH))  # a JPEG file can be decoded at a half, a quarter or an eighth
            photo = rgb(image)
            return photo.reduce(max(1, min(photo.size) // ENOUGH))
    except gr.Error:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything for a damaged file
        formats = "a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC file"
        raise refusal(f"This file cannot be read as a photo. Send {formats} that opens elsewhere.") from error


def rgb(image: Image.Image) -> Image.Image:
    """Return a PIL photo upright and in RGB, transparent parts white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = image.point(lambda grey: grey / 256)  # of 16 bits, which Pillow would cut off at 255
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def open_upload(upload: dict | None) -> Image.Image:
    """Return the photo of an upload, a data URL or an example, as gradio hands them to an event with `preprocess=False`.

    Raises:
        gr.Error: as `open_photo`, and if there is none, or if it names another file of this server.
    """
    if not upload or not (upload["path"] or upload["url"]):
        raise refusal("Send a photo.")
    if upload["path"]:
        path = Path(upload["path"]).resolve()
        if not path.is_relative_to(UPLOADS) and path not in [EXAMPLES / name for name in SHOWN]:
            raise refusal("Upload the photo first; a path on the server is not taken.")
        return open_photo(path)
    try:
        return open_photo(io.BytesIO(base64.b64decode(upload["url"].partition(";base64,")[2], validate=True)))
    except ValueError as error:
        raise refusal("The photo's data URL is not valid base64.") from error


@dataclass(frozen=True)
class Classifier:
    """A model that is ready to answer."""

    name: str  # for people: the Hub id and revision, or the folder
    revision: str  # by which its answers are remembered
    labels: list[str]
    pixels: Callable[[list[Image.Image]], np.ndarray]  # photos to pixel values (N, 3, height, width)
    logits: Callable[[np.ndarray], np.ndarray]  # pixel values to logits (N, len(labels))
    independent: bool  # whether each label has a probability of its own
    unsure_below: float  # confidence below which the answer is UNSURE; 0: never
    measured: str  # what its card says of its test, in words; "" if nothing


def model_folder(source: str) -> Path:
    """Return the local folder of a model; from the Hub come onnx/model.onnx, or if there is none the safetensors files.

    Raises:
        OSError, ValueError: if it cannot be loaded.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import errors, snapshot_download
    from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential_jitter

    wait = wait_exponential_jitter(max=8)

    def passing(error: BaseException) -> bool:  # a fault of the Hub's, which snapshot_download hides behind its own
        response = getattr(error.__cause__ or error, "response", None)
        return response is not None and (response.status_code == 429 or response.status_code >= 500)

    @retry(retry=retry_if_exception(passing), stop=stop_after_attempt(4), wait=wait, reraise=True)
    def download(revision: str | None, weights: str) -> Path:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=["*.json", "README.md", weights]))

    repo_id, _, revision = source.partition("@")
    reasons = {
        errors.LocalEntryNotFoundError: "the Hub cannot be reached, and there is no copy in the cache",
        errors.RevisionNotFoundError: f"the Hub has no revision {revision!r} of it",
        errors.RepositoryNotFoundError: "the Hub has no such model, or it is private and HF_TOKEN may not read it",
        errors.HFValidationError: "it is neither a folder nor a Hub id",
    }
    try:
        folder = download(revision or None, "onnx/model.onnx")
        if has_cuda() or not (folder / "onnx" / "model.onnx").is_file():
            folder = download(folder.name, "*.safetensors")
        return folder
    except tuple(reasons) as error:
        raise OSError(next(words for kind, words in reasons.items() if isinstance(error, kind))) from error


def has_cuda() -> bool:
    """Return whether there is a GPU for torch, which is not imported where there cannot be one."""
    if not (spaces or Path("/dev/nvidiactl").exists() or sys.platform == "win32"):
        return False
    import torch

    return torch.cuda.is_available()


def read_labels(folder: Path, config: dict) -> list[str]:
    """Return the labels of a model in the order of its outputs.

    Raises:
        ValueError: if they are not numbered from 0 on, or two are the same.
    """
    if "label_names" in config:  # as timm writes them
        id2label = dict(enumerate(config["label_names"]))
    elif "id2label" in config:
        id2label = {int(index): label for index, label in config["id2label"].items()}
    else:
        from transformers import AutoConfig

        id2label = AutoConfig.from_pretrained(folder, trust_remote_code=False).id2label
    if sorted(id2label) != list(range(len(id2label))):
        raise ValueError("id2label in its config.json does not number the labels from 0 on")
    if len(set(id2label.values())) < len(id2label) != IMAGENET:  # there, two are cranes
        raise ValueError("id2label in its config.json gives two outputs the same label")
    return [id2label[index] for index in range(len(id2label))]


def preprocessing(folder: Path, config: dict) -> Callable[[list[Image.Image]], np.ndarray]:
    """Return the function from photos to pixel values (N, 3, height, width) that a model's folder asks for.

    The usual two, a photo squashed to a size and timm's with a crop, need no transformers; they equal its Pillow backend.
    """
    file = folder / "preprocessor_config.json"
    asked = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if asked.get("image_processor_type", "").startswith("ViT") and "height" in asked["size"]:
        size, crop = (asked["size"]["width"], asked["size"]["height"]), None
        resample, mean, std = asked["resample"], asked["image_mean"], asked["image_std"]
    elif not asked and "pretrained_cfg" in config:
        seen = config["pretrained_cfg"]
        size, mean, std = tuple(seen["input_size"][:0:-1]), seen["mean"], seen["std"]
        resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[seen["interpolation"]]
        crop = None if seen.get("crop_mode") == "squash" else seen.get("crop_pct", 0.875)
    else:
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        return lambda photos: np.stack(processor(photos, return_tensors="np")["pixel_values"])
    factor = (1 / 255 / np.asarray(std)).astype(np.float32).reshape(3, 1, 1)
    shift = (-np.asarray(mean) / np.asarray(std)).astype(np.float32).reshape(3, 1, 1)

    def scale(photo: Image.Image) -> Image.Image:
        if crop is None:
            return photo.resize(size, resample)
        side = int(size[0] / crop)
        share = side / min(photo.size)
        larger = photo.resize([side if edge == min(photo.size) else int(edge * share) for edge in photo.size], resample)
        left, top = (round((edge - wanted) / 2) for edge, wanted in zip(larger.size, size, strict=True))
        return larger.crop((left, top, left + size[0], top + size[1]))

    def pixels(photos: list[Image.Image]) -> np.ndarray:
        return np.stack([np.asarray(scale(photo)).transpose(2, 0, 1) * factor + shift for photo in photos])

    return pixels


def check_onnx(file: Path) -> None:
    """Make sure that an ONNX file is whole in itself.

    Raises:
        ValueError: if it is damaged, takes data from other files, or needs operators of somebody's own.
    """
    import onnx

    try:
        graphs = [onnx.load(file, load_external_data=False).graph]
        graphs[0].node[0]  # an empty file is a model without any
    except Exception as error:  # noqa: BLE001 - of protobuf, for a file that is anything else
        raise ValueError("its onnx/model.onnx is damaged") from error
    for graph in graphs:
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        graphs += [inner for one in attributes for inner in (one.g, *one.graphs) if inner.node]
        tensors = [*graph.initializer, *(tensor for one in attributes for tensor in (one.t, *one.tensors))]
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
            raise ValueError("its onnx/model.onnx takes data from other files")
        if strange := [f"{node.op_type} of {node.domain}" for node in graph.node if node.domain not in ("", "ai.onnx")]:
            raise ValueError(f"its onnx/model.onnx needs the operator {strange[0]}")


def transformers_module(folder: Path):
    """Return the image classifier as a module from pixel values to logits.

    Raises:
        OSError, ValueError: if its weights are not in safetensors files, or not exactly those that its config.json asks for.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForImageClassification

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            how = {"use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32}
            self.model, found = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True, **how)
            if wrong := {*found["missing_keys"], *found["unexpected_keys"]}:  # transformers would fill a head at random
                raise ValueError(f"its weights and its config.json do not agree about {min(wrong)}")

        def forward(self, pixel_values):
            return self.model(pixel_values=pixel_values).logits

    if not any(folder.glob("*.safetensors")):
        raise OSError("it has no safetensors file; pickled weights, such as .bin and .pt files, are not loaded")
    try:
        return Logits().eval()
    except SafetensorError as error:
        raise ValueError("its safetensors file is damaged") from error


def convert(folder: Path, example: np.ndarray, kept: Path):
    """Return a transformers model as OpenVINO's, and keep it in the folder `kept` for the next start if that can be."""
    import openvino
    import torch

    torch.set_num_threads(1)  # once it is converted, torch only stands in the way of OpenVINO's threads
    with warnings.catch_warnings(action="ignore"):  # torch's, about the tracing that openvino does
        model = openvino.convert_model(
            transformers_module(folder), example_input=torch.from_numpy(example), input=[-1, *example.shape[1:]]
        )
    with contextlib.suppress(OSError, RuntimeError):  # of a disk that is full or may not be written
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            openvino.save_model(model, Path(scratch, "new", "model.xml"), compress_to_fp16=False)
            shutil.rmtree(kept, ignore_errors=True)  # damaged, or it would have been read
            Path(scratch, "new").rename(kept)
        for old in sorted(kept.parent.iterdir(), key=os.path.getmtime)[:-CONVERTED]:
            shutil.rmtree(old)
    return model


def compile_model(folder: Path, revision: str, example: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from pixel values to logits: in half precision on CUDA, else through OpenVINO on the CPU.

    Args:
        example: pixel values (1, 3, height, width); the function takes any number of this size.
    """
    if has_cuda():
        import torch

        module = transformers_module(folder).half()

        @torch.inference_mode()
        def on_cuda(pixel_values):
            network = module.cuda()  # not before: on ZeroGPU there is a GPU only while `logits` runs
            return network(torch.from_numpy(pixel_values).half().cuda()).float().cpu().numpy()

        return on_cuda

    # Without this, converting a model reports the use to its vendor; openvino then takes its own stub.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino
    from huggingface_hub.constants import HF_ASSETS_CACHE
    from joblib import cpu_count

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cpu_count()}  # as a container allows
    file = folder / "onnx" / "model.onnx"
    if file.is_file():
        check_onnx(file)
        network = openvino.compile_model(file, "CPU", options)
    else:
        by = [revision, example.shape, *(version(name) for name in ("openvino", "torch", "transformers"))]
        kept = Path(HF_ASSETS_CACHE, "cat-dog-neither", hashlib.sha256(repr(by).encode()).hexdigest()[:32])
        try:
            network = openvino.compile_model(kept / "model.xml", "CPU", options)
        except RuntimeError:  # there is none, or it is damaged
            network = openvino.compile_model(convert(folder, example, kept), "CPU", options)
    # A request of its own for each call, so that threads may call.
    return lambda pixel_values: network.create_infer_request().infer([pixel_values])[0]


BUILDING = threading.Lock()  # neither transformers' lazy imports nor torch's tracing stand two threads at once


def load_classifier(source: str) -> Classifier:
    """Return the model of a Hub id, `id@revision` or folder.

    Raises:
        OSError, ValueError: with the reason, if it cannot be loaded.
    """
    folder = model_folder(source)  # not under the lock: one model's download must not hold up the other
    with BUILDING:
        if not (folder / "config.json").is_file():
            raise OSError("there is no config.json, so it is not a model that transformers knows")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("its config.json holds no settings")
        # huggingface_hub names the folder of a download by its revision.
        name, revision = f"{source.partition('@')[0]}, revision {folder.name[:7]}", folder.name
        if Path(source).is_dir():
            files = sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("onnx/model.onnx")])
            digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
            name, revision = folder.name, " ".join(digests)
        labels, pixels = read_labels(folder, config), preprocessing(folder, config)
        example = pixels([Image.new("RGB", (64, 64))])
        logits = compile_model(folder, revision, example)
        if not has_cuda():  # there, what follows would need the GPU before anybody asks
            found = logits(example)
            if found.shape != (1, len(labels)):
                raise ValueError(f"it has {found.shape[-1]} outputs, and its config.json names {len(labels)} labels")
            if not np.isfinite(found).all():
                raise ValueError("its weights are not finite numbers")
        unsure_below = config.get("unsure_below", 0.0)
        if not (isinstance(unsure_below, int | float) and 0 <= unsure_below <= 1):
            raise ValueError("unsure_below in its config.json is not a number from 0 to 1")
        independent = len(labels) == 1 or config.get("problem_type") == "multi_label_classification"
        return Classifier(name, revision, labels, pixels, logits, independent, unsure_below, card_accuracy(folder))


def card_accuracy(folder: Path) -> str:
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
        gr.Error: with one sentence, if there is no such model, or it cannot be loaded.
    """
    if name not in list(MODELS):
        raise refusal(f"There is no model {name!r}. Choose {' or '.join(MODELS)}.")
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
        said = f"The model {name} ({MODELS[name]}) cannot be loaded: {words.splitlines()[0].rstrip('.')}."
        raise refusal(" ".join([said, *(f"Choose {other} instead." for other in MODELS if other != name)])) from error


def logits(model: str, pixel_values: np.ndarray) -> np.ndarray:
    """Return the logits of a model that is ready: the one function that needs a GPU, if there is one.

    It takes the model's name, as ZeroGPU hands the arguments to another process.
    """
    return READY[model].logits(pixel_values)


if spaces:
    logits = spaces.GPU(logits)  # has no effect but on ZeroGPU


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits, each row of which sums to 1."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def pet_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return cat, dog and neither, shape (N, 3), from the logits of the 1000 ImageNet classes, shape (N, 1000).

    Each group's probability over its share of the classes, times its share here (Saerens et al. 2002, Adjusting the
    Outputs of a Classifier to New a Priori Probabilities).
    """
    probabilities = softmax(logits.astype(np.float64) / PET_TEMPERATURE)
    groups = np.full(IMAGENET, 2)
    groups[CATS], groups[DOGS] = 0, 1
    sizes = np.bincount(groups)
    shares = np.stack([probabilities[:, groups == group].sum(1) for group in range(3)], axis=1)
    adjusted = shares * np.asarray(PET_SHARES) / sizes
    return adjusted / adjusted.sum(axis=1, keepdims=True)


def answers(photos: list[Image.Image], model: str) -> list[tuple[dict[str, float], str]]:
    """Return for each photo the probability of every label, and the most likely of ImageNet's 1000 classes.

    The probabilities sum to 1, but for a model that gives each label one of its own. The class is "" for a model that has
    others.

    Raises:
        gr.Error: if the model cannot be loaded.
    """
    ready = classifier(model)
    scores = logits(model, ready.pixels(photos))
    labels, details = ready.labels, [""] * len(photos)
    if ready.independent:
        probabilities = 1 / (1 + np.exp(-scores.astype(np.float64)))
        if len(labels) == 1:
            labels, probabilities = [*labels, f"Not {labels[0]}"], np.hstack([probabilities, 1 - probabilities])
    elif len(labels) == IMAGENET:
        details = [labels[index].partition(",")[0] for index in scores.argmax(axis=1)]
        labels, probabilities = PET_LABELS, pet_probabilities(scores)
    else:
        probabilities = softmax(scores)
        if ready.unsure_below and "Neither" not in labels:
            unsure = 0.5 * (probabilities.max(axis=1, keepdims=True) < ready.unsure_below)  # more than any label keeps
            labels, probabilities = [*labels, UNSURE], np.hstack([probabilities * (1 - unsure), unsure])
    return [(dict(zip(labels, row, strict=True)), d) for row, d in zip(probabilities.tolist(), details, strict=True)]


@gr.cache(max_size=REMEMBERED, key=lambda asked: (classifier(asked["model"]).revision, asked["photo"]))
def answer(photo: Image.Image, model: str) -> tuple[dict[str, float], str]:
    """Return `answers` of one photo, from memory if the same model was asked before.

    Raises:
        gr.Error: if the model cannot be loaded.
    """
    return answers([photo], model)[0]


def predict(image: dict | None, model: str) -> dict[str, str | list[dict]]:
    """Say whether a photo shows a cat, a dog or neither, with the probability of each and the model that was asked.

    Args:
        image: the photo.
        model: mobilenet, which is small and quick, or vit, which knows the 1000 classes of ImageNet.
    """
    found, _ = answer(open_upload(image), model)
    likeliest = sorted(found, key=found.get, reverse=True)
    confidences = [{"label": label, "confidence": found[label]} for label in likeliest]
    return {"label": likeliest[0], "confidences": confidences, "model": READY[model].name}


def predict_batch(files: list[dict] | None, model: str, progress=gr.Progress()) -> Iterator[list[list]]:
    """Classify many photos: one row of file, label, confidence and note each. A file that is no photo says so in its note.

    Args:
        files: the photos.
        model: mobilenet, which is small and quick, or vit, which knows the 1000 classes of ImageNet.
    """
    rows = []
    for _ in classify_files(files, model, progress, rows, []):
        yield gr.skip()
    yield rows


def classify_files(files: list[dict] | None, model: str, progress, rows: list, thumbnails: list) -> Iterator[None]:
    """Add a row for each file, and for each photo a thumbnail with its caption; yield after each batch.

    It is a generator, so that gradio stops it between two batches when the client has left.

    Raises:
        gr.Error: if there are no files, or too many, or the model cannot be loaded.
    """
    if not files:
        raise refusal("Choose some photos.")
    if len(files) > MAX_FILES:
        raise refusal(f"These are {len(files)} files; at most {MAX_FILES} go at a time.")
    batches = [files[start : start + BATCH_SIZE] for start in range(0, len(files), BATCH_SIZE)]
    with ThreadPoolExecutor(2) as pool:
        opening = pool.map(photo_or_reason, batches[0])
        for batch, following in progress.tqdm(list(zip(batches, [*batches[1:], []], strict=True)), unit="batches"):
            opened = list(opening)
            opening = pool.map(photo_or_reason, following)  # they are decoded while these are looked at
            photos = [photo for photo in opened if not isinstance(photo, str)]
            found = iter(answers(photos, model) if photos else [])
            for file, photo in zip(batch, opened, strict=True):
                name = Path(file["path"]).name
                if isinstance(photo, str):
                    rows.append([name, "", None, photo])
                    continue
                probabilities, note = next(found)
                label = max(probabilities, key=probabilities.get)
                rows.append([name, label, round(probabilities[label], 4), note])
                photo.thumbnail((THUMBNAIL, THUMBNAIL))
                thumbnails.append((photo, f"{label} {probabilities[label]:.0%}: {name}"))
            yield


def photo_or_reason(file: dict) -> Image.Image | str:
    """Return the photo, or in words why it cannot be read."""
    try:
        return open_upload(file)
    except gr.Error as error:
        return error.message


def compare(image: dict | None) -> tuple[dict[str, float], dict[str, float], str]:
    """Ask both models about a photo: the probabilities by the MobileNet, by the ViT, and in words whether they agree.

    Args:
        image: the photo.
    """
    photo = open_upload(image)
    found = [answer(photo, model)[0] for model in MODELS]
    said = [max(probabilities, key=probabilities.get) for probabilities in found]
    if len(set(said)) == 1:
        return *found, f"Both models say {said[0]}."
    words = [f"{model} says {label} ({one[label]:.0%})" for model, label, one in zip(MODELS, said, found, strict=True)]
    return *found, f"They disagree: {' and '.join(words)}."


def heat(photo: Image.Image, model: str, progress=gr.Progress()) -> tuple[str, np.ndarray]:
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


def explain(image: dict | None, model: str, progress=gr.Progress()) -> tuple[tuple, str]:
    """Show which parts of a photo an answer rests on: the photo, the same with a heatmap over it, and a legend.

    Args:
        image: the photo.
        model: mobilenet, which is small and quick, or vit, which knows the 1000 classes of ImageNet.
    """
    from matplotlib import colormaps

    photo = open_upload(image)
    label, falls = heat(photo, model, progress)
    if falls.max() <= 0:
        return (photo, photo), f"No part of the photo matters for {label}: whatever is covered, it stays."
    share = Image.fromarray((255 * np.clip(falls / falls.max(), 0, 1)).astype(np.uint8))
    share = np.asarray(share.resize(photo.size, Image.Resampling.BICUBIC))
    coloured = Image.fromarray(colormaps["inferno"](share, bytes=True)[..., :3])
    return (photo, Image.blend(photo, coloured, 0.6)), f"The brighter a part, the more {label} depends on it."


def models() -> list[dict[str, str | bool | list[str]]]:
    """List the choices for `model`: what each stands for, whether it is loaded, and then its labels and its test accuracy."""

    def describe(name: str, ready: Classifier | None) -> dict:
        known = {"name": name, "model": ready.name if ready else Path(MODELS[name]).name, "loaded": bool(ready)}
        labels = ready.labels if ready else []
        labels = PET_LABELS if len(labels) == IMAGENET else labels
        return {**known, "labels": labels, "measured": ready.measured if ready else ""}

    return [describe(name, READY.get(name)) for name in MODELS]


def page_answer(image: dict | None, model: str) -> tuple[dict[str, float] | str, str]:
    """Return `answer` for the page, where an empty photo box is no mistake, and who gave it, in which time."""
    if image is None:
        return EMPTY, ""
    photo = open_upload(image)
    classifier(model)  # so that the time is not that of loading it
    start = time.perf_counter()
    probabilities, seen = answer(photo, model)
    words = f"{READY[model].name}, {1000 * (time.perf_counter() - start):.0f} ms."
    return probabilities, words + f" Of ImageNet's 1000 classes it looks most like: {seen}." * bool(seen)


def page_batch(files: list[dict] | None, model: str, progress=gr.Progress()) -> Iterator[tuple]:
    """Yield in the end the rows of `predict_batch`, thumbnails in the order of the answers, and the rows as a CSV file."""
    rows, thumbnails = [], []
    for _ in classify_files(files, model, progress, rows, thumbnails):
        yield gr.skip(), gr.skip(), gr.skip()
    table = Path(tempfile.mkdtemp(dir=UPLOADS), "answers.csv")
    with table.open("w", encoding="utf-8", newline="") as opened:
        # A spreadsheet would run a name such as =1+1.jpg as a formula.
        plain = [[f"'{name}" if name.startswith(("=", "+", "-", "@")) else name, *others] for name, *others in rows]
        csv.writer(opened).writerows([HEADERS, *plain])
    gallery = gr.Gallery(sorted(thumbnails, key=lambda one: one[1]), visible=bool(thumbnails))
    yield gr.Dataframe(rows, visible=True), gallery, gr.DownloadButton(value=str(table), interactive=True)


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


with gr.Blocks(title="Cat, dog or neither?", analytics_enabled=False) as demo:
    gr.Markdown(INTRODUCTION)
    model = gr.Dropdown(list(MODELS), value="mobilenet", label="Model", visible=len(MODELS) > 1)
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
    with gr.Tab("Compare", visible=len(MODELS) > 1):
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

    # The functions open photos themselves: gradio's own loader would fail on a damaged one before they could say why.
    raw = {"preprocess": False}
    api = gr.Button(visible=False)  # the endpoints for programs; their texts are the functions' docstrings
    api.click(predict, [photo, model], gr.JSON(label="Answer", visible=False), api_name="predict", **raw)
    api.click(predict_batch, [files, model], table, api_name="predict_batch", **raw)
    api.click(explain, [photo, model], [heatmap, legend], api_name="explain", **raw)
    gr.api(models, api_name="models")
    if len(MODELS) > 1:
        api.click(compare, photo, [*opinions, agreement], api_name="compare", **raw)

    page = {"api_visibility": "private", **raw}
    at_once = {**page, "queue": False}  # what costs nothing takes no place from those who wait for an answer
    gr.on([demo.load, about_tab.select], about, None, text, show_progress="hidden", **at_once)
    new = [photo.change, model.change]
    gr.on(new, page_answer, [photo, model], [label, detail], **page)
    gr.on(new, lambda: (gr.ImageSlider(None, visible=False), ""), None, [heatmap, legend], **at_once)
    explained = why.click(explain, [photo, model], [heatmap, legend], **page)
    explained.success(lambda: gr.ImageSlider(visible=True), None, heatmap, **at_once)
    folder.upload(lambda chosen: [file["path"] for file in chosen], folder, files, **at_once)
    classify.click(page_batch, [files, model], [table, thumbnails, download], show_progress_on=files, **page)

    if len(MODELS) > 1:
        asked = [both, *opinions, agreement]
        both.input(compare, both, asked[1:], **page)
        both.clear(lambda: [EMPTY] * len(MODELS) + [""], None, asked[1:], **at_once)


def background() -> None:
    """Load the models, so that the first visitor need not wait, then delete old files again and again."""
    for name in MODELS:
        try:
            classifier(name)
            print(f"Model {name} is ready: {MODELS[name]}", flush=True)
        except gr.Error as error:
            print(error.message, file=sys.stderr, flush=True)
    while True:
        time.sleep(KEEP_SECONDS)
        for path in sorted(UPLOADS.rglob("*"), reverse=True):  # uploads that were cut off too; folders come last
            with contextlib.suppress(OSError):  # of a folder that is not empty, or a file that is gone
                if time.time() - path.stat().st_ctime > KEEP_SECONDS:
                    path.rmdir() if path.is_dir() else path.unlink()
        for names in demo.temp_file_sets:  # gradio's lists of them, which would grow for ever
            names.clear()


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
                if shutil.disk_usage(UPLOADS.parent).free < FREE_BYTES:
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


def launch() -> None:
    """Put the page up, and load the models behind it."""
    # Every call through the queue, which is bounded.
    demo.queue(max_size=MAX_WAITING, api_open=False).launch(
        theme=THEME,
        css=CSS,
        js=JS,
        footer_links=["api", "gradio"],
        run_history=False,
        enable_monitoring=False,
        mcp_server=True,
        prevent_thread_lock=True,
        max_file_size="20mb",
        state_session_capacity=100,  # each call over HTTP is a session, and gradio keeps 10,000 of 0.1 MB
        show_error=True,
        _frontend=False,  # else it asks its own page once, waits three seconds and gives up
        app_kwargs={
            "middleware": [Middleware(guarded)],
            # A call that finds the queue full, or the server about to stop; and what programs ask that watch over it.
            "exception_handlers": {
                503: lambda request, error: JSONResponse({"detail": BUSY}, 503, {"Retry-After": "5"})
            },
            "routes": [Route("/healthz", lambda request: JSONResponse({"status": "ok", "loaded": list(READY)}))],
        },
    )
    threading.Thread(target=background, daemon=True).start()  # after the page is up


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
    shutil.rmtree(UPLOADS, ignore_errors=True)
    print("app.py: stopped", file=sys.stderr, flush=True)
    return 130 if received[0] == signal.SIGINT else 0


if __name__ == "__main__":
    os._exit(serve())  # not sys.exit, which would wait for a download that may take hours
