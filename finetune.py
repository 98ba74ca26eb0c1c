# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "accelerate>=1.12",
#   "datasets>=5.1",
#   "huggingface_hub>=2.1.1",
#   "matplotlib>=3.10",
#   "numpy>=2.2",
#   "onnx>=1.19",
#   "openvino>=2026.0",
#   "pandas>=3",
#   "pillow>=12",
#   "safetensors>=0.8",
#   "scikit-learn>=1.7",
#   "tenacity>=9",
#   "timm>=1.0.26",
#   "torch>=2.11",
#   "torchvision>=0.26",
#   "tqdm>=4.67",
#   "transformers>=5.18",
# ]
#
# [tool.hf-jobs]
# flavor = "t4-small"
# timeout = "4h"
# secrets = ["HF_TOKEN"]
# ///
"""Fine-tune an image classifier on a dataset made by prep.py, and write a model folder for the Hub and app.py.

    python finetune.py --data_path dataset --model_name mobilenet_v3_small
    python finetune.py --data_path dataset --max_steps 20 --checkpoints_path trial
    python finetune.py --data_path dataset --model_name resnet18 --epochs 5 --lr 5e-4 --push_to_hub you/pets
    python finetune.py --data_path dataset --model_name google/vit-base-patch16-224 --lr 1e-4
    python finetune.py --data_path dataset --weights none --epochs 30 --lr 2e-3 --resume
    torchrun --nproc_per_node 2 finetune.py --data_path dataset
    hf jobs uv run finetune.py --data_path you/pets-data --push_to_hub you/pets

In a notebook:

    from finetune import finetune
    model, metrics = finetune(data_path="dataset", model_name="mobilenet_v3_small", epochs=3)
"""

import argparse
import ctypes
import hashlib
import inspect
import io
import json
import math
import os
import random
import re
import shlex
import shutil
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal, get_args, get_origin

import huggingface_hub
import numpy as np
import openvino
import pandas as pd
import transformers
from httpx2 import TransportError
from huggingface_hub.errors import HfHubHTTPError
from matplotlib.figure import Figure
from PIL import Image, ImageFilter, ImageOps
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.calibration import CalibrationDisplay, calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay, classification_report, log_loss, roc_auc_score
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from tqdm.auto import tqdm

# torchvision's networks: timm's name of each, and what makes that one the same function and train alike. Written out so
# that --help needs no torch; a test compares all of them with torchvision's.
NETWORKS = {
    "mobilenet_v2": ("mobilenetv2_100", {"drop_rate": 0.2}),
    "mobilenet_v3_large": ("mobilenetv3_large_100", {"bn_eps": 1e-3, "drop_rate": 0.2}),
    "mobilenet_v3_small": ("mobilenetv3_small_100", {"bn_eps": 1e-3, "drop_rate": 0.2}),
    **{f"resnet{depth}": (f"resnet{depth}", {}) for depth in (18, 34, 50, 101, 152)},
    **{f"vgg{depth}{bn}": (f"vgg{depth}{bn}", {"drop_rate": 0.5}) for depth in (11, 13, 16, 19) for bn in ("", "_bn")},
}
MetricName = Literal["accuracy", "f1", "precision", "recall", "roc_auc", "loss"]  # from f1 on means over the classes
START = {"none": "from scratch", "DEFAULT": "from pretrained weights"}
SPLITS = ("train", "validation", "test")
# Shares of the loss with a teacher: of the labels, of what it says of our classes, and of what it says of its own.
LABELS, OUR_CLASSES, ITS_CLASSES = 0.5, 0.5, 0.5
READING_PHOTOS = 20_000  # training photos from which it is learnt what the teacher says of our classes
STRESS_PHOTOS = 1000  # test photos that are also blurred, turned and so on
BINS = 15  # of the calibration error
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which torchvision's weights expect

CARD = """---
{{ card_data }}
---

# {{ architecture }}: {{ names|join(", ") }}

`{{ architecture }}` ({{ "timm's `" + model.config.architecture + "`, which is the same network" if timm_source else "of transformers" }}), trained by `finetune.py` on {{ counts.train.sum() }} photos, {{ start }}. {{ "{:,}".format(model.num_parameters()) }} parameters, {{ "%.1f"|format(model.num_parameters() / 250000) }} MB.
A photo is resized to {{ size }}x{{ size }} pixels, as `preprocessor_config.json` says.

## Results

The test split ({{ counts.test.sum() }} photos) was used once, after the training, with the epoch that had the best validation {{ asked.monitor_metric_name }}: epoch {{ best_epoch }}, {{ "%.4f"|format(state.best_metric) }}. All numbers but the accuracy are means over the classes (macro).
{% for name, value in scores.items() %}
- {{ name }}: {{ "%.4f"|format(value) }}
{%- if name == "accuracy" %} (95 % interval {{ "%.4f to %.4f"|format(*interval) }}){% endif %}
{%- endfor %}

A confidence is the plain softmax of the logits. The last layer was divided by the temperature that fits the validation split best, {{ "%.3f"|format(temperature) }}. Expected calibration error on the test split ({{ bins }} bins): {{ "%.4f before, %.4f"|format(*ece) }} after.
{{ comparison }}
```
{{ per_class }}
```

![Confusion matrix; rows are the true classes](confusion_matrix.png)
![How often answers are right at each confidence](reliability.png)
![Loss and validation metrics by epoch](learning_curves.png)
![The most confident mistakes](mistakes.png)

## Where it fails

{{ stressed }} test photos, made worse in one way at a time. The model does worst on photos {{ worst.photos }}: {{ "%.1f"|format(worst.right) }} % are answered right, and {{ "%.1f"|format(worst.wrong) }} % are answered wrong with more than 90 % confidence.

| photos | right | wrong with more than 90 % confidence |
| --- | --- | --- |
{%- for row in stress %}
| {{ row.photos }} | {{ "%.1f"|format(row.right) }} % | {{ "%.1f"|format(row.wrong) }} % |
{%- endfor %}

![The same as bars](stress.png)

## How it was made

```
{{ command }}
```

Photos by class:{% for split, numbers in counts.items() %} {{ split }}{% for name in names %} {{ name }} {{ numbers[loop.index0] }}{{ "," if not loop.last }}{% endfor %}{{ ";" if not loop.last }}{% endfor %}. SHA-256 of the test split: `{{ fingerprint }}`. Versions: {{ versions }}.

## How to use it

With transformers:

```python
from transformers import pipeline

classify = pipeline("image-classification", model="{{ repo }}")
print(classify("photo.jpg"))
```
{% if timm_source %}
With timm:

```python
import timm
from PIL import Image

model = timm.create_model("{{ timm_source }}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
scores = model(transform(Image.open("photo.jpg").convert("RGB"))[None]).softmax(1)[0].tolist()
print(dict(zip(model.pretrained_cfg["label_names"], scores)))
```
{% endif %}
In a browser or in Node, with transformers.js:

```javascript
import { AutoImageProcessor, AutoModel, RawImage, softmax } from "@huggingface/transformers";

const processor = await AutoImageProcessor.from_pretrained("{{ repo }}");
const model = await AutoModel.from_pretrained("{{ repo }}", { dtype: "fp32" });
const { logits } = await model(await processor(await RawImage.read("photo.jpg")));
const scores = softmax(logits.data);
console.log(model.config.id2label[scores.indexOf(Math.max(...scores))]);
```

On a web page: `MOBILENET_MODEL={{ repo }} python app.py`. Any ONNX runtime opens `onnx/model.onnx`.

## Limits

It knows only the classes above and gives each photo one of them. The numbers hold for photos like the dataset's.
"""


def load_splits(data_path: str):
    """Return the `DatasetDict` of a folder or of the Hub; OSError if it cannot be read, ValueError if it is another."""
    from datasets import ClassLabel, DatasetDict, load_dataset, load_from_disk

    name, _, revision = data_path.partition("@")
    local = Path(data_path).is_dir()
    read = partial(load_from_disk, data_path) if local else partial(load_dataset, name, revision=revision or None)
    advice = f"Prepare it first: python prep.py --image_path {shlex.quote(data_path)} --dst_path dataset"
    splits = ask_hub(read, f"--data_path {data_path} cannot be read as a folder of prep.py or a Hub dataset", advice)
    features = splits["train"].features if isinstance(splits, DatasetDict) and set(SPLITS) <= set(splits) else {}
    if not isinstance(features.get("label"), ClassLabel) or "image" not in features:
        need = f"the splits {', '.join(SPLITS)}, a column 'image', and a column 'label' of type ClassLabel"
        raise ValueError(f"--data_path {data_path} needs {need}. {advice}")
    return splits


def rgb(image: Image.Image) -> Image.Image:
    """Return a photo upright and in RGB, transparent parts white. app.py does the same."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = image.point(lambda grey: grey / 256)  # of 16 bits, which Pillow would cut off at 255
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def image_processor(size: int, mean=MEAN, std=STD):
    """Return the preprocessing of evaluation and app: the whole photo to a square, then mean and standard deviation."""
    how = {"size": {"height": size, "width": size}, "image_mean": list(mean), "image_std": list(std)}
    return transformers.ViTImageProcessorPil(**how)  # Pillow's resizing, as in the app


def input_size(processor) -> int:
    """Return the side of the square that a processor makes of a photo."""
    return processor(Image.new("RGB", (64, 64)), return_tensors="np")["pixel_values"].shape[-1]


class Photos:
    """A split for the Trainer: `pixels`, uint8 of shape (side, side, 3), and `labels`.

    Photos are whole until `side` is set. Then each is a view, a new one in each `epoch`; it depends on seed, epoch and index
    alone. All processes of a machine map the file `decoded`; without it each photo is decoded again each time. For a teacher
    rows also have the `plain` view.
    """

    side, epoch, for_teacher = None, 0, False

    def __init__(self, part, processor, seed: int = 0, decoded: Path | None = None):
        self.labels = part.with_format("numpy", columns=["label"])[:]["label"]
        self.processor, self.seed, self.size = processor, seed, input_size(processor)
        how = {"num_proc": os.cpu_count() if len(part) > 2000 else None, "cache_file_name": str(decoded)}
        how |= {"batched": True, "batch_size": 1, "remove_columns": part.column_names, "desc": "Decoding photos"}
        self.part = part.map(self.decode, **how) if decoded else part.with_transform(self.decode)

    def decode(self, rows: dict) -> dict[str, list[bytes]]:
        """Return the `pixels` of the photos of some rows, as evaluation sees them: uint8 of shape (size, size, 3)."""
        photos = [rgb(image) for image in rows["image"]]
        pixels = self.processor(photos, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
        return {"pixels": [photo.transpose(1, 2, 0).tobytes() for photo in pixels]}

    def photo(self, index: int) -> Image.Image:
        """Return a whole photo."""
        return Image.frombytes("RGB", (self.size, self.size), self.part[int(index)]["pixels"])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        photo, row = self.photo(index), {"labels": self.labels[index]}
        if self.side:
            plain, photo = vary(photo, self.side, random.Random(f"{self.seed} {self.epoch} {index}"))
            row |= {"plain": np.array(plain)} if self.for_teacher else {}
        return {"pixels": np.array(photo), **row}

    def __getitems__(self, indices: list[int]) -> list[dict]:
        with ThreadPoolExecutor(own_cores()) as pool:
            return list(pool.map(self.__getitem__, indices))


def own_cores() -> int:
    """Return how many cores of this machine there are for each of the run's processes on it."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def scale(pixels, processor):
    """Return pixels (N, 3, side, side) of uint8 as the processor scales them, in float."""
    import torch

    seen = torch.tensor([processor.image_mean, processor.image_std], device=pixels.device)
    mean, std = seen.view(2, 3, 1, 1)
    return (pixels * (processor.rescale_factor / std)).sub_(mean / std)


def jpeg(photo: Image.Image, quality: int) -> Image.Image:
    """Return a photo as it is after being saved as a JPEG of this quality."""
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def vary(photo: Image.Image, side: int, dice: random.Random) -> tuple[Image.Image, Image.Image]:
    """Return a view of a training photo, side x side, plain and as strangers' photos are: small, blurred, turned, dark.

    Low resolution and JPEG also hide the source of a photo: a network that sees it learns the source, not the thing.
    """
    area, stretch = dice.uniform(0.6, 1), math.exp(dice.uniform(-0.28, 0.28))
    wide, high = (photo.width * min(1, area * one) ** 0.5 for one in (stretch, 1 / stretch))
    left, top = dice.uniform(0, photo.width - wide), dice.uniform(0, photo.width - high)
    plain = photo.resize((side, side), Image.Resampling.BILINEAR, (left, top, left + wide, top + high))
    small = dice.randint(min(64, side), side) if dice.random() < 0.5 else side
    photo = plain.resize((small, small), Image.Resampling.BILINEAR)
    if dice.random() < 0.4:
        photo = jpeg(photo, dice.randint(10, 95))
    photo = photo.resize((side, side), Image.Resampling.BILINEAR)
    if dice.random() < 0.3:  # up to 4 px of 224 of the whole photo
        photo = photo.filter(ImageFilter.GaussianBlur(dice.uniform(0, 5) * side / 224))
    if dice.random() < 0.5:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if dice.random() < 0.3:
        photo = photo.transpose(dice.choice([Image.Transpose[f"ROTATE_{angle}"] for angle in (90, 180, 270)]))
    if dice.random() < 0.5:
        light = 10 ** dice.uniform(-1, 0) if dice.random() < 0.3 else dice.uniform(0.7, 1.3)
        contrast, colour = dice.uniform(0.7, 1.3), dice.uniform(0.7, 1.3) * (dice.random() > 0.1)
        mixed = contrast * (colour * np.eye(3) + (1 - colour) * np.array([0.3, 0.59, 0.11]))
        matrix = light * np.hstack([mixed, np.full((3, 1), 128 * (1 - contrast))])
        photo = photo.convert("RGB", matrix.flatten().tolist())
    return plain, photo


def by_epoch(train: Photos, trial: bool):
    """Return the callback that sets the views of each epoch; their side grows from a half to 5/6 of the photos' size.

    Early epochs learn as much from small photos, in half the time (Tan and Le 2021, EfficientNetV2). Views show things
    larger than whole photos; at 5/6 of the size as large (Touvron et al. 2019, Fixing the train-test resolution).
    """
    from accelerate.utils import broadcast

    class ByEpoch(transformers.TrainerCallback):
        def on_epoch_begin(self, args, state, control, **_):
            progress = 0.5 if trial else state.epoch / args.num_train_epochs  # a trial takes the mean time
            side = train.size * (3 + 2 * min(1.0, progress / 0.75)) / 6
            train.epoch, train.side = round(state.epoch), max(32, round(side / 16) * 16)

        def on_epoch_end(self, args, state, control, model=None, **_):
            broadcast(list(model.buffers()))  # each process has its own means of batches, and one saves them

    return ByEpoch()


def head_name(model) -> str:
    """Return the name of the model's last linear layer, whose outputs are the logits."""
    return [name for name, module in model.named_modules() if hasattr(module, "in_features")][-1]


def load_classifier(flag: str, source: str, **labels) -> tuple:
    """Return an image classifier, its last layer new if there are `labels`, and its processor; ValueError if it fails."""
    how = {"dtype": "float32", "use_safetensors": True, "ignore_mismatched_sizes": bool(labels), **labels}
    try:
        load = partial(transformers.AutoModelForImageClassification.from_pretrained, trust_remote_code=False)
        model, found = load(source, output_loading_info=True, **how)
        processor = transformers.AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        problem = f"--{flag} {source} cannot be loaded by transformers as an image classifier"
        raise ValueError(f"{problem}: {first_line(error)}.") from error
    new = head_name(model) if labels else None
    for name, tensor in model.state_dict().items():
        if (name in found["missing_keys"] or not tensor.isfinite().all()) and name.rpartition(".")[0] != new:
            raise ValueError(f"--{flag} {source} cannot be used: {name} is missing from its weights, or not finite.")
    if not hasattr(processor, "image_mean"):  # timm's, which crops in its own way
        seen = model.config.pretrained_cfg
        processor = image_processor(seen["input_size"][-1], seen["mean"], seen["std"])
    return model.eval(), processor


def torchvision_weights(network, model_name: str, weights: str) -> None:
    """Give timm's network all weights but those of its last layer; their names are torchvision's or timm's.

    Tensors of the two differ in name and shape, not in order. A file without any classifier leaves those layers new.
    OSError if the weights cannot be read, ValueError if they are not exactly those of this network.
    """
    import torch
    from safetensors.torch import load_file
    from torchvision.models import get_model, get_model_weights

    try:
        if weights == "DEFAULT":
            given = get_model_weights(model_name).DEFAULT.get_state_dict(check_hash=True, weights_only=True)
        else:
            given = load_file(Path(weights, "model.safetensors") if Path(weights).is_dir() else weights)
    except Exception as error:
        advice = "Give --weights none to train from scratch, or a safetensors file, or a folder with model.safetensors."
        raise OSError(f"--weights {weights} cannot be downloaded or read: {first_line(error)}. {advice}") from error
    with torch.device("meta"):
        theirs = list(get_model(model_name).state_dict())
    own, head = network.state_dict(), head_name(network)
    renamed = dict(zip(theirs, own, strict=True))
    given = {renamed.get(name, name.removeprefix("timm_model.")): tensor for name, tensor in given.items()}
    classifier = {renamed[name] for name in theirs if name.startswith(("classifier.", "fc."))}
    new = {name for name in classifier if name.rpartition(".")[0] == head}
    if new < classifier and given.keys().isdisjoint(classifier - new):
        new = classifier
        print(f"{weights} has no classifier: {', '.join(sorted(new))} start new.")

    def content(state: dict) -> set:
        return {(name, tensor.numel(), bool(tensor.isfinite().all())) for name, tensor in state.items()}

    for name in sorted({name for name, *_ in content(own) ^ content(given)} - new):
        if not name.endswith("num_batches_tracked"):  # which older files lack
            problem = f"{name} is missing, not finite, or of another network"
            raise ValueError(f"--weights {weights} is not a {model_name}: {problem}.")
    for name in given.keys() - new:
        own[name].copy_(given[name].reshape(own[name].shape))


def build_model(model_name: str, names: list[str], weights: str, size: int | None) -> tuple:
    """Return the transformers model, its last layer new and the rest from `weights`, and its processor."""
    numbers = {name: index for index, name in enumerate(names)}
    labels = {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": numbers}
    if model_name not in NETWORKS:
        flag, source = ("model_name", model_name) if weights in START else ("weights", weights)
        model, processor = load_classifier(flag, source, **labels)
        if weights == "none":
            model = type(model)(model.config)
        model.get_submodule(head_name(model)).reset_parameters()
        return model, image_processor(size, processor.image_mean, processor.image_std) if size else processor
    size = size or (224 if model_name.startswith("vgg") else 192)
    architecture, arguments = NETWORKS[model_name]
    config = transformers.TimmWrapperConfig(architecture=architecture, model_args=arguments, **labels)
    model = transformers.TimmWrapperForImageClassification(config)
    if weights != "none":
        torchvision_weights(model.timm_model, model_name, weights)
    # How timm is to prepare a photo: as the processor does.
    seen = {"input_size": [3, size, size], "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    kept = {name: model.timm_model.pretrained_cfg[name] for name in ("pool_size", "first_conv", "classifier")}
    config.pretrained_cfg = {**kept, **seen, "fixed_input_size": False, "mean": MEAN, "std": STD}
    return model, image_processor(size)


class Teacher:
    """An image classifier of any classes that is asked about the very view of a photo that the student sees.

    Beyer et al. 2022 (Knowledge distillation: A good teacher is patient and consistent). It sees the view plain: blurred or
    upside down it would know it less well. On a CPU it runs in OpenVINO, many times as fast as in eager torch; on a GPU in
    half precision.
    """

    def __init__(self, source: str, device: str):
        model, self.processor = load_classifier("teacher", source)
        self.size, self.classes, self.seconds = input_size(self.processor), model.config.num_labels, 0.0
        if device == "cuda":
            model = model.requires_grad_(False).half().to(device)
            self.network = lambda pixels: model(pixels.to(device).half()).logits.float().cpu().numpy()
            return
        with TemporaryDirectory() as folder:
            file = export_onnx(Path(folder, "teacher.onnx"), model, self.size)
            network = openvino.compile_model(file, "CPU", {"INFERENCE_NUM_THREADS": own_cores()})
        self.network = lambda pixels: network(pixels.contiguous().cpu().numpy())[0]

    def logits(self, pixels) -> np.ndarray:
        """Return its logits, shape (N, its classes), of views: uint8 of shape (N, side, side, 3)."""
        from torch.nn.functional import interpolate

        start, pixels = time.perf_counter(), pixels.permute(0, 3, 1, 2)
        pixels = pixels if pixels.device.type == "cpu" else pixels.float()  # a GPU resizes no bytes
        pixels = interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        logits = self.network(scale(pixels, self.processor))
        self.seconds += time.perf_counter() - start
        return logits

    def learn_our_classes(self, train: Photos, classes: int, processes) -> None:
        """Fit how its logits are read for our classes: a multinomial logistic regression on whole training photos."""
        from accelerate.utils import gather_object

        chosen = np.random.default_rng(0).permutation(len(train))[:READING_PHOTOS]
        own, logits = chosen[processes.process_index :: processes.num_processes], []
        for start in tqdm(range(0, len(own), 32), "Asking the teacher", disable=not processes.is_main_process):
            rows = train.__getitems__(own[start : start + 32])
            logits.append(self.logits(transformers.default_data_collator(rows)["pixels"]))
        logits, labels = (np.concatenate(gather_object(parts)) for parts in (logits, [train.labels[own]]))
        self.regression = LogisticRegression(C=0.01, max_iter=200).fit(logits, labels)
        self.our_classes, self.seconds = classes, 0.0

    def read(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities of our classes, shape (N, our classes), by its logits."""
        found = np.zeros((len(logits), self.our_classes), np.float32)
        found[:, self.regression.classes_] = self.regression.predict_proba(logits)
        return found


def make_student(model, processor, class_weights, teacher: Teacher | None):
    """Return the model as the Trainer wants it: `pixels` (N, side, side, 3) and `labels` in, `loss` and `logits` out.

    With a teacher the loss has three parts: the labels, what it says of our classes, and what it says of its own. A
    second head learns the last one: it is not part of the model, but the features that both heads share profit (Hinton
    et al. 2015, Distilling the Knowledge in a Neural Network).
    """
    import torch
    from torch.nn.functional import cross_entropy, kl_div, log_softmax

    def divergence(logits, wanted):
        return kl_div(log_softmax(logits, 1), torch.from_numpy(wanted).to(logits.device), reduction="batchmean")

    class Student(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = model
            self.register_buffer("class_weights", class_weights, persistent=False)
            self.imitation = torch.nn.Linear(head.in_features, teacher.classes) if teacher else None

        def forward(self, pixels, labels, plain=None):
            features, channels_last = [], pixels.permute(0, 3, 1, 2)
            with head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0])):
                logits = self.network(scale(channels_last, processor)).logits
            loss = cross_entropy(logits, labels, self.class_weights)
            if teacher and self.training:
                theirs = teacher.logits(plain)
                loss = LABELS * loss + OUR_CLASSES * divergence(logits, teacher.read(theirs))
                loss = loss + ITS_CLASSES * divergence(self.imitation(features[0]), softmax(theirs, 1))
            return {"loss": loss, "logits": logits}

    head = model.get_submodule(head_name(model))
    return Student()


def keep_freed_memory() -> None:
    """Have glibc keep the large blocks that a training step frees, for the next step, instead of returning each."""
    if sys.platform == "linux":
        glibc = ctypes.CDLL(None)
        glibc.mallopt(-4, 0)  # M_MMAP_MAX: no block is a mapping of its own, to be cleared page by page each time
        glibc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def metrics(prediction) -> dict[str, float]:
    """Return the accuracy of a prediction, and its class means of precision, recall, F1 and ROC AUC, each 0 to 1."""
    logits, labels = np.nan_to_num(prediction.predictions), prediction.label_ids
    report = classification_report(labels, logits.argmax(1), output_dict=True, zero_division=0)
    means = {name.removesuffix("-score"): report["macro avg"][name] for name in ("precision", "recall", "f1-score")}
    auc = roc_auc_score(np.eye(logits.shape[1])[labels], softmax(logits, 1))
    return {"accuracy": report["accuracy"], **means, "roc_auc": float(auc)}


def calibrate(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the best temperature (Guo et al. 2017), and the confidence that 95 % of the right answers then reach."""
    classes = range(logits.shape[1])
    loss = {t: log_loss(labels, softmax(logits / t, 1), labels=classes) for t in np.geomspace(0.05, 20, 600)}
    confidence, right = confidences(logits, labels, temperature := min(loss, key=loss.get))
    return temperature, float(np.quantile(confidence[right], 0.05)) if right.any() else 0.0


def confidences(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence of each answer, and whether it is right."""
    return softmax(logits / temperature, 1).max(1), logits.argmax(1) == labels


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error."""
    correct, mean = calibration_curve(right, confidence, n_bins=BINS)
    photos = np.histogram(confidence, BINS, (0, 1))[0]
    return float(np.average(abs(correct - mean), weights=photos[photos > 0]))


def stress(student, test: Photos) -> list[dict]:
    """Return how many per cent of test photos, made worse in one way at a time, are right, or wrong but 90 % sure."""
    import torch

    found, side = [], test.size
    for index in tqdm(np.random.default_rng(0).permutation(len(test))[:STRESS_PHOTOS], "Making test photos worse"):
        photo = test.photo(index)
        worse = {
            "as they are": photo,
            "blurred by 2 px of 224": photo.filter(ImageFilter.GaussianBlur(2 * side / 224)),
            "blurred by 4 px of 224": photo.filter(ImageFilter.GaussianBlur(4 * side / 224)),
            "with a quarter of the light": photo.point(lambda value: value / 4),
            "of JPEG quality 10": jpeg(photo, 10),
            "turned by 90°": photo.transpose(Image.Transpose.ROTATE_90),
            "turned by 180°": photo.transpose(Image.Transpose.ROTATE_180),
            "of half the size": photo.resize((side // 2, side // 2)).resize(photo.size),
            "of 64 pixels": photo.resize((64, 64)).resize(photo.size),
            "cut to the middle 60 %": photo.resize(photo.size, box=(0.2 * side, 0.2 * side, 0.8 * side, 0.8 * side)),
        }
        pixels = torch.from_numpy(np.stack([*worse.values()])).to(student.class_weights.device)
        labels = torch.full((len(worse),), int(test.labels[index]), device=pixels.device)
        with torch.inference_mode():
            logits = student(pixels, labels)["logits"].float().cpu().numpy()
        confidence, right = confidences(logits, test.labels[index])
        found.append([right, ~right & (confidence > 0.9)])
    table = 100 * np.mean(found, 0).T
    return [{"photos": name, "right": right, "wrong": wrong} for name, (right, wrong) in zip(worse, table, strict=True)]


def ask_baseline(source: str, part) -> np.ndarray:
    """Return which photos of a split another model answers right; ValueError if it has other labels."""
    (model, processor), labels = load_classifier("baseline", source), part.features["label"]
    if set(model.config.id2label.values()) != set(labels.names):
        raise ValueError(f"--baseline {source} has other labels than the dataset: {', '.join(model.config.label2id)}.")
    classify = transformers.pipeline("image-classification", model=model, image_processor=processor)
    answers = classify((rgb(row["image"]) for row in part), top_k=1, batch_size=32)
    return np.array([labels.str2int(one[0]["label"]) for one in answers]) == part["label"][:]


def compare(baseline: str, theirs: np.ndarray, right: np.ndarray) -> str:
    """Return the sentence on which photos the baseline and this model answer right, with McNemar's exact test."""
    better, worse = int((right & ~theirs).sum()), int((theirs & ~right).sum())
    p = binomtest(better, better + worse).pvalue if better + worse else 1.0
    outcome = f"this model is {'better' if better > worse else 'worse'}" if p < 0.05 else "no difference is shown"
    return (
        f"\nOn the same test photos `{baseline}` is right on {theirs.mean():.2%} and this model on {right.mean():.2%}: "
        f"{better} are answered right by this model only, {worse} by the other only. "
        f"By McNemar's exact test {outcome} (p = {p:.3g}).\n"
    )


def fingerprint(part) -> str:
    """Return the SHA-256 of a split's labels and image files, in order, so that two results can be told apart."""
    digest = hashlib.sha256()
    for row in part.cast_column("image", type(part.features["image"])(decode=False)):
        content = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        digest.update(repr((row["label"], len(content))).encode() + content)
    return digest.hexdigest()


def draw_pictures(folder: Path, log_history: list[dict], prediction, test, stressed: list, temperature: float) -> None:
    """Write the learning curves, confusion matrix, reliability, stress table and most confident mistakes as PNG files."""
    names, (logits, labels, _) = test.features["label"].names, prediction
    few = len(names) <= 20
    sizes = {"learning_curves": (10, 3.5), "confusion_matrix": (5, 4.5) if few else (12, 12), "reliability": (4.5, 4)}
    sizes |= {"stress": (7, 5), "mistakes": (12, 10)}
    figures = {name: Figure(figsize=size) for name, size in sizes.items()}

    log = pd.DataFrame(log_history).groupby("epoch").first()
    left, right = figures["learning_curves"].subplots(1, 2)
    log.filter(regex="^(eval_)?loss$").plot(ax=left, ylabel="loss")
    log.filter(regex="^eval_(accuracy|f1|precision|recall|roc_auc)$").plot(ax=right, ylabel="validation")

    how = {"display_labels": names if few else None, "include_values": few, "xticks_rotation": "vertical"}
    how |= {"labels": range(len(names)), "cmap": "Blues", "ax": figures["confusion_matrix"].subplots()}
    ConfusionMatrixDisplay.from_predictions(labels, logits.argmax(1), **how)

    axes = figures["reliability"].subplots()
    for value in (1.0, temperature):
        confidence, right = confidences(logits, labels, value)
        CalibrationDisplay.from_predictions(right, confidence, n_bins=BINS, name=f"temperature {value:.2f}", ax=axes)
    axes.set(xlabel="confidence", ylabel="share answered right")

    bars = pd.DataFrame(stressed).rename(columns={"wrong": "wrong with more than 90 % confidence"})[::-1]
    bars.plot.barh(x="photos", xlabel="per cent", ylabel="", ax=figures["stress"].subplots())

    grid = figures["mistakes"].subplots(4, 6, subplot_kw={"xticks": [], "yticks": [], "frame_on": False}).flat
    wrong = [int(index) for index in confidence.argsort()[::-1] if not right[index]]
    for axes, index in zip(grid, wrong):  # noqa: B905 - there may be fewer
        axes.imshow(rgb(test[index]["image"]))
        answer = f"{names[labels[index]]}, called {names[logits[index].argmax()]}\n{confidence[index]:.0%}"
        axes.set_title(answer, fontsize=8, parse_math=False)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", bbox_inches="tight", dpi=80, metadata={"Software": None})


def check(asked: argparse.Namespace, folder: Path, unfinished: Path, command: str) -> None:
    """Raise OSError or ValueError if an option is out of range, a package is missing, or the folder is taken."""
    for name in ("epochs", "batch_size", "lr"):
        if vars(asked)[name] <= 0:
            raise ValueError(f"--{name} {vars(asked)[name]:g} must be greater than 0.")
    smallest = 224 if asked.model_name.startswith("vgg") else 32  # a VGG stretches less, which ONNX cannot express
    if asked.image_size is not None and asked.image_size < smallest:
        raise ValueError(f"--image_size {asked.image_size} is too small: {asked.model_name} needs {smallest} or more.")
    for package in {"onnx", "timm", asked.report_to} - {"none"}:
        if not find_spec(package):
            raise ValueError(f"{package} is not installed. Run: pip install {package}")
    if (folder / "config.json").is_file() and not asked.overwrite:
        advice = f"To train it further, add --weights {folder} and choose another; to replace it, add --overwrite."
        raise FileExistsError(f"--checkpoints_path {folder} is not empty: it holds a finished model. {advice}")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file()):
        raise FileExistsError(f"--checkpoints_path {folder} is not empty, and not a model. Choose another folder.")
    begun = unfinished / "command.txt"
    if asked.resume and begun.is_file() and begun.read_text() != command:
        raise ValueError(f"--resume: the run in {unfinished} was started by another command: {begun.read_text()}")
    if begun.is_file() and not (asked.overwrite or asked.resume):
        advice = "Add --resume to continue it, or --overwrite to start again."
        raise ValueError(f"A run was stopped before its end, and its epochs are in {unfinished}. {advice}")


def last_epoch(unfinished: Path) -> str | None:
    """Return the folder of the last epoch that a run has saved whole: trainer_state.json is written last."""
    states = unfinished.glob("checkpoint-*/trainer_state.json")
    whole = [str(state.parent) for state in states if state.read_text().endswith("}\n")]
    return max(whole, key=lambda folder: int(folder.rpartition("-")[2]), default=None)


@contextmanager
def unfinished_run(folder: Path, command: str, asked: argparse.Namespace, processes):
    """Keep the epochs of a run in a folder until it is done; if it fails before the first one is saved, remove it."""
    from accelerate.utils.memory import should_reduce_batch_size

    if processes.is_local_main_process:
        if not (asked.resume and (folder / "command.txt").is_file()):
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "command.txt").write_text(command)
    try:
        yield
        processes.wait_for_everyone()
        keep = False
    except BaseException as error:
        keep = last_epoch(folder)  # for --resume
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            advice = f"Try --batch_size {max(1, asked.batch_size // 2)} or a smaller --image_size."
            raise ValueError(f"There is too little memory for --batch_size {asked.batch_size}. {advice}") from error
        raise
    finally:
        if processes.is_local_main_process and not keep:
            shutil.rmtree(folder, ignore_errors=True)


def make_trainer(student, train: Photos, validation: Photos, folder: Path, asked: argparse.Namespace, processes):
    """Return the Trainer that evaluates and saves each epoch in a folder, and ends with the best one."""
    from timm.optim import create_optimizer_v2

    epochs = 1 if asked.max_steps else asked.epochs
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=asked.batch_size // processes.num_processes,
        per_device_eval_batch_size=asked.batch_size,
        lr_scheduler_type="cosine",
        # A tenth of all steps, rounded down: the first one of a warm-up changes nothing, and may be the only one.
        warmup_steps=epochs * math.ceil(len(train) / asked.batch_size) // 10,
        max_grad_norm=0,
        **dict.fromkeys(("eval_strategy", "logging_strategy", "save_strategy"), "epoch"),
        save_total_limit=1,
        save_on_each_node=True,
        load_best_model_at_end=True,
        metric_for_best_model=asked.monitor_metric_name,
        fp16=asked.device == "cuda",
        ddp_find_unused_parameters=False,
        dataloader_num_workers=4 * (asked.device == "cuda"),  # on a CPU the threads of `Photos` do as well
        use_cpu=asked.device == "cpu",
        seed=asked.seed,
        report_to=asked.report_to,
    )
    # AdamW (Loshchilov and Hutter 2019), whose weight decay spares biases and the scales of normalisation.
    optimizer = create_optimizer_v2(student, "adamw", lr=asked.lr, weight_decay=0.05, fused=True)
    callbacks = [by_epoch(train, bool(asked.max_steps))]
    if asked.early_stopping:
        callbacks.append(transformers.EarlyStoppingCallback(asked.early_stopping))
    how = {"train_dataset": train, "eval_dataset": validation, "compute_metrics": metrics, "callbacks": callbacks}
    return transformers.Trainer(student, arguments, optimizers=(optimizer, None), **how)


def finetune(
    *,
    data_path: Annotated[str | Path, "folder that prep.py wrote, or Hub dataset: owner/name or owner/name@revision"],
    model_name: Annotated[str, "a name below, or an image classifier: Hub id or folder"] = "mobilenet_v3_small",
    checkpoints_path: Annotated[str | Path | None, "folder of the model; if not given, checkpoints/MODEL_NAME"] = None,
    overwrite: Annotated[bool, "replace a model, or a stopped run, that is already there"] = False,
    resume: Annotated[bool, "continue a stopped run after its last whole epoch; start one if there is none"] = False,
    weights: Annotated[str, "DEFAULT: pretrained; none: random; or a safetensors file or its folder"] = "DEFAULT",
    teacher: Annotated[str | None, "image classifier of any classes to learn from: Hub id or folder"] = None,
    baseline: Annotated[str | None, "model to compare the new one with in the card: Hub id or folder"] = None,
    nclasses: Annotated[int | None, "number of classes, only checked against the dataset"] = None,
    image_size: Annotated[int | None, "pixels of a photo's side; by default 192, VGG 224, Hub models their own"] = None,
    epochs: Annotated[int, "passes over the training photos"] = 3,
    max_steps: Annotated[int | None, "try out so many steps, and print what the whole run would take"] = None,
    early_stopping: Annotated[int, "stop after this many epochs without a better one; 0: never"] = 0,
    batch_size: Annotated[int, "photos per step, of all processes together"] = 64,
    lr: Annotated[float, "highest learning rate; it warms up and falls along a cosine"] = 1e-3,
    class_weights: Annotated[Literal["auto", "none"], "auto: rare classes count more in the loss, by a root"] = "auto",
    monitor_metric_name: Annotated[MetricName, "validation metric that decides which epoch is kept"] = "accuracy",
    seed: Annotated[int, "the same seed gives the same weights on the same machine"] = 42,
    device: Annotated[Literal["auto", "cuda", "mps", "cpu"], "auto: the first available of the others"] = "auto",
    cache_gb: Annotated[float, "disk for decoded photos; if they need more, each epoch decodes them again"] = 20.0,
    report_to: Annotated[Literal["none", "trackio", "tensorboard", "wandb"], "where to draw live curves"] = "none",
    license: Annotated[str, "licence of the model for its card, such as apache-2.0"] = "other",
    push_to_hub: Annotated[str | None, "also upload the model to this Hub repo, private if it is new"] = None,
) -> tuple:
    """Train, keep the best epoch, calibrate it, measure it on the test split, write the model folder.

    Returns the calibrated transformers model on the CPU in evaluation mode, and the test split's metrics (each 0 to 1).
    OSError or ValueError with one sentence that says what is wrong; nothing is left at `checkpoints_path` then.
    """
    asked = argparse.Namespace(**locals())
    command = command_line(asked)
    folder = Path(checkpoints_path or Path("checkpoints") / Path(model_name).name)
    machine = os.environ.get("GROUP_RANK", "0")  # each keeps epochs of its own, whether or not they share a disk
    unfinished = folder.with_name(f".{folder.name}.unfinished" + f"-{machine}" * (machine != "0"))
    check(asked, folder, unfinished, command)
    if "LOCAL_RANK" not in os.environ:  # one process takes one GPU; the Trainer would multiply the batch by all of them
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    splits = load_splits(str(data_path))
    names = splits["train"].features["label"].names
    if nclasses not in (None, len(names)):
        raise ValueError(f"--nclasses {nclasses} contradicts the dataset, which has {len(names)}: {', '.join(names)}.")
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    asked.device = next(name for name in there if there[name]) if device == "auto" else device
    if not there[asked.device]:
        raise ValueError(f"--device {device} is not available here.")
    # However long one process takes, the others wait; if it ends, torchrun ends them.
    processes = PartialState(cpu=asked.device == "cpu", timeout=timedelta(days=30))
    if batch_size % processes.num_processes:
        raise ValueError(f"--batch_size {batch_size} cannot be shared among {processes.num_processes} processes.")
    if asked.device == "cpu":
        keep_freed_memory()
    transformers.set_seed(seed)  # before the network is made: the new layers start from random numbers
    model, processor = build_model(model_name, names, weights, image_size)
    asking = Teacher(teacher, asked.device) if teacher else None
    if push_to_hub and processes.is_main_process:
        create_repo(push_to_hub)  # now, so that a missing login does not show only after the training
    pixels = 3 * input_size(processor) ** 2 * sum(map(len, splits.values()))
    whole, steps = len(splits["train"]), math.ceil(len(splits["train"]) / batch_size)
    share = min(1.0, (max_steps or steps) * batch_size / whole)
    if max_steps:
        for split, part in splits.items():
            splits[split] = part.shuffle(seed=seed).select(range(max(1, round(len(part) * share))))
    theirs = ask_baseline(baseline, splits["test"]) if baseline and processes.is_main_process else None
    processes.wait_for_everyone()  # until all have made sure that they can begin
    with unfinished_run(unfinished, command, asked, processes):
        start, kept = time.perf_counter(), pixels <= cache_gb * 1e9
        decoded = {split: unfinished / f"{split}.arrow" if kept else None for split in SPLITS}
        with processes.local_main_process_first():
            parts = {split: Photos(splits[split], processor, seed, decoded[split]) for split in SPLITS}
        train, validation, test = parts.values()
        if asking:
            asking.learn_our_classes(train, len(names), processes)
            train.for_teacher = True
        prepared = time.perf_counter() - start
        counts = {split: np.bincount(part.labels, minlength=len(names)) for split, part in parts.items()}
        # Rare classes count more in the loss, by a root; without the root common classes are called rare.
        rarity = (counts["train"].mean() / counts["train"].clip(1)) ** (0.5 if class_weights == "auto" else 0)
        student = make_student(model, processor, torch.tensor(rarity, dtype=torch.float32), asking)
        trainer = make_trainer(student, train, validation, unfinished, asked, processes)
        saved = last_epoch(unfinished)
        if len(set(gather_object([saved and Path(saved).name]))) > 1:
            raise ValueError("--resume: the machines have saved different epochs. Use --overwrite to start again.")
        seconds = trainer.train(resume_from_checkpoint=saved).metrics["train_runtime"]
        tuning, prediction = trainer.predict(validation), trainer.predict(test)
        if not (np.isfinite(prediction.predictions).all() and np.isfinite(tuning.predictions).all()):
            shutil.rmtree(unfinished, ignore_errors=True)
            raise ValueError(f"The training diverged with --lr {lr:g}, and nothing was written. Use a smaller one.")
        temperature, unsure_below = calibrate(*tuning[:2])
        with torch.no_grad():  # so that a plain softmax is calibrated wherever the model goes
            for parameter in model.get_submodule(head_name(model)).parameters():
                parameter /= temperature
        measured = metrics(prediction)
        if processes.is_main_process:
            result = unfinished / "result"
            shutil.rmtree(result, ignore_errors=True)
            stressed = stress(student.eval(), test)
            write_model(result, model.cpu(), processor, unsure_below)
            draw_pictures(result, trainer.state.log_history, prediction, splits["test"], stressed, temperature)
            facts = {"measured": measured, "theirs": theirs, "temperature": temperature, "stress": stressed}
            facts |= {"state": trainer.state, "size": train.size, "counts": counts, "command": command}
            model_card(splits["test"], prediction, model, asked, **facts).save(result / "README.md")
            if folder.exists():
                folder.rename(unfinished / "replaced")
            result.rename(folder)
    if processes.is_main_process:
        print(f"Test accuracy {measured['accuracy']:.4f} on {len(test)} photos. Model written to {folder}")
        if push_to_hub:
            push(folder, push_to_hub)
        if asking and asking.seconds > seconds / 2:
            print(f"The teacher took {asking.seconds / seconds:.0%} of the time of the training.")
        if max_steps:
            minutes, disk = (prepared + epochs * seconds) / share / 60, pixels * kept + 24 * model.num_parameters()
            needs = f"{minutes:.0f} minutes on this {asked.device}, and meanwhile {disk / 1e9:.1f} GB of disk"
            print(f"That was a trial. The whole run, {epochs} epochs of {steps} steps, would take about {needs}.")
        print(f"Look at it on a page: MOBILENET_MODEL={shlex.quote(str(folder))} python app.py")
    return model.cpu().eval(), measured


def write_model(folder: Path, model, processor, unsure_below: float) -> None:
    """Write a new folder that transformers, ONNX runtimes and, if it is timm's network, timm open."""
    from safetensors.torch import save_model

    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if hasattr(model, "timm_model"):  # whose names transformers prefixes, which timm does not read
        save_model(model.timm_model, str(folder / "model.safetensors"), {"format": "pt"})
        config["pretrained_cfg"]["num_classes"] = config["num_classes"]
    names = model.config.id2label  # in both forms, as timm reads one and transformers.js the other
    config |= {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    config["unsure_below"] = unsure_below  # the confidence below which an answer had better be "not sure"
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "onnx").mkdir()
    export_onnx(folder / "onnx" / "model.onnx", model, input_size(processor))


def export_onnx(file: Path, model, size: int) -> Path:
    """Write a model as ONNX, from pixel_values to logits, for any number of photos; ValueError if it answers otherwise."""
    import torch

    pixels = torch.rand(2, 3, size, size)
    how = {"input_names": ["pixel_values"], "output_names": ["logits"], "dynamo": False}
    how["dynamic_axes"] = {"pixel_values": {0: "photos"}, "logits": {0: "photos"}}
    with warnings.catch_warnings(action="ignore"), torch.no_grad():  # torch's, about tracing
        torch.onnx.export(model.eval(), (pixels[:1], {"return_dict": False}), file, **how)
        expected = model(pixels).logits.numpy()
    found = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels.numpy())[0]
    if (difference := abs(found - expected).max()) > 1e-3 * max(1, abs(expected).max()):
        raise ValueError(f"The logits of the ONNX file differ from torch's by up to {difference:.1g}.")
    return file


def command_line(asked: argparse.Namespace) -> str:
    """Return the command that repeats a run, with all defaults, as another version may change them."""
    words = ["python", "finetune.py"]
    if processes := os.environ.get("LOCAL_WORLD_SIZE"):
        machines = os.environ.get("GROUP_WORLD_SIZE", "1")
        words[:1] = ["torchrun", *["--nnodes", machines] * (machines != "1"), "--nproc_per_node", processes]
    for name, value in vars(asked).items():
        if value is not None and name not in ("resume", "overwrite", "push_to_hub"):
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def model_card(test, prediction, model, asked: argparse.Namespace, measured: dict, theirs: np.ndarray | None, **facts):
    """Return the model card, with the test split's numbers in its text and, for the Hub, as `model-index`."""
    (logits, labels, _), names, state = prediction, test.features["label"].names, facts["state"]
    right, is_timm = logits.argmax(1) == labels, hasattr(model, "timm_model")
    data, shared = str(asked.data_path).partition("@")[0], not Path(asked.data_path).is_dir()
    scores = {metric + " (macro)" * (metric != "accuracy"): value for metric, value in measured.items()}
    where = {"task_type": "image-classification", "dataset_type": data if shared else "imagefolder"}
    where |= {"dataset_name": Path(data).name, "dataset_split": "test"}
    architecture = Path(asked.model_name).name
    card_data = huggingface_hub.ModelCardData(
        license=asked.license,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", *["timm"] * is_timm, "onnx", "transformers.js"],
        datasets=[data] if shared else None,
        base_model=None if asked.model_name in NETWORKS or Path(asked.model_name).exists() else asked.model_name,
        model_name=architecture,
        eval_results=[
            huggingface_hub.EvalResult(metric_type=name.split()[0], metric_name=name, metric_value=value, **where)
            for name, value in scores.items()
        ],
    )
    repo = asked.push_to_hub or asked.checkpoints_path or f"checkpoints/{architecture}"
    start = START.get(asked.weights, f"from the weights in {asked.weights}")
    how = {"labels": range(len(names)), "target_names": names, "digits": 4, "zero_division": 0}
    return huggingface_hub.ModelCard.from_template(
        card_data,
        template_str=CARD,
        **facts,
        asked=asked,
        model=model,
        architecture=architecture,
        names=names,
        start=start + (f" and with {Path(asked.teacher).name} as its teacher" if asked.teacher else ""),
        best_epoch=round(state.best_global_step / state.max_steps * state.num_train_epochs),
        scores=scores,
        interval=binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson"),
        bins=BINS,
        ece=tuple(calibration_error(*confidences(logits, labels, value)) for value in (1.0, facts["temperature"])),
        comparison="" if theirs is None else compare(asked.baseline, theirs, right),
        per_class=classification_report(labels, logits.argmax(1), **how),
        stressed=min(STRESS_PHOTOS, len(labels)),
        worst=min(facts["stress"][1:], key=lambda row: row["right"]),
        fingerprint=fingerprint(test),
        versions=", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "timm", "datasets")),
        repo=repo,
        timm_source=is_timm and f"{'hf-hub' if asked.push_to_hub else 'local-dir'}:{repo}",
    )


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, for the use inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def ask_hub(call, problem: str, advice: str):
    """Return what `call()` returns, tried for about 20 seconds if the Hub is busy; else OSError in the given words."""

    def passing(error: BaseException) -> bool:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code == 429 or error.response.status_code >= 500
        cause = error.__cause__ or error.__context__
        return isinstance(error, TransportError) or (cause is not None and passing(cause))

    again = {"retry": retry_if_exception(passing), "wait": wait_exponential_jitter(), "stop": stop_after_attempt(5)}
    try:
        return Retrying(**again, reraise=True)(call)
    except Exception as error:
        raise OSError(f"{problem} ({first_line(error)}). {advice}") from error


def create_repo(repo_id: str) -> None:
    """Make sure that the Hub repo exists, private if it is new, and may be written to; OSError if not."""
    call = partial(huggingface_hub.create_repo, repo_id, private=True, exist_ok=True)
    advice = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there."
    ask_hub(call, f"--push_to_hub {repo_id} cannot be created or written to", advice)


def push(folder: Path, repo_id: str) -> None:
    """Upload the model folder in one commit; OSError if the Hub does not take it."""
    how = {"repo_id": repo_id, "folder_path": folder, "commit_message": "Upload the model"}
    problem = f"The model is complete in {folder}, but it could not be uploaded"
    advice = f"Upload it later with: hf upload {repo_id} {folder}"
    commit = ask_hub(partial(huggingface_hub.upload_folder, **how), problem, advice)
    print(f"Uploaded to {repo_id}, revision {commit.oid}")


def main(argv: list[str] | None = None) -> None:
    """Run the command line, whose options are what `finetune` takes."""
    about = {"description": __doc__.splitlines()[0], "epilog": f"Names of torchvision: {', '.join(NETWORKS)}"}
    about |= {"formatter_class": argparse.ArgumentDefaultsHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(prog="finetune.py", **about)
    for name, parameter in inspect.signature(finetune).parameters.items():
        kind, text = get_args(parameter.annotation)
        how = {"help": text, "required": parameter.default is parameter.empty}
        how["default"] = argparse.SUPPRESS if how["required"] else parameter.default
        if kind is bool:
            how["action"] = "store_true"
        elif get_origin(kind) is Literal:
            how["choices"] = get_args(kind)
        else:
            how |= {"metavar": "X", "type": next((one for one in (int, float) if one in (kind, *get_args(kind))), str)}
        parser.add_argument(f"--{name}", **how)
    arguments = sys.argv[1:] if argv is None else argv  # --batch-size=8 is --batch_size=8 too
    arguments = [re.sub("(?<=^--)[^=]+", lambda flag: flag[0].replace("-", "_"), argument) for argument in arguments]
    try:
        finetune(**vars(parser.parse_args(arguments)))
    except (OSError, ValueError) as error:
        sys.exit(f"finetune.py: error: {error}")
    except KeyboardInterrupt:
        print("\nfinetune.py: stopped. Add --resume to continue after the last whole epoch.", file=sys.stderr)
        sys.stdout.flush()
        os._exit(130)  # at once, as progress bars would be drawn once more behind this line


if __name__ == "__main__":
    main()
