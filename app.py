"""Cat, dog or neither: a page and an API around two image classifiers.

    python app.py
    MOBILENET_MODEL=checkpoints/mobilenet_v3_small python app.py
    VIT_MODEL=you/your-vit@main GRADIO_SERVER_PORT=8000 python app.py
    python app.py photos/ more.jpg --csv answers.csv --sort_into sorted

A model is a Hub id, `id@revision`, or a local folder: what finetune.py wrote, or any image classifier of transformers.
`VIT_MODEL=none` leaves the first model alone. A private one needs HF_TOKEN or `hf auth login`. With files or folders the
last form classifies them and ends; without, a page is served. From a shell:

    curl --data-binary @photo.jpg http://127.0.0.1:7860/api/predict
"""

import argparse
import asyncio
import base64
import contextlib
import csv
import functools
import gc
import hashlib
import html
import io
import itertools
import json
import os
import queue
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote, unquote, urljoin

# Where gradio keeps uploads and results. Of this process alone, as all in it is deleted after two hours at most.
UPLOADS = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir(), f"cat-dog-neither-{os.getpid()}").resolve()
# The second, or gradio makes a table of all calls so far after each call.
os.environ |= {"GRADIO_TEMP_DIR": str(UPLOADS), "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(2**62)}
gc.disable()  # nothing that is imported becomes garbage; looking for it takes a fifth of the start

import gradio as gr  # which reads them when it is imported
import httpx
import numpy as np
from fastapi.exceptions import RequestValidationError
from joblib import cpu_count
from mcp.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types import ImageContent, TextContent, Tool, ToolAnnotations
from PIL import Image, ImageOps
from pillow_heif import register_heif_opener
from safehttpx import AsyncSecureTransport, async_validate_url
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Mount, Route
from tqdm import tqdm

ZERO_GPU = "SPACES_ZERO_GPU" in os.environ  # a Space that has a GPU only while a function runs which asks for it
if ZERO_GPU:
    import spaces  # before torch, as the Hub says

gc.freeze()
gc.enable()

CORES = cpu_count()  # that a container allows
EXAMPLES = Path(__file__).resolve().parent / "examples"
OURS = str(EXAMPLES / "mobilenet_v3_small")
MODELS = {"mobilenet": os.environ.get("MOBILENET_MODEL") or OURS}
if os.environ.get("VIT_MODEL") != "none":
    MODELS["vit"] = os.environ.get("VIT_MODEL") or "google/vit-base-patch16-224"
PET_LABELS = ["Cat", "Dog", "Neither"]
# What the page says where a model is less sure than it is of photos like its own; if it has no "Neither", it answers so.
UNSURE = "Not sure"
IMAGENET = 1000  # classes; a model with as many is taken to know them, in the usual order
# The ImageNet-1k indices of the 5 domestic cats (tabby to Egyptian cat) and the 118 dog breeds (Chihuahua to Mexican
# hairless). Names would not do: catamaran and bullfrog are no pets, and 105 breeds do not say "dog".
CATS, DOGS = slice(281, 286), slice(151, 269)
# How often a photo here is taken to show a cat, a dog or neither; by ImageNet's 5, 118 and 877 of 1000 classes half of all
# cats would be "Neither". And the temperature of such a model. Both measured: examples/README.md.
PET_SHARES, PET_TEMPERATURE = (0.2, 0.2, 0.6), 0.7
# Pillow's other formats are rarely looked after; JPEG includes MPO. HEIF is what iPhones write as .heic.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
register_heif_opener()
BROWSERS_SHOW = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif")
MAX_PIXELS = 89_000_000  # above it a small file can fill the memory; Pillow's own warning starts just above
ENOUGH = 448  # pixels of a photo's shorter side, twice what the models look at; larger ones are reduced first
MAX_FILE = 20_000_000  # bytes of a photo that is uploaded or fetched
MAX_BODY = 28_000_000  # bytes of a call that is no upload: such a photo as a data URL
MAX_IGNORED = 200_000_000  # bytes read of a call that is refused: whoever is still sending does not hear the answer
MAX_FILES = 500
BATCH_SIZE = 16
FETCH_SECONDS = 10
LOAD_SECONDS = 20  # that a call waits for a model which is being loaded; those who ask the other need its place
REMEMBERED = 1000  # answers, so that the same photo need not be looked at again
SMALL_NETWORK = 50_000_000  # bytes; it has no work for two threads, so each looks at a photo of its own
CONVERTED = 4  # models that stay on disk as OpenVINO wants them, so that the next start is shorter
THUMBNAIL = 160  # pixels
CELLS = 6  # of a heatmap, in each direction
SURE = 0.9  # above it the page says "very sure", and below it a photo among many counts as doubtful
KEEP_SECONDS = 3600  # how old uploads and results may be when they are looked through, which is as often
MAX_WAITING = 32  # calls in a queue; a ViT of 0.25 s a photo answers as many in 8 s
FREE_BYTES = 200_000_000  # of the disk, which uploads leave free
LAST_SECONDS = 6  # that running predictions get when the server is to stop
HEADERS = ["file", "label", "confidence", "note"]
Refusal = functools.partial(gr.Error, print_exception=False)  # words for the caller; they are not logged


def open_photo(file) -> Image.Image:
    """Return the photo of a path or binary file upright and in RGB, transparent parts white, as in finetune.py.

    A large one is reduced. Raises gr.Error if it is not a photo, or damaged, or too large.
    """
    try:
        # Not by its name: Pillow 12.3 would map an uncompressed TIFF into memory, and garble it if it is to be turned.
        with (
            file if hasattr(file, "read") else Path(file).open("rb") as opened,
            Image.open(opened, formats=IMAGE_FORMATS) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise Refusal(f"The photo has more than {MAX_PIXELS // 10**6} million pixels. Make it smaller first.")
            image.draft("RGB", (ENOUGH, ENOUGH))  # a JPEG file can be decoded at a half, a quarter or an eighth
            photo = ImageOps.exif_transpose(image)
            if photo.mode.startswith("I"):
                photo = photo.point(lambda grey: grey / 256)  # of 16 bits, which Pillow would cut off at 255
            if photo.has_transparency_data:
                photo = photo.convert("RGBA")
                photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
            return photo.convert("RGB").reduce(max(1, min(photo.size) // ENOUGH))
    except gr.Error:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything for a damaged file
        formats = "a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC file"
        raise Refusal(f"This file cannot be read as a photo. Use {formats} that opens elsewhere.") from error


async def fetch(address: str) -> bytes:
    """Return what lies at a public address; raise one of many errors if it, or one that it leads to, is not public."""
    async with asyncio.timeout(FETCH_SECONDS):
        for _ in range(5):
            transport = AsyncSecureTransport(await async_validate_url(httpx.URL(address).host))
            async with httpx.AsyncClient(transport=transport) as client, client.stream("GET", address) as answer:
                if answer.has_redirect_location:
                    address = urljoin(address, answer.headers["Location"])
                    continue
                content = b""
                async for part in answer.raise_for_status().aiter_bytes():
                    content += part
                    if len(content) > MAX_FILE:
                        raise ValueError("too large")
                return content
    raise ValueError("too many redirects")


# Before an address or path that a client gives for a photo: gradio would fetch it without a limit, or tell of the server.
ADDRESS = f"{UPLOADS}/address="


def mark_address(sent: dict) -> dict:
    """Return an object of a call's JSON with ADDRESS before what stands as a photo and was not uploaded here."""
    path = sent.get("path") or sent.get("url")
    if not isinstance(path, str) or path.startswith("data:"):
        return sent
    path = path if path.startswith(str(UPLOADS)) else ADDRESS + quote(path, safe="")
    return {"meta": {"_type": "gradio.FileData"}, **sent, "path": path}


def sent_path(upload: dict | None) -> str:
    """Return what a call gives for a photo: a path, an address or a data URL; "" if it gives none."""
    path = (upload or {}).get("path") or (upload or {}).get("url")
    if not isinstance(path, str) or "\0" in path:
        return ""
    return unquote(path.removeprefix(ADDRESS)) if path.startswith(ADDRESS) else path


def open_upload(upload: dict | None) -> Image.Image:
    """Return the photo of a call: an upload, an example, a data URL, a public address.

    Raises gr.Error as `open_photo`, and if there is none, or if it is another file of this server.
    """
    sent = sent_path(upload)
    if not sent:
        raise Refusal("Upload a photo first.")
    if sent.startswith("data:"):
        try:
            content = base64.b64decode(sent.partition(";base64,")[2], validate=True)
        except ValueError as error:
            raise Refusal("The photo's data URL is not valid base64.") from error
        return open_photo(io.BytesIO(content))
    _, upload_address, rest = sent.partition("/gradio_api/file=")
    path = Path(unquote(rest) if upload_address else sent).resolve()
    if path.is_relative_to(UPLOADS) or path in example_files():
        return open_photo(path)
    if not sent.startswith(("http://", "https://")):
        raise Refusal("Upload the photo first. Paths on the server are not read.")
    try:
        content = asyncio.run(fetch(sent))
    except Exception as error:  # noqa: BLE001 - a stranger's server does as it likes
        limits = f"no larger than {MAX_FILE // 10**6} MB, and must arrive within {FETCH_SECONDS} seconds"
        raise Refusal(f"The photo could not be fetched. Its address must be public; it may be {limits}.") from error
    return open_photo(io.BytesIO(content))


@dataclass(frozen=True)
class Classifier:
    """A model that is ready to answer."""

    name: str  # for people: the Hub id and revision, or the folder
    folder: Path
    revision: str  # by which its answers are remembered
    labels: list[str]
    pixels: Callable[[list[Image.Image]], np.ndarray]  # photos to pixel values (N, 3, height, width)
    logits: Callable[[np.ndarray], np.ndarray]  # pixel values to logits (N, len(labels))
    gpu: bool  # whether `logits` needs a GPU
    independent: bool  # whether each label has a probability of its own
    unsure_below: float  # confidence below which the page says UNSURE; 0: never


def model_folder(source: str) -> Path:
    """Return the local folder of a model; from the Hub come onnx/model.onnx, or if there is none the safetensors files.

    Raises OSError with the reason if it cannot be loaded.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import errors, snapshot_download
    from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential_jitter

    def passing(error: BaseException) -> bool:  # a fault of the Hub's, which snapshot_download hides behind its own
        response = getattr(error.__cause__ or error, "response", None)
        return response is not None and (response.status_code == 429 or response.status_code >= 500)

    repeat = {"retry": retry_if_exception(passing), "wait": wait_exponential_jitter(max=8), "reraise": True}
    download = retry(stop=stop_after_attempt(4), **repeat)(snapshot_download)
    repo_id, _, revision = source.partition("@")
    reasons = {
        errors.LocalEntryNotFoundError: "the Hub cannot be reached, and there is no copy in the cache",
        errors.RevisionNotFoundError: f"the Hub has no revision {revision!r} of it",
        errors.RepositoryNotFoundError: "the Hub has no such model, or it is private and HF_TOKEN may not read it",
        errors.HFValidationError: "it is neither a folder nor a Hub id",
    }
    wanted = ["*.json", "README.md", "examples/*.jp*g"]
    try:
        folder = Path(download(repo_id, revision=revision or None, allow_patterns=[*wanted, "onnx/model.onnx"]))
        if on_gpu(folder) or not (folder / "onnx" / "model.onnx").is_file():
            download(repo_id, revision=folder.name, allow_patterns=[*wanted, "*.safetensors"])
        return folder
    except tuple(reasons) as error:
        raise OSError(next(words for kind, words in reasons.items() if isinstance(error, kind))) from error


def on_gpu(folder: Path) -> bool:
    """Return whether a model runs in torch on a GPU: if there is one, but on ZeroGPU only if it has no ONNX file.

    There each use of the GPU waits and is counted, and a small network is quicker without.
    """
    if ZERO_GPU:
        return not (folder / "onnx" / "model.onnx").is_file()
    if not (Path("/dev/nvidiactl").exists() or sys.platform == "win32"):
        return False  # without torch, whose import takes seconds
    import torch

    return torch.cuda.is_available()


def preprocessing(folder: Path) -> Callable[[list[Image.Image]], np.ndarray]:
    """Return the function from photos to pixel values (N, 3, height, width) that a model's folder asks for.

    The usual one, which squashes a photo to a size, needs no transformers; it equals its Pillow backend.
    """
    file = folder / "preprocessor_config.json"
    asked = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not asked.get("image_processor_type", "").startswith("ViT") or "height" not in asked["size"]:
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        return lambda photos: np.asarray(processor(photos, return_tensors="pt")["pixel_values"])
    size = asked["size"]["width"], asked["size"]["height"]
    mean, std = (np.float32(asked[name]).reshape(3, 1, 1) for name in ("image_mean", "image_std"))

    def pixels(photos: list[Image.Image]) -> np.ndarray:
        channels = [one for photo in photos for one in photo.resize(size, asked["resample"]).split()]
        batch = np.stack(channels, dtype=np.float32).reshape(len(photos), 3, *size[::-1])
        batch *= 1 / 255 / std
        batch -= mean / std
        return batch

    return pixels


def check_onnx(file: Path) -> None:
    """Raise ValueError if an ONNX file is damaged, takes data from other files, or needs operators of somebody's own."""
    import onnx

    try:
        model = onnx.load(file, load_external_data=False)
        domains = {node.domain for node in (model.graph.node[0], *model.graph.node)}  # an empty file has none
    except Exception as error:  # noqa: BLE001 - of protobuf, for a file that is anything else
        raise ValueError("its onnx/model.onnx is damaged") from error
    try:
        onnx.load_external_data_for_model(model, os.devnull)  # where no file lies
    except Exception as error:  # noqa: BLE001 - onnx has several for it
        raise ValueError("its onnx/model.onnx takes data from other files") from error
    if strange := domains - {"", "ai.onnx"}:
        raise ValueError(f"its onnx/model.onnx needs operators of {min(strange)}")


def transformers_model(folder: Path):
    """Return the image classifier of transformers, whose first output are the logits.

    Raises OSError or ValueError if its weights are not in safetensors files, or not those that its config.json asks for.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForImageClassification

    if not any(folder.glob("*.safetensors")):
        raise OSError("it has no safetensors file; pickled weights, such as .bin and .pt files, are not loaded")
    how = {"use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32, "output_loading_info": True}
    try:
        model, found = AutoModelForImageClassification.from_pretrained(folder, **how)
    except SafetensorError as error:
        raise ValueError("its safetensors file is damaged") from error
    if wrong := {*found["missing_keys"], *found["unexpected_keys"]}:  # transformers would fill a head at random
        raise ValueError(f"its weights and its config.json do not agree about {min(wrong)}")
    return model.eval()


def convert(folder: Path, example: np.ndarray, kept: Path):
    """Return a transformers model as OpenVINO's, and keep it in the folder `kept` for the next start if that can be."""
    import openvino
    import torch

    torch.set_num_threads(1)  # once it is converted, torch only stands in the way of OpenVINO's threads
    shape = [-1, *example.shape[1:]]
    with warnings.catch_warnings(action="ignore"):  # torch's, about the tracing that openvino does
        model = openvino.convert_model(transformers_model(folder), example_input=torch.from_numpy(example), input=shape)
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

    It takes any number of pixel values of the size of `example`, shape (1, 3, height, width).
    """
    if on_gpu(folder):
        import torch

        network = transformers_model(folder).half().cuda()

        @torch.inference_mode()
        def on_cuda(pixel_values):
            return network(torch.from_numpy(pixel_values).half().cuda()).logits.float().cpu().numpy()

        thread = ThreadPoolExecutor(1)  # each further one would need a second or two to get ready for the GPU
        return lambda pixel_values: thread.submit(on_cuda, pixel_values).result()

    # Without this, converting a model reports the use to its vendor; openvino then takes its own stub.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino
    from huggingface_hub.constants import HF_ASSETS_CACHE

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": CORES}
    file = folder / "onnx" / "model.onnx"
    if file.is_file():
        check_onnx(file)
        if file.stat().st_size < SMALL_NETWORK:
            options["NUM_STREAMS"] = CORES
        network = openvino.compile_model(file, "CPU", options)
    else:
        by = [revision, example.shape, *(version(name) for name in ("openvino", "torch", "transformers"))]
        kept = Path(HF_ASSETS_CACHE, "cat-dog-neither", hashlib.sha256(repr(by).encode()).hexdigest()[:32])
        try:
            network = openvino.compile_model(kept / "model.xml", "CPU", options)
        except RuntimeError:  # there is none, or it is damaged
            network = openvino.compile_model(convert(folder, example, kept), "CPU", options)
    requests = queue.SimpleQueue()  # which are kept, as making one takes a tenth of an answer's time
    for _ in range(CORES):
        requests.put(network.create_infer_request())

    def on_cpu(pixel_values: np.ndarray) -> np.ndarray:
        request = requests.get()
        try:
            return request.infer([pixel_values], share_inputs=True)[0]
        finally:
            requests.put(request)

    return on_cpu


BUILDING = threading.Lock()  # neither transformers' lazy imports nor torch's tracing stand two threads at once


def load_classifier(source: str) -> Classifier:
    """Return the model of a Hub id, `id@revision` or folder; raise OSError or ValueError with the reason if it cannot."""
    folder = model_folder(source)  # not under the lock: one model's download must not hold up the other
    with BUILDING:
        if not (folder / "config.json").is_file():
            raise OSError("there is no config.json, so it is not a model that transformers knows")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        # huggingface_hub names the folder of a download by its revision.
        name, revision = f"{source.partition('@')[0]}, revision {folder.name[:7]}", folder.name
        if Path(source).is_dir():
            files = sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("onnx/model.onnx")])
            name, revision = folder.name, " ".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
        if "id2label" not in config:
            from transformers import AutoConfig

            config["id2label"] = AutoConfig.from_pretrained(folder, trust_remote_code=False).id2label
        names = {int(index): label for index, label in config["id2label"].items()}
        if sorted(names) != list(range(len(names))):
            raise ValueError("id2label in its config.json does not number the labels from 0 on")
        if len(set(names.values())) < len(names) != IMAGENET:  # there, two are cranes
            raise ValueError("id2label in its config.json gives two outputs the same label")
        labels, pixels = [names[index] for index in range(len(names))], preprocessing(folder)
        example = pixels([Image.new("RGB", (64, 64))])
        logits, gpu = compile_model(folder, revision, example), on_gpu(folder)
        if not (gpu and ZERO_GPU):  # there is none yet
            found = logits(example)
            if found.shape != (1, len(labels)):
                raise ValueError(f"it has {found.shape[-1]} outputs, and its config.json names {len(labels)} labels")
            if not np.isfinite(found).all():
                raise ValueError("its weights are not finite numbers")
        independent = len(labels) == 1 or config.get("problem_type") == "multi_label_classification"
        return Classifier(
            name, folder, revision, labels, pixels, logits, gpu, independent, float(config.get("unsure_below", 0))
        )


READY: dict[str, Classifier] = {}
FAILED: dict[str, str] = {}  # why a model could not be loaded when it was last tried
LOADING = {name: threading.Lock() for name in MODELS}


def classifier(name: str) -> Classifier:
    """Return the model of the dropdown, loaded once; after a failure the next call tries again.

    Raises gr.Error if there is no such model, or it cannot be loaded, or somebody else is loading it and that takes long.
    """
    if name not in list(MODELS):
        raise Refusal(f"There is no such model. Choose {' or '.join(MODELS)}.")
    if name in READY:
        return READY[name]
    if not LOADING[name].acquire(timeout=LOAD_SECONDS):
        raise Refusal(f"The model {name} is still being loaded. Try again in a minute.")
    try:
        if name not in READY:
            READY[name] = load_classifier(MODELS[name])
        return READY[name]
    except Exception as error:  # noqa: BLE001 - whatever a stranger's repo does, the page and the other model go on
        words = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__  # such as "Disk full"
        FAILED[name] = f"The model {name} ({MODELS[name]}) cannot be loaded: {words.splitlines()[0].rstrip('.')}."
        raise Refusal(
            " ".join([FAILED[name], *(f"Choose {other} instead." for other in MODELS if other != name)])
        ) from error
    finally:
        LOADING[name].release()


def logits_on_gpu(model: str, pixel_values: np.ndarray) -> np.ndarray:
    """Return the logits of a model that is ready; by its name, as ZeroGPU hands the arguments to another process."""
    return READY[model].logits(pixel_values)


if ZERO_GPU:
    logits_on_gpu = spaces.GPU(logits_on_gpu)


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
    shares = np.stack([probabilities[:, groups == group].sum(1) for group in range(3)], axis=1)
    adjusted = shares * np.asarray(PET_SHARES) / np.bincount(groups)
    return adjusted / adjusted.sum(axis=1, keepdims=True)


def answers(photos: list[Image.Image], model: str) -> list[tuple[dict[str, float], str]]:
    """Return for each photo each label's probability, the likeliest first, and the likeliest of ImageNet's 1000 classes or "".

    The probabilities sum to 1, but for a model that gives each label one of its own. Raises gr.Error if it cannot be loaded.
    """
    ready = classifier(model)
    pixels = ready.pixels(photos)
    scores = logits_on_gpu(model, pixels) if ready.gpu else ready.logits(pixels)
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
    found = [sorted(zip(labels, row, strict=True), key=lambda one: -one[1]) for row in probabilities.tolist()]
    return list(zip(map(dict, found), details, strict=True))


@gr.cache(max_size=REMEMBERED, key=lambda asked: (classifier(asked["model"]).revision, asked["photo"]))
def answer(photo: Image.Image, model: str) -> tuple[dict[str, float], str]:
    """Return `answers` of one photo, from memory if the same model was asked before."""
    return answers([photo], model)[0]


def classify_files(files: list[dict | Path] | None, model: str) -> Iterator[list[tuple[list, Image.Image | None]]]:
    """Yield for each batch of uploads or paths a row of file, label, confidence and note each, and the photo if it is one.

    Raises gr.Error if there are none, or too many uploads, or the model cannot be loaded.
    """
    if not files:
        raise Refusal("Choose some photos.")
    if len(files) > MAX_FILES and isinstance(files[0], dict):
        raise Refusal(f"These are {len(files)} files; at most {MAX_FILES} go at a time. Choose fewer.")

    def photo_or_reason(file: dict | Path) -> Image.Image | str:
        try:
            return open_photo(file) if isinstance(file, Path) else open_upload(file)
        except gr.Error as error:
            return error.message

    classifier(model)
    batches = [files[start : start + BATCH_SIZE] for start in range(0, len(files), BATCH_SIZE)]
    with ThreadPoolExecutor(2) as pool:
        opening = pool.map(photo_or_reason, batches[0])
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            opened = list(opening)
            opening = pool.map(photo_or_reason, following)  # they are decoded while these are looked at
            photos = [photo for photo in opened if not isinstance(photo, str)]
            found, results = iter(answers(photos, model) if photos else []), []
            for file, photo in zip(batch, opened, strict=True):
                sent = str(file) if isinstance(file, Path) else sent_path(file)
                name = sent if isinstance(file, Path) else "photo" if sent.startswith("data:") else Path(sent).name
                if isinstance(photo, str):
                    results.append(([name, "", None, photo], None))
                else:
                    probabilities, note = next(found)
                    label = next(iter(probabilities))
                    results.append(([name, label, round(probabilities[label], 4), note], photo))
            yield results


def ranked(photo: Image.Image, model: str) -> dict[str, str | list[dict]]:
    """Return an answer as programs get it: the likeliest label, all of them from the likeliest on, and who says so."""
    found, _ = answer(photo, model)
    confidences = [{"label": label, "confidence": share} for label, share in found.items()]
    return {"label": confidences[0]["label"], "confidences": confidences, "model": READY[model].name}


def predict(image: dict | None, model: str = "mobilenet") -> dict[str, str | list[dict]]:
    """Say what a photo shows, with the probability of each label and the model that was asked."""
    return ranked(open_upload(image), model)


def predict_batch(files: list[dict] | None, model: str = "mobilenet") -> Iterator[list[list]]:
    """Classify many photos: one row of file, label, confidence and note each. A file that is no photo says so in its note."""
    rows = []
    for found in classify_files(files, model):
        rows += [row for row, _ in found]
        yield gr.skip()  # here gradio stops it if the client has left
    yield rows


def compare(image: dict | None) -> list[dict | str]:
    """Ask all models about a photo: the answer of each, or why there is none, and in words whether they agree."""
    photo, found, said = open_upload(image), [], {}
    for model in MODELS:
        try:
            found.append(ranked(photo, model))
            said[model] = f"{model} says {found[-1]['label']} ({percent(found[-1]['confidences'][0]['confidence'])})"
        except gr.Error as error:
            found.append({"error": error.message})
    if len(said) < 2:
        return [*found, f"Only one model answered: {' '.join(said.values())}." if said else "No model answered."]
    same = len({one["label"] for one in found}) == 1
    return [
        *found,
        f"Both models say {found[0]['label']}." if same else f"They disagree: {' and '.join(said.values())}.",
    ]


def heat(photo: Image.Image, model: str) -> tuple[str, np.ndarray]:
    """Return the most likely label, and how much each part of the photo matters for it, shape (CELLS, CELLS).

    A window of two by two cells is covered with the photo's mean colour, at each place in turn; a cell's number is the
    mean fall of the label's log-probability over the windows that cover it (Zeiler and Fergus 2014, Visualizing and
    Understanding Convolutional Networks). It needs nothing but the model's answers, so it is the same for every model.
    """
    probabilities, _ = answer(photo, model)
    label = next(iter(probabilities))
    colour = photo.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    rows, columns = (np.linspace(0, side, CELLS + 1).round().astype(int) for side in (photo.height, photo.width))
    falls, windows = np.zeros((CELLS, CELLS)), np.zeros((CELLS, CELLS))
    for row in range(CELLS - 1):
        covered = [photo.copy() for _ in range(CELLS - 1)]
        for column, copy in enumerate(covered):
            copy.paste(colour, (columns[column], rows[row], columns[column + 2], rows[row + 2]))
        for column, (found, _) in enumerate(answers(covered, model)):
            part = slice(row, row + 2), slice(column, column + 2)
            falls[part] += np.log(probabilities[label]) - np.log(max(found.get(label, 0), 1e-12))
            windows[part] += 1
    return label, falls / windows


def explain(image: dict | None, model: str = "mobilenet") -> tuple[Image.Image, str]:
    """Show what an answer rests on: the photo with the parts tinted that matter for it, and a legend."""
    photo = open_upload(image)
    label, falls = heat(photo, model)
    if falls.max() <= 0:
        return (
            photo,
            f"No single part of the photo matters for {label}: with any one of them covered, the answer stays.",
        )
    share = Image.fromarray((200 * np.clip(falls / falls.max(), 0, 1)).astype(np.uint8))
    tint = Image.new("RGB", photo.size, TINT)
    tinted = Image.composite(tint, photo, share.resize(photo.size, Image.Resampling.BICUBIC))
    return tinted, f"The stronger the tint, the more the answer {label} depends on that part."


def models() -> list[dict[str, str | bool | list[str]]]:
    """List the models: what each stands for, whether it is loaded, its labels, and then its test accuracy and its limits."""
    found = []
    for name, source in MODELS.items():
        ready = READY.get(name)
        measured, limits = card_summary(ready.folder) if ready else ("", "")
        told = {"name": name, "model": ready.name if ready else Path(source).name, "loaded": bool(ready)}
        found.append({**told, "labels": shown_labels(name), "measured": measured, "limits": limits})
    return found


def shown_labels(name: str) -> list[str]:
    """Return the labels with which a model answers; none before it is loaded, unless it is ours."""
    labels = READY[name].labels if name in READY else PET_LABELS * (MODELS[name] == OURS)
    return PET_LABELS if len(labels) == IMAGENET else labels


def card_summary(folder: Path) -> tuple[str, str]:
    """Return what the card of a model says of its accuracy and its limits, in words; "" where it says nothing."""
    from huggingface_hub import ModelCard

    measured, file = "", folder / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    with contextlib.suppress(Exception):  # strangers write their cards as they like
        results = ModelCard(text).data.eval_results
        share = float(next(result for result in results if result.metric_type == "accuracy").metric_value)
        measured = f"By its card it answers {share:.1%} of the photos right that it was tested with."
    limits = re.search(r"(?i)\n#+ [^\n]*limit[^\n]*\n+(.+?)(?=\n\n|\n#|$)", text, re.DOTALL)
    return measured, limits[1].replace("\n", " ") if limits else ""


HEAD = """<meta property="og:title" content="{title}">
<meta property="og:description" content="Drop a photo: the model says what it sees, how sure it is, and why.">
<meta property="og:image" content="https://{host}/picture">
<script>{script}</script>"""
TINT = "#ff7a00"
COLOURS = ("#0f766e", "#b45309", "#475569", "#7c3aed", "#be123c", "#1d4ed8")  # of the bars, label after label
INFO = "mobilenet: small and quick. vit: larger and slower."
LINKS = '<a href="#api">API</a> <a href="source">Source</a> <a href="#privacy">Privacy</a>'
ABOUT = """## The models

{models}
{imagenet}
## Your photos

They are deleted from the server after two hours at most, and used for nothing but the answer. Answers to the last
{remembered} photos are remembered until the page is restarted, with a fingerprint of the photo, not the photo.

## Ask it from a program

`curl --data-binary @photo.jpg ADDRESS/api/predict` answers with labels and scores; ADDRESS is that of this page. "API" below
lists the calls for Python and JavaScript, and agents find tools at `ADDRESS/gradio_api/mcp/`.

## Train your own

A folder of photos and a list of labels are enough: `prep.py` makes a dataset of them, `finetune.py` a model with a card of
its own, and the variable `MOBILENET_MODEL` puts it on this page. The README says how.
"""
IMAGENET_WORDS = """
A model with ImageNet's 1000 classes answers here with three labels: its 5 cats count as Cat, its 118 dogs as Dog, the rest as
Neither. It is told that of ten photos two show a cat, two a dog and six neither. With these shares a network of this kind
(EfficientNet-Lite2) was right about at least 95 % of each; with ImageNet's own shares it called most cats "Neither".
"""
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": "monospace"}  # nothing is loaded from elsewhere
CSS = """
.gradio-container { --quiet: #475569; --edge: #64748b; width: 100%; max-width: 1120px !important; margin: 0 auto !important; }
.html-container { padding: 0 !important; }
.dark .gradio-container, .gradio-container.dark { --quiet: #cbd5e1; --edge: #94a3b8; }
.head h1 { font-size: 1.8rem; font-weight: 700; margin: 0; } .head p, .quiet { color: var(--quiet); margin: 0; }
.block.photo, .block.verdict, .block.files { border: 1px solid var(--edge) !important; }
.block.verdict { min-height: 300px; padding: 1.2rem !important; }
.say { font-size: 2.2rem; font-weight: 700; line-height: 1.15; margin: 0; overflow-wrap: anywhere; }
.say.long { font-size: 1.2rem; } .sure { margin: .2rem 0 .9rem; }
.bar { display: grid; grid-template-columns: minmax(0, 2fr) 3fr 3.6rem; gap: .6rem; align-items: center; margin: .45rem 0; }
.bar span { overflow-wrap: anywhere; } .bar b { text-align: right; white-space: nowrap; }
.bar i { height: .9rem; border-radius: .45rem; background: linear-gradient(var(--c), var(--c)) 0 / var(--w) no-repeat;
  border: 1px solid var(--edge); }
.examples { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: .4rem; }
.examples button { padding: 0; margin: 0 !important; border: 2px solid var(--edge); border-radius: .5rem; }
.examples button { overflow: hidden; cursor: pointer; }
.examples button:focus-visible { outline: 3px solid var(--color-accent); }
.examples img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; margin: 0 !important; }
.thumbnails { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .6rem; }
.thumbnails figure { border: 1px solid var(--edge); border-radius: .5rem; overflow: hidden; margin: 0; }
.thumbnails img { width: 100%; height: 130px; object-fit: contain; margin: 0 !important; }
.thumbnails figcaption { padding: .3rem .5rem; font-size: .85rem; overflow-wrap: anywhere; }
.or, .info-text, .download-link { color: var(--quiet) !important; } button.primary { background: #0f766e !important; }
.links { text-align: center; } .links a { margin: 0 .6rem; text-decoration: underline; }
.links a, footer *, [role=tab].selected { color: var(--body-text-color) !important; }
.icon-button:has(input), .cache-indicator { display: none; }
@media (max-width: 640px) {
  .gradio-container main { padding: .4rem .6rem !important; } .gradio-container .column { gap: .6rem; }
  .head h1 { font-size: 1.25rem; } .head p { display: none; } .block.photo { height: 220px !important; }
  .block.verdict { min-height: 190px; padding: .6rem !important; } .say { font-size: 1.6rem; } .sure { margin-bottom: .4rem; }
  .bar { margin: .2rem 0; } button.lg { font-size: .9rem; padding: .5rem; }
}
"""
# Browsers give no type to a HEIC file or to one without an ending, and gradio takes none without; the server looks at the
# content. The table's filter has no name of its own, which screen readers need.
JS = """{
  const odd = files => [...files].some(file => !file.type.startsWith("image/"));
  const typed = files => {
    const all = new DataTransfer();
    for (const file of files)
      all.items.add(file.type.startsWith("image/") ? file : new File([file], file.name, {type: "image/jpeg"}));
    return all;
  };
  document.addEventListener("change", event => {
    if (event.target.type === "file" && odd(event.target.files)) event.target.files = typed(event.target.files).files;
  }, true);
  document.addEventListener("drop", event => {
    if (!odd(event.dataTransfer.files)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const dataTransfer = typed(event.dataTransfer.files);
    event.target.dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer}));
  }, true);
  document.addEventListener("click", event => {
    if (event.target.matches("[href='#privacy']")) [...document.querySelectorAll("[role=tab]")].at(-1).click();
    if (event.target.matches("[href='#api']")) document.querySelector("footer button").click();
  });
  new MutationObserver(() => {
    const title = document.querySelector("h1")?.textContent;
    if (title && title !== document.title) document.title = title;
    for (const input of document.querySelectorAll("input[type=file]")) input.accept = "image/*,.heic,.heif,.tif,.tiff,.avif";
    for (const input of document.querySelectorAll(".search-input")) input.ariaLabel = "Filter the answers";
  }).observe(document.documentElement, {childList: true, subtree: true});
}"""
# A gr.UploadButton would take a third of the time of each call over HTTP, for which gradio describes all parts of the page.
CHOOSE_FOLDER = """() => {
  const input = document.querySelector(".files input[type=file]");
  input.webkitdirectory = true;
  input.onchange = input.oncancel = () => { input.webkitdirectory = false; };
  input.click();
}"""
FILTER = """label => {
  for (const one of document.querySelectorAll(".thumbnails figure")) one.hidden = ![one.dataset.label, "All"].includes(label);
}"""
CHOOSE = """element.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button) trigger("select", {index: Number(button.dataset.index)});
});"""


def percent(share: float) -> str:
    """Return a share in per cent, as it is said: never 0 or 100."""
    return "< 1 %" if share < 0.01 else "> 99 %" if share > 0.99 else f"{100 * share:.0f} %"


def verdict_card(found: dict[str, float], unsure_below: float, small: str) -> str:
    """Return an answer as HTML: the label, how sure it is, a bar for each label (first five of many), small print."""
    colours = dict(zip(sorted(found), itertools.cycle(COLOURS), strict=False))
    bars = [
        f'<div class="bar"><span>{html.escape(label)}</span><i style="--w: {share:.1%}; --c: {colours[label]}"></i>'
        f"<b>{html.escape(percent(share))}</b></div>"
        for label, share in found.items()
    ]
    if len(bars) > 10:
        bars[5:] = ["<details><summary>Show all</summary>", *bars[5:], "</details>"]
    label, share = next(iter(found.items()))
    sure = "Very sure" if share >= SURE else "Fairly sure" if share >= 0.7 else "Hard to tell"
    if share < unsure_below and label != UNSURE:
        label, sure = UNSURE, f"Perhaps {label}"
    sure = html.escape(f"{sure}: {percent(share)}")
    return (
        f'<div role="status"><p class="say{" long" * (len(label) > 24)}">{html.escape(label)}</p><p class="sure">{sure}</p>'
        f'{"".join(bars)}<p class="quiet">{html.escape(small)}</p></div>'
    )


def note(head: str, words: str = "") -> str:
    """Return HTML that stands where an answer would."""
    return f'<div role="status"><p class="say long">{html.escape(head)}</p><p>{html.escape(words)}</p></div>'


NOTHING = note("No photo yet", "The answer appears here: what the photo shows, and how sure the model is.")


def page_title() -> str:
    """Return the title of the page: TITLE, or a question made of the first model's labels, or the model's name."""
    labels = [label.lower() if label[1:].islower() else label for label in shown_labels("mobilenet")]
    if os.environ.get("TITLE") or not 1 < len(labels) <= 4:
        return os.environ.get("TITLE") or Path(MODELS["mobilenet"]).name
    question = f"{', '.join(labels[:-1])} or {labels[-1]}?"
    return question[0].upper() + question[1:]


def heading() -> str:
    """Return the head of the page in HTML."""
    what = " of a cat, a dog, or something else" * (shown_labels("mobilenet") == PET_LABELS)
    return f"<h1>{html.escape(page_title())}</h1><p>Drop a photo{what}. The model says what it sees, how sure it is, and why.</p>"


def example_files() -> tuple[Path, ...]:
    """Return the photos to try; those of another model lie in its own folder."""
    ready = READY.get("mobilenet")
    folder = EXAMPLES if MODELS["mobilenet"] == OURS else ready.folder / "examples" if ready else Path("nowhere")
    return tuple(file.resolve() for file in sorted(folder.glob("*.jp*g"))[:6])


@functools.lru_cache
def example_buttons(files: tuple[Path, ...]) -> str:
    """Return photos to try as buttons in HTML that hold a thumbnail each."""
    buttons = []
    for index, file in enumerate(files):
        small, words = io.BytesIO(), html.escape(file.stem.replace("-", " "))
        ImageOps.fit(open_photo(file), (THUMBNAIL, THUMBNAIL)).save(small, "WEBP")
        picture = f'<img alt="" src="data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}">'
        buttons.append(f'<button data-index="{index}" title="{words}" aria-label="Try: {words}">{picture}</button>')
    return f'<div class="examples">{"".join(buttons)}</div>'


def show(upload: dict | None, model: str) -> Iterator[tuple]:
    """Yield what the page shows of a photo: its preview, the answer, and whether more can be asked about it."""

    def view(preview, words: str, more: bool = False) -> tuple:
        return preview, words, gr.Button(interactive=more), gr.Button(interactive=more), "", "", upload

    preview = None  # not even a broken picture
    try:
        if upload is None:
            yield view(gr.skip(), NOTHING)
            return
        opened, path = open_upload(upload), Path(sent_path(upload))
        browsers_show = path.suffix.lower() in BROWSERS_SHOW and path.is_relative_to(UPLOADS)
        preview = gr.skip() if browsers_show else opened
        if model not in READY:
            words = f"The model {model} is being loaded. The answer follows."
            yield view(preview, note("One moment", words))
            classifier(model)  # so that the time is not that of loading it
        start = time.perf_counter()
        found, seen = answer(opened, model)
        small = f"{READY[model].name}, {1000 * (time.perf_counter() - start):.0f} ms."
        small += f" Of ImageNet's 1000 classes it looks most like: {seen}." * bool(seen)
        yield view(preview, verdict_card(found, READY[model].unsure_below, small), more=True)
    except gr.Error as error:
        yield view(preview, note("No answer", error.message))


def show_example(event: gr.EventData, model: str) -> Iterator[tuple]:
    """Yield `show` of a photo to try."""
    yield from show({"path": str(example_files()[event.index])}, model)


def show_first(request: gr.Request) -> Iterator[tuple]:
    """Yield what a page shows that was just opened, and the answer to the photo that its address names, if it does."""
    named, nothing = request.query_params, (gr.skip(),) * len(shown)
    name = named["model"] if named.get("model") in MODELS else "mobilenet"
    # Who was quick has a photo there already.
    first = heading(), example_buttons(example_files()), name if "model" in named else gr.skip(), about()
    yield *first, *nothing
    for file in example_files():
        if file.stem == named.get("example"):
            yield from ((*first, *found) for found in show({"path": str(file)}, name))


def show_why(upload: dict, model: str) -> tuple:
    """Return `explain` for the page, in the photo's place."""
    try:
        picture, words = explain(upload, model)
        return picture, f'<p role="status">{html.escape(words)}</p>'
    except gr.Error as error:
        return gr.skip(), note("No answer", error.message)


def show_other(upload: dict, model: str) -> str:
    """Return what the other model says, in HTML."""
    try:
        other = next(name for name in MODELS if name != model)
        found, _ = answer(open_upload(upload), other)
    except gr.Error as error:
        return note("No answer", error.message)
    each = [f"{label} {percent(share)}" for label, share in found.items()]
    return note(f"{READY[other].name}: {next(iter(found))}", ", ".join(each[:3]))


def show_many(files: list[dict] | None, model: str) -> Iterator[tuple]:
    """Yield how far it is, and in the end a sentence of counts, downloads, the classes to filter by, thumbnails, a table.

    Not by gr.Progress: gradio 6.31 shows none to anybody once a client has left while its call had some.
    """
    rows, figures, folder = [], [], Path(tempfile.mkdtemp(dir=UPLOADS))
    start, rest = time.perf_counter(), [gr.skip()] * (len(results) - 1)
    try:
        for found in classify_files(files, model):
            for row, photo in found:
                rows.append(row)
                if photo:
                    photo.thumbnail((THUMBNAIL, THUMBNAIL))
                    photo.save(folder / f"{len(rows)}.jpg")
                    words = html.escape(f"{row[1]} {percent(row[2])}: {row[0]}")
                    address = f"gradio_api/file={quote(str(folder / f'{len(rows)}.jpg'))}"
                    picture = f'<img alt="" loading="lazy" src="{address}"><figcaption>{words}</figcaption>'
                    figures.append((row[2], f'<figure data-label="{html.escape(row[1])}">{picture}</figure>'))
            left = (len(files) - len(rows)) * (time.perf_counter() - start) / len(rows)
            yield f'<p role="status">{len(rows)} of {len(files)} photos. About {left:.0f} seconds left.</p>', *rest
    except gr.Error as error:
        yield note("No answer", error.message), *rest
        return
    thumbnails = "".join(figure for _, figure in sorted(figures))
    write_rows(folder / "answers.csv", rows)
    with zipfile.ZipFile(folder / "sorted.zip", "w") as archive:
        for file, place in zip(files, sorted_names(rows), strict=True):
            if place and shutil.disk_usage(folder).free > FREE_BYTES:
                archive.write(file["path"], place)
    labels = [label for label, _ in Counter(row[1] for row in rows if row[1]).most_common()]
    yield (
        note(count_answers(rows)),
        *(gr.DownloadButton(value=str(folder / name), visible=True) for name in ("answers.csv", "sorted.zip")),
        gr.Dropdown(["All", *labels], value="All", visible=len(labels) > 1),
        f'<h2 class="say long">The least sure first</h2><div class="thumbnails">{thumbnails}</div>',
        gr.Accordion(visible=True),
        rows,
    )


def count_answers(rows: list[list]) -> str:
    """Return a sentence on rows of file, label, confidence and note."""
    counts = [f"{number} {label}" for label, number in Counter(row[1] for row in rows if row[1]).most_common()]
    if unread := sum(not row[1] for row in rows):
        counts.append(f"{unread} could not be read")
    doubtful = sum(bool(row[1]) and row[2] < SURE for row in rows)
    many = "s" * (len(rows) != 1)
    return f"{len(rows)} photo{many}: {', '.join(counts)}; {doubtful} of them less than {percent(SURE)} sure."


def write_rows(table: Path | None, rows: list[list]) -> None:
    """Write rows of file, label, confidence and note into a CSV file, or print them."""
    # A spreadsheet would run a name such as =1+1.jpg as a formula.
    plain = [[f"'{name}" if name.startswith(("=", "+", "-", "@")) else name, *others] for name, *others in rows]
    with table.open("w", encoding="utf-8", newline="") if table else contextlib.nullcontext(sys.stdout) as opened:
        csv.writer(opened).writerows([HEADERS, *plain])


def sorted_names(rows: list[list]) -> Iterator[str]:
    """Yield for each row the path of its photo in a folder named by its label, different for each; "" if it has none."""
    taken = Counter()
    for name, label, *_ in rows:
        folder, name = re.sub(r'[\\/:*?"<>|]', "_", label).strip(". ") or "_", Path(name).name
        taken[f"{folder}/{name}".casefold()] += 1
        number = taken[f"{folder}/{name}".casefold()]
        yield (f"{folder}/{number} {name}" if number > 1 else f"{folder}/{name}") if label else ""


def about() -> str:
    """Return the text of the page's last tab."""
    lines = []
    for one in models():
        repo_id = MODELS[one["name"]].partition("@")[0]
        link = f"card/{one['name']}" if Path(repo_id).is_dir() else f"https://huggingface.co/{repo_id}"
        labels = f"It answers {', '.join(one['labels'][:10])}{' and more' * (len(one['labels']) > 10)}."
        told = f"{labels} {one['measured']} {one['limits']}" if one["loaded"] else "It is not loaded yet."
        lines.append(f"- `{one['name']}` is [{one['model']}]({link}). {told}")
    imagenet = any(len(ready.labels) == IMAGENET for ready in READY.values())
    return ABOUT.format(models="\n".join(lines), imagenet=IMAGENET_WORDS * imagenet, remembered=REMEMBERED)


with gr.Blocks(title=page_title(), analytics_enabled=False) as demo:
    head = gr.HTML(heading(), elem_classes="head")
    # The photo that was answered last, as the box may show it tinted. Not a gr.State: for one, every client would hold a
    # connection, and a script in Node would not end.
    asked = gr.JSON(visible=False)
    two = {"visible": len(MODELS) > 1}
    with gr.Tab("One photo"), gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            photo = gr.Image(label="Photo", show_label=False, height=400, elem_classes="photo", buttons=["fullscreen"])
            examples = gr.HTML(example_buttons(example_files()), js_on_load=CHOOSE)
        with gr.Column(min_width=320):
            verdict = gr.HTML(NOTHING, elem_classes="verdict")
            with gr.Row():
                why = gr.Button("Why?", interactive=False, min_width=120)
                other = gr.Button("Ask the other model", interactive=False, min_width=120, **two)
            legend, second = gr.HTML(), gr.HTML()
            model = gr.Dropdown(list(MODELS), value="mobilenet", label="Model", info=INFO, **two)
    with gr.Tab("Many photos"):
        kinds = ["image", ".heic", ".heif", ".tif", ".tiff", ".avif"]
        files = gr.File(file_count="multiple", file_types=kinds, label="Photos", height=180, elem_classes="files")
        with gr.Row():
            folder = gr.Button("Choose a folder")
            classify = gr.Button("Classify", variant="primary")
        summary = gr.HTML()
        with gr.Row():
            table_file = gr.DownloadButton("Download the answers as CSV", visible=False)
            sorted_file = gr.DownloadButton("Download the photos, sorted into folders", visible=False)
            only = gr.Dropdown(["All"], label="Show", visible=False)
        thumbnails = gr.HTML()
        with gr.Accordion("As a table", open=False, visible=False) as as_table:
            types = {"headers": HEADERS, "datatype": ["str", "str", "number", "str"]}
            table = gr.Dataframe(**types, label="Answers", interactive=False, show_search="filter", wrap=True)
    with gr.Tab("About") as about_tab:
        text = gr.Markdown(elem_id="about")
    gr.HTML(f'<nav class="links" aria-label="About this page">{LINKS}</nav>')

    # The functions open photos themselves: gradio's own loader would fail on a damaged one before they could say why.
    raw = {"preprocess": False}
    api = gr.Button(visible=False)  # the endpoints for programs; their texts are the functions' docstrings
    api.click(predict, [photo, model], gr.JSON(label="Answer", visible=False), api_name="predict", **raw)
    api.click(predict_batch, [files, model], table, api_name="predict_batch", **raw)
    tinted = gr.Image(label="What the answer rests on", visible=False), gr.Textbox(label="Legend", visible=False)
    api.click(explain, [photo, model], tinted, api_name="explain", **raw)
    opinions = [gr.JSON(label=name, visible=False) for name in MODELS]
    api.click(compare, photo, [*opinions, gr.Textbox(label="In words", visible=False)], api_name="compare", **raw)
    gr.api(models, api_name="models")

    page = {"api_visibility": "private", "show_progress": "hidden", **raw}
    at_once = {**page, "queue": False}  # what costs nothing takes no place from those who wait for an answer
    each = {**page, "trigger_mode": "multiple"}  # what is chosen while an answer is under way is answered next
    slow = {**page, "show_progress": "full"}
    shown = [photo, verdict, why, other, legend, second, asked]
    results = [summary, table_file, sorted_file, only, thumbnails, as_table, table]
    demo.load(show_first, None, [head, examples, model, text, *shown], **page)
    about_tab.select(about, None, text, **at_once)
    gr.on([photo.input, photo.clear], show, [photo, model], shown, **each)
    examples.select(show_example, model, shown, **each)
    model.input(show, [asked, model], shown, **each)
    why.click(show_why, [asked, model], [photo, legend], show_progress_on=legend, **slow)
    other.click(show_other, [asked, model], second, **slow)
    folder.click(None, js=CHOOSE_FOLDER, **at_once)
    classify.click(show_many, [files, model], results, show_progress_on=summary, **slow)
    only.input(None, only, js=FILTER, **at_once)


# What a call is told that cannot be answered, by the status of the answer: never what it sent, or what failed in here.
REFUSALS = {
    400: "This request cannot be read. See the README, or /gradio_api/info, for what a call looks like.",
    403: "You may not read this.",
    404: "There is nothing at this address. The page is at /; send photos to /api/predict by POST.",
    405: "This address does not take that method. Send photos by POST.",
    413: f"This is too large. A photo may have {MAX_FILE // 10**6} MB, and a call {MAX_BODY // 10**6} MB.",
    415: "This kind of content is not read here. Send the photo itself, or a form with the photo.",
    422: "This call does not have the form that /gradio_api/info describes.",
    503: (BUSY := "The app is busy. Try again in a few seconds."),
    507: "The server has no room for more photos. Try again in an hour.",
}
LANES = ThreadPoolExecutor(CORES)  # that look at photos for /api/predict and for agents
IN_LANE = set()  # their calls, those that wait too


def refuse(status: int, words: str = "") -> JSONResponse:
    """Return an answer that says in one sentence why there is no other."""
    words = words or REFUSALS.get(status, REFUSALS[400])
    return JSONResponse({"error": words, "detail": words}, status, {"Retry-After": "5"} if status == 503 else None)


async def in_lane(function: Callable, *arguments):
    """Return what a function returns that one of LANES calls; whoever is cancelled leaves the line.

    Raises HTTPException if MAX_WAITING wait already, or the app is about to stop.
    """
    if len(IN_LANE) >= MAX_WAITING + CORES or demo._queue.max_size == 0:
        raise HTTPException(503, BUSY)
    call = LANES.submit(function, *arguments)
    IN_LANE.add(call)
    try:
        return await asyncio.wrap_future(call)
    finally:
        call.cancel()
        IN_LANE.discard(call)


async def api_predict(request) -> JSONResponse:
    """Answer POST /api/predict, a photo as the body or in a form, with labels and scores, like Hugging Face's API."""
    model, top = request.query_params.get("model", "mobilenet"), request.query_params.get("top", "1000")
    if model not in MODELS:
        return refuse(400, f"There is no such model. Choose {' or '.join(MODELS)}.")
    if not (top.isdecimal() and len(top) < 9 and int(top)):
        return refuse(400, "top must be a number of labels, 1 or more.")
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind in ("application/json", "text/plain"):
        return refuse(415)
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=10) as form:
            files = [value for value in form.values() if not isinstance(value, str)]
            content = await files[0].read() if files else b""
    else:
        content = await request.body()
    if not content:
        return refuse(400, "This call has no photo. Send it as the body, or as a file in a form.")

    def look() -> JSONResponse:
        try:
            opened = open_photo(io.BytesIO(content))
        except gr.Error as error:
            return refuse(415, error.message)
        try:
            found, _ = answer(opened, model)
        except gr.Error as error:
            return refuse(503, error.message)
        return JSONResponse([{"label": label, "score": share} for label, share in found.items()][: int(top)])

    answered = asyncio.ensure_future(in_lane(look))
    while not (await asyncio.wait({answered}, timeout=0.2))[0]:
        if await request.is_disconnected():  # a client that hangs up takes no place from those who wait
            answered.cancel()
            return refuse(503)
    return answered.result()


async def api_health(request) -> JSONResponse:
    """Answer GET /api/health, for programs that watch over the server: which models are ready, or why not."""
    state = {name: "ready" if name in READY else FAILED.get(name, "not loaded yet") for name in MODELS}
    return JSONResponse({"status": "ok", "models": state})


PHOTO = {
    "type": "string",
    "description": "The photo: a data URL (data:image/jpeg;base64,...); or what this app's POST /gradio_api/upload returned "
    "for it (curl -F files=@photo.jpg); or a public http(s) address.",
}
MODEL = {"type": "string", "enum": list(MODELS), "default": "mobilenet", "description": INFO}
PHOTOS = {"type": "array", "items": PHOTO, "maxItems": MAX_FILES}
# What agents find: what answers, its title, and its arguments.
TOOLS = {
    "predict": (predict, "Classify a photo", {"image": PHOTO, "model": MODEL}),
    "predict_batch": (predict_batch, "Classify many photos", {"files": PHOTOS, "model": MODEL}),
    "compare": (compare, "Ask all models about a photo", {"image": PHOTO}),
    "explain": (explain, "Show what an answer rests on", {"image": PHOTO, "model": MODEL}),
    "models": (models, "List the models", {}),
}
agents = Server("cat-dog-neither", version="2")


@agents.list_tools()
async def list_tools() -> list[Tool]:
    """Return what agents may call."""
    found = []
    for name, (function, title, properties) in TOOLS.items():
        words = f"{function.__doc__.splitlines()[0]} {PHOTO['description'] if properties else ''}".strip()
        needed = [key for key in properties if key != "model"]
        schema = {"type": "object", "properties": properties, "required": needed}
        safe = ToolAnnotations(title=title, readOnlyHint=True)
        found.append(Tool(name=name, title=title, description=words, inputSchema=schema, annotations=safe))
    return found


@agents.call_tool(validate_input=False)  # whose words repeat what was sent
async def call_tool(name: str, arguments: dict) -> list[TextContent | ImageContent]:
    """Return the answer of a tool as JSON, or a picture and its legend; raise an error with words for the agent."""
    if name not in TOOLS:
        raise ValueError(f"There is no such tool. Choose {', '.join(TOOLS)}.")
    function, _, properties = TOOLS[name]
    given = {key: arguments[key] for key in properties if key in arguments}
    if "image" in properties:
        given["image"] = {"path": given.get("image")}
    if "files" in properties:
        files = given.get("files")
        given["files"] = [{"path": one} for one in files] if isinstance(files, list) else None

    def run() -> list[TextContent | ImageContent]:
        try:
            found = function(**given)
            if name == "predict_batch":
                found = [dict(zip(HEADERS, row, strict=True)) for row in list(found)[-1]]
        except gr.Error as error:
            raise ValueError(error.message) from error
        if name != "explain":
            return [TextContent(type="text", text=json.dumps(found))]
        file = io.BytesIO()
        found[0].save(file, "JPEG")
        data = base64.b64encode(file.getvalue()).decode()
        return [ImageContent(type="image", data=data, mimeType="image/jpeg"), TextContent(type="text", text=found[1])]

    return await in_lane(run)


def guarded(app: Callable) -> Callable:
    """Return the ASGI app with a limit on what a call may send, its addresses marked, and headers for browsers."""

    async def call(scope, receive, send):
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        async def read():
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False) and unread - len(message["body"])
            return message

        async def with_room():
            if shutil.disk_usage(UPLOADS.parent).free < FREE_BYTES:
                raise HTTPException(507)
            return await read()

        async def read_marked():
            return messages.pop() if messages else await receive()

        async def with_headers(message):
            if message["type"] == "http.response.start":
                while unread > 0:
                    await read()
                # A browser must not take a file for a page because it looks like one, nor tell others where it was.
                headers = MutableHeaders(scope=message)
                headers.update({"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"})
            await send(message)

        # gradio stumbles over malformed ranges, and sends the headers of a request for a part of a file back.
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]
        path, content, unread = scope["path"], bytearray(), MAX_IGNORED if scope["method"] == "POST" else 0
        if "/file=http" in path:  # other sites are not fetched for anybody
            await refuse(403)(scope, receive, with_headers)
            return
        if path.endswith("/upload"):
            await app(scope, with_room, with_headers)
            return
        while unread > 0:
            content += (await read()).get("body", b"")
            if len(content) > MAX_BODY:
                await refuse(413)(scope, receive, with_headers)
                return
        if path.startswith(("/gradio_api/call/", "/gradio_api/queue/join")):
            with contextlib.suppress(ValueError, RecursionError):  # gradio says that it is not JSON
                content = json.dumps(json.loads(content, object_hook=mark_address)).encode()
        messages = [{"type": "http.request", "body": bytes(content)}]
        await app(scope, read_marked, with_headers)

    return call


def load_models() -> None:
    """Load the models, so that the first visitor need not wait."""
    for name in MODELS:
        try:
            classifier(name)
            print(f"Model {name} is ready: {MODELS[name]}", flush=True)
        except gr.Error as error:
            print(error.message, file=sys.stderr, flush=True)


def sweep() -> None:
    """Delete old files again and again."""
    while True:
        time.sleep(KEEP_SECONDS)
        for path in sorted(UPLOADS.rglob("*"), reverse=True):  # uploads that were cut off too; folders come last
            with contextlib.suppress(OSError):  # of a folder that is not empty, or a file that is gone
                if time.time() - path.stat().st_ctime > KEEP_SECONDS:
                    path.rmdir() if path.is_dir() else path.unlink()
        for names in demo.temp_file_sets:  # gradio's lists of them, which would grow for ever
            names.clear()


def launch() -> None:
    """Put the page up, and load the models behind it."""

    @contextlib.asynccontextmanager
    async def lifespan(server):  # a new one each time: if the start takes more than 5 s, gradio tries the next port
        server.state.tools = StreamableHTTPSessionManager(agents, json_response=True, stateless=True)
        async with server.state.tools.run():
            yield

    async def tools(scope, receive, send):
        await scope["app"].state.tools.handle_request(scope, receive, send)

    def card(request):
        ready = READY.get(request.path_params["model"])
        file = ready.folder / "README.md" if ready else Path()
        return FileResponse(file, media_type="text/plain") if file.is_file() else refuse(404)

    async def schema(request):  # where the Hub and gradio's own page look for the tools
        seen = {"mcp_type": "tool", "file_data_present": True}
        return JSONResponse([{**tool.model_dump(exclude_none=True), "meta": seen} for tool in await list_tools()])

    def refused(request, error):
        return refuse(getattr(error, "status_code", 422 if isinstance(error, RequestValidationError) else 400))

    UPLOADS.mkdir(parents=True, exist_ok=True)
    if ZERO_GPU:
        load_models()  # what is on the GPU when the page goes up is there in each call
    routes = [
        Route("/api/predict", api_predict, methods=["POST"]),
        Route("/api/health", api_health),
        Route("/card/{model}", card),
        Route("/picture", lambda request: FileResponse(EXAMPLES / "page.png")),
        Route("/source", lambda request: FileResponse(__file__, media_type="text/plain")),
        Route("/gradio_api/mcp/schema", schema),
        Mount("/gradio_api/mcp", tools),
    ]
    # Every call through the queue, which is bounded.
    demo.queue(max_size=MAX_WAITING, api_open=False).launch(
        theme=gr.themes.Default(primary_hue="teal", neutral_hue="slate", **FONTS),
        css=CSS,
        head=HEAD.format(title=html.escape(page_title()), host=os.environ.get("SPACE_HOST", "127.0.0.1"), script=JS),
        favicon_path=str(EXAMPLES / "favicon.png"),
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        prevent_thread_lock=True,
        max_file_size=MAX_FILE,
        state_session_capacity=100,  # each call over HTTP is a session, and gradio keeps 10,000 of 0.1 MB
        show_error=True,
        _frontend=False,  # else it asks its own page once, waits three seconds and gives up
        app_kwargs={
            "lifespan": lifespan,
            "middleware": [Middleware(guarded)],
            "exception_handlers": dict.fromkeys((HTTPException, RequestValidationError, Exception), refused),
            "routes": routes,
        },
    )
    if not ZERO_GPU:
        threading.Thread(target=load_models, daemon=True).start()  # after the page is up
    threading.Thread(target=sweep, daemon=True).start()


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


def classify_paths(*, paths: list[Path], table: Path | None, model: str, sort_into: Path | None) -> int:
    """Classify files and all that lies in folders; return how many were answered.

    The rows go into the new file `table` or are printed; photos are copied into `sort_into`, a new folder, if it is given.
    Raises gr.Error if a path is missing, an output is there already, or the model cannot be loaded.
    """
    files = []
    for path in paths:
        if not path.exists():
            raise Refusal(f"There is no {path}.")
        inside = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        files += inside if path.is_dir() else [path]
    if not files:
        raise Refusal(f"There are no files in {paths[0]}.")
    for output in filter(None, (table, sort_into)):
        if output.exists() or not output.parent.is_dir():
            why = "is there already" if output.exists() else "would lie in a folder that is not there"
            raise Refusal(f"{output} {why}. Name another place.")
    rows = []
    with tqdm(total=len(files), unit=" photos") as bar:
        for found in classify_files(files, model):
            rows += [row for row, _ in found]
            for row in [row for row, photo in found if not photo]:
                bar.write(f"{row[0]}: {row[3]}", file=sys.stderr)
            bar.update(len(found))
    write_rows(table, rows)
    if sort_into:
        with tempfile.TemporaryDirectory(dir=sort_into.parent, prefix=".sort") as scratch:
            for file, place in zip(files, sorted_names(rows), strict=True):
                if place:
                    Path(scratch, "new", place).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, Path(scratch, "new", place))
            Path(scratch, "new").rename(sort_into)
    print(count_answers(rows), file=sys.stderr)
    return sum(bool(row[1]) for row in rows)


def main(argv: list[str] | None = None) -> int:
    """Serve, or classify the files of the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="photos and folders to classify; none: serve the page")
    parser.add_argument("--csv", type=Path, dest="table", help="new file for the answers (default: they are printed)")
    parser.add_argument("--model", choices=list(MODELS), default="mobilenet")
    parser.add_argument("--sort_into", "--sort-into", type=Path, help="new folder to copy the photos into, by label")
    arguments = parser.parse_args(argv)
    if not arguments.paths:
        return serve()
    try:
        return 0 if classify_paths(**vars(arguments)) else 1
    except gr.Error as error:
        sys.exit(f"app.py: {error.message}")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # not sys.exit, which would wait for a download that may take hours
