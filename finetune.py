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
#   "timm>=1.0.20",
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
"""Fine-tune an image classifier on a dataset made by prep.py, and write a model folder, which is a model of the Hub.

    python finetune.py --data_path dataset --model_name mobilenet_v3_small
    python finetune.py --data_path dataset --max_steps 20 --checkpoints_path trial
    python finetune.py --data_path dataset --model_name resnet18 --epochs 5 --lr 5e-4 --push_to_hub you/pets
    python finetune.py --data_path dataset --model_name google/vit-base-patch16-224 --lr 1e-4
    python finetune.py --data_path dataset --weights none --epochs 30 --lr 2e-3 --resume
    torchrun --nproc_per_node 2 finetune.py --data_path dataset
    hf jobs uv run finetune.py --data_path you/pets-data --push_to_hub you/pets

A name of torchvision becomes timm's network of the same function, so transformers and timm open the folder. In a
notebook:

    from finetune import finetune
    model, metrics = finetune(data_path="dataset", model_name="mobilenet_v3_small", epochs=3)
"""

import argparse
import hashlib
import inspect
import io
import json
import math
import os
import random
import shlex
import shutil
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal, get_args, get_origin

import numpy as np
from PIL import Image, ImageFilter, ImageOps

# torchvision's networks: timm's name of each, and what makes that one the same function and train alike. Written out so
# that --help needs no torch; a test compares all of them with torchvision's.
NETWORKS = {
    "mobilenet_v2": ("mobilenetv2_100", {"drop_rate": 0.2}),
    "mobilenet_v3_large": ("mobilenetv3_large_100", {"bn_eps": 1e-3, "drop_rate": 0.2}),
    "mobilenet_v3_small": ("mobilenetv3_small_100", {"bn_eps": 1e-3, "drop_rate": 0.2}),
    **{f"resnet{depth}": (f"resnet{depth}", {}) for depth in (18, 34, 50, 101, 152)},
    **{f"vgg{depth}{bn}": (f"vgg{depth}{bn}", {"drop_rate": 0.5}) for depth in (11, 13, 16, 19) for bn in ("", "_bn")},
}
NEEDED = ("accelerate", "datasets", "matplotlib", "onnx", "openvino", "pandas", "sklearn", "timm", "transformers")
MetricName = Literal["accuracy", "f1", "precision", "recall", "roc_auc", "loss"]  # from f1 on means over the classes
START = {"none": "from scratch", "DEFAULT": "from pretrained weights"}
SPLITS = ("train", "validation", "test")
# Shares of the loss with a teacher: of the labels, of what it says of our classes, and of what it says of its own.
LABELS, OUR_CLASSES, ITS_CLASSES = 0.5, 0.5, 0.5
READING_PHOTOS = 20_000  # training photos from which it is learnt what the teacher says of our classes
STRESS_PHOTOS = 1000  # test photos that are also blurred, turned and so on
IMAGE_SIZE = 192  # of torchvision's networks
BINS = 15  # of the calibration error
MISTAKES = 24  # on the picture of the worst ones
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which torchvision's weights expect

CARD = """---
{{ card_data }}
---

# {{ architecture }}: {{ names|join(", ") }}

`{{ architecture }}` ({{ "timm's `" + model.config.architecture + "`, which is the same network" if timm_source else "of transformers" }}), trained by `finetune.py` on {{ counts.train|sum }} photos, {{ start }}. {{ "{:,}".format(model.num_parameters()) }} parameters, {{ "%.1f"|format(model.num_parameters() / 250000) }} MB.
A photo is scaled to {{ size }}x{{ size }} pixels, as `preprocessor_config.json` says.

## Results

The test split ({{ counts.test|sum }} photos) was not looked at before the last epoch; it was measured once, with the epoch that had the best validation {{ asked.monitor_metric_name }}: epoch {{ best_epoch }}, {{ "%.4f"|format(state.best_metric) }}. All but the accuracy are means over the classes (macro).
{% for name, value in metrics.items() %}
- {{ name }}{{ " (macro)" if name != "accuracy" }}: {{ "%.4f"|format(value) }}
{%- if name == "accuracy" %} (95 % interval {{ "%.4f to %.4f"|format(*interval) }}){% endif %}
{%- endfor %}

A confidence is the plain softmax of the logits. The temperature that fits the validation split best, {{ "%.3f"|format(temperature) }}, is divided into the last layer. Expected calibration error on the test split ({{ bins }} bins): {{ "%.4f without it, %.4f"|format(*ece) }} with it.
{{ comparison }}
```
{{ per_class }}
```

![Rows are the true classes](confusion_matrix.png)
![How often an answer of that confidence is right](reliability.png)
![Loss and validation metrics by epoch](learning_curves.png)
![The most confident mistakes](mistakes.png)

## Where it fails

{{ stressed }} test photos, made worse in one way at a time. Worst are photos {{ worst.photos }}: {{ "%.1f"|format(worst.right) }} % are answered right, and {{ "%.1f"|format(worst.wrong) }} % wrong with more than 90 % confidence.

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

On a page: `MOBILENET_MODEL={{ repo }} python app.py`. Any ONNX runtime takes `onnx/model.onnx`.

## Limits

It knows the classes above and nothing else: any photo is given one of them. The numbers hold for photos like those of the dataset.
"""


def load_splits(data_path: str):
    """Return the `DatasetDict` of a folder that prep.py wrote, or of the Hub (`owner/name` or `owner/name@revision`).

    OSError if it cannot be read, ValueError if its splits or columns are others.
    """
    from datasets import ClassLabel, DatasetDict, load_dataset, load_from_disk

    name, _, revision = data_path.partition("@")
    advice = f"Prepare it first: python prep.py --image_path {shlex.quote(data_path)} --dst_path dataset"
    call = partial(load_dataset, name, revision=revision or None)
    if Path(data_path).is_dir():
        call = partial(load_from_disk, data_path)
    problem = f"--data_path {data_path} is neither a folder that prep.py wrote nor a dataset that the Hub hands out"
    splits = ask_hub(call, problem, advice)
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
    """Return the preprocessing of evaluation and app: the whole photo to a size x size square, then mean and deviation."""
    from transformers import ViTImageProcessorPil  # Pillow's resizing, as in the app

    return ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=list(mean), image_std=list(std))


def input_size(processor) -> int:
    """Return the side of the square that a processor makes of a photo."""
    return processor(Image.new("RGB", (64, 64)), return_tensors="np")["pixel_values"].shape[-1]


def decode(row: dict, processor) -> dict[str, bytes]:
    """Return the `pixels` of a row's photo as evaluation sees them: uint8 of shape (size, size, 3)."""
    pixels = processor(rgb(row["image"]), do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return {"pixels": pixels.transpose(1, 2, 0).tobytes()}


class Photos:
    """A split for the Trainer: `pixels`, uint8 of shape (3, side, side), and `labels`.

    They are whole photos of the size of evaluation until `side` is set: then each is a view of that side, another one in
    each `epoch`, which depends on seed, epoch and index alone, so on no process and no interruption. `decoded` is a file
    of the pixels that all processes of a machine map; without it each photo is decoded every time.
    """

    side, epoch = None, 0

    def __init__(self, part, processor, seed: int = 0, decoded: Path | None = None):
        self.labels = part.with_format("numpy", columns=["label"])[:]["label"]
        self.decode, self.seed, self.size = partial(decode, processor=processor), seed, input_size(processor)
        if decoded:
            how = {"num_proc": os.cpu_count() if len(part) > 2000 else None, "cache_file_name": str(decoded)}
            part = part.map(self.decode, remove_columns=part.column_names, desc="Decoding photos", **how)
        self.part = part

    def photo(self, index: int) -> Image.Image:
        """Return a whole photo."""
        row = self.part[int(index)]
        pixels = row["pixels"] if "pixels" in row else self.decode(row)["pixels"]
        return Image.frombytes("RGB", (self.size, self.size), pixels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        photo, row = self.photo(index), {"labels": self.labels[index]}
        if self.side:
            plain, photo = vary(photo, self.side, random.Random(f"{self.seed} {self.epoch} {index}"))
            row["plain"] = np.array(plain)
        return {"pixels": np.array(photo), **row}

    def __getitems__(self, indices: list[int]) -> list[dict]:
        with ThreadPoolExecutor(own_cores()) as pool:
            return list(pool.map(self.__getitem__, indices))


def batch(rows: list[dict]) -> dict:
    """Return `labels` (N) and photos (N, 3, side, side), in the order of channels_last, in which training is quicker."""
    import torch

    found = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    return {name: found[name].permute(0, 3, 1, 2) for name in found if name != "labels"} | {"labels": found["labels"]}


def scale(pixels, processor):
    """Return pixels (N, 3, side, side) of uint8 as the processor scales them, in float."""
    import torch

    seen = torch.tensor([processor.image_mean, processor.image_std], device=pixels.device)
    mean, std = seen.view(2, 3, 1, 1)
    return (pixels * (processor.rescale_factor / std)).sub_(mean / std)


def jpeg(photo: Image.Image, quality: int) -> Image.Image:
    """Return a photo as it is after being saved as JPEG of a quality."""
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def vary(photo: Image.Image, side: int, dice: random.Random) -> tuple[Image.Image, Image.Image]:
    """Return a view of a training photo, side x side, plain and as strangers' photos may be.

    It is a part of it, somewhat stretched; then of as little as 64 pixels, JPEG quality 10, blurred by up to 4 px of 224;
    mirrored, turned; with other colours, down to a tenth of the light. Low resolution and JPEG also hide from which
    source a photo is: a network that sees that learns the source instead of the thing.
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
    if dice.random() < 0.25:
        photo = photo.filter(ImageFilter.GaussianBlur(dice.uniform(0, 4) * side / 224))
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


def training_size(size: int, progress: float) -> int:
    """Return the side of the training photos, a multiple of 16, at a share of all epochs: from size / 2 to 5/6 of size.

    Early epochs learn as much from small photos, in half the time (Tan and Le 2021, EfficientNetV2). Parts of photos show
    things larger than whole ones; at 5/6 of the size as large (Touvron et al. 2019, Fixing the train-test resolution).
    """
    return max(32, round(size * (3 + 2 * min(1.0, progress / 0.75)) / 6 / 16) * 16)


def by_epoch(train: Photos, trial: bool):
    """Return the callback that sets views and size of each epoch; a trial has the size whose time is that of the mean."""
    from accelerate.utils import broadcast
    from transformers import TrainerCallback

    class ByEpoch(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **_):
            train.epoch = round(state.epoch)
            train.side = training_size(train.size, 0.5 if trial else state.epoch / args.num_train_epochs)

        def on_epoch_end(self, args, state, control, model=None, **_):
            broadcast(list(model.buffers()))  # each process has its own means of batches, and one saves them

    return ByEpoch()


def load_classifier(flag: str, source: str, **labels) -> tuple:
    """Return an image classifier of the Hub or of a folder, its processor, and the names of the weights that it lacks.

    ValueError if transformers cannot load it from safetensors.
    """
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    safely = {"trust_remote_code": False}
    how = {"dtype": torch.float32, "use_safetensors": True, "ignore_mismatched_sizes": bool(labels), **safely}
    try:
        config = AutoConfig.from_pretrained(source, **labels, **safely)
        load = partial(AutoModelForImageClassification.from_pretrained, output_loading_info=True, **how)
        model, found = load(source, config=config)
        processor = AutoImageProcessor.from_pretrained(source, backend="pil", **safely)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        reason = first_line(error)
        raise ValueError(
            f"--{flag} {source}: transformers loads no image classifier of this name: {reason}."
        ) from error
    if not hasattr(processor, "image_mean"):  # timm's, which crops in its own way
        seen = config.pretrained_cfg
        processor = image_processor(seen["input_size"][-1], seen["mean"], seen["std"])
    return model.eval(), processor, found["missing_keys"]


def torchvision_weights(network, model_name: str, weights: str) -> None:
    """Give timm's network the weights, named as in torchvision or in timm, all but the last layer, which stays new.

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
    own = network.state_dict()
    renamed = dict(zip(theirs, own, strict=True))
    classifier = {renamed[name] for name in theirs if name.startswith(("classifier.", "fc."))}
    head = {f"{head_name(network)}.{name}" for name in ("weight", "bias")}
    given = {name.removeprefix("timm_model."): tensor for name, tensor in given.items()}
    given = {renamed.get(name, name): tensor for name, tensor in given.items()}
    new = head if (classifier - head) & set(given) else classifier
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # which older files lack
    unlike = sorted((set(own) - new - counters) ^ (set(given) - head - counters))
    unlike = unlike or [name for name in set(given) - head if given[name].numel() != own[name].numel()]
    if unlike:
        raise ValueError(f"--weights {weights} is not a {model_name}: {unlike[0]} is missing, or of another network.")
    for name in set(given) - head:
        if not given[name].isfinite().all():
            raise ValueError(f"--weights {weights} cannot be used: {name} holds numbers that are not finite.")
        own[name].copy_(given[name].reshape(own[name].shape))
    if new != head:
        print(f"{weights} has no classifier: {', '.join(sorted(new))} start new.")


def build_model(model_name: str, names: list[str], weights: str, size: int | None) -> tuple:
    """Return the transformers model with a new last layer for the classes, the rest from `weights`, and its processor.

    A name of torchvision becomes timm's network, wrapped. OSError or ValueError if anything cannot be loaded.
    """
    import torch
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    numbers = {name: index for index, name in enumerate(names)}
    labels = {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": numbers}
    if model_name not in NETWORKS:
        source = model_name if weights in START else weights
        flag = "model_name" if weights in START else "weights"
        model, processor, absent = load_classifier(flag, source, **labels)
        head = head_name(model)
        if weights == "none":
            model, absent = type(model)(model.config), []
        model.get_submodule(head).reset_parameters()
        bad = [name for name in absent if not name.startswith(f"{head}.")]
        bad += [name for name, value in model.state_dict().items() if not value.isfinite().all()]
        if bad:
            raise ValueError(f"--model_name {model_name}: its weights lack {bad[0]}, or it is not finite.")
        return model, image_processor(size, processor.image_mean, processor.image_std) if size else processor
    size = size or (224 if model_name.startswith("vgg") else IMAGE_SIZE)
    architecture, arguments = NETWORKS[model_name]
    config = TimmWrapperConfig(architecture=architecture, model_args=arguments, **labels)
    model = TimmWrapperForImageClassification(config)
    network = model.timm_model
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
    if weights != "none":
        torchvision_weights(network, model_name, weights)
    # How timm is to prepare a photo: as the processor does.
    seen = {"input_size": [3, size, size], "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    kept = {name: network.pretrained_cfg[name] for name in ("pool_size", "first_conv", "classifier")}
    config.pretrained_cfg = {**kept, **seen, "fixed_input_size": False, "mean": MEAN, "std": STD}
    return model, image_processor(size)


def head_name(model) -> str:
    """Return the name of the model's last linear layer, whose outputs are the logits."""
    return [name for name, module in model.named_modules() if hasattr(module, "in_features")][-1]


class Teacher:
    """An image classifier of any classes that is asked about the very view of a photo that the student sees.

    Beyer et al. 2022 (Knowledge distillation: A good teacher is patient and consistent). It sees the view plain: blurred or
    upside down it would know it less well, and the student is to answer as if it were plain. On a CPU it runs in OpenVINO,
    many times as quick as in eager torch; on a GPU in half precision. ValueError if transformers cannot load it.
    """

    def __init__(self, source: str, device: str):
        import openvino

        model, self.processor, _ = load_classifier("teacher", source)
        self.size, self.device, self.classes = input_size(self.processor), device, model.config.num_labels
        self.times, self.read = [], None
        if device == "cuda":
            model = model.requires_grad_(False).half().to(device)
            self.network = lambda pixels: model(pixels.half()).logits.float().cpu().numpy()
            return
        with TemporaryDirectory() as folder:
            file = export_onnx(Path(folder, "teacher.onnx"), model, self.size)
            network = openvino.compile_model(file, "CPU", {"INFERENCE_NUM_THREADS": own_cores()})
        self.network = lambda pixels: network(pixels.contiguous().cpu().numpy())[0]

    def logits(self, pixels) -> np.ndarray:
        """Return its logits, shape (N, its classes), of views: uint8 of shape (N, 3, side, side)."""
        from torch.nn.functional import interpolate

        start = time.perf_counter()
        pixels = pixels.float() if self.device == "cuda" else pixels  # CUDA resizes no bytes
        pixels = interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        logits = self.network(scale(pixels, self.processor))
        self.times += [start, time.perf_counter()]
        if self.read and len(self.times) == 22 and os.environ.get("RANK", "0") == "0":
            share = sum(self.times[1:21:2]) - sum(self.times[0:20:2])
            if (share := share / (self.times[20] - self.times[0])) > 0.5:
                print(f"The teacher takes {share:.0%} of the time of each step.")
        return logits

    def learn_our_classes(self, train: Photos, names: list[str], processes) -> None:
        """Fit how its logits are read for our classes: a multinomial logistic regression, on training photos as they are."""
        from accelerate.utils import gather_object
        from sklearn.linear_model import LogisticRegression
        from tqdm.auto import tqdm

        chosen = np.random.default_rng(0).permutation(len(train))[:READING_PHOTOS]
        own = chosen[processes.process_index :: processes.num_processes]
        starts = tqdm(range(0, len(own), 32), "Asking the teacher", disable=not processes.is_main_process)
        views = (batch(train.__getitems__(own[start : start + 32]))["pixels"] for start in starts)
        logits = gather_object([self.logits(pixels.to(self.device)) for pixels in views])
        labels = gather_object([train.labels[own]])
        regression = LogisticRegression(C=0.01, max_iter=200).fit(np.concatenate(logits), np.concatenate(labels))

        def read(logits: np.ndarray) -> np.ndarray:
            found = np.zeros((len(logits), len(names)), np.float32)
            found[:, regression.classes_] = regression.predict_proba(logits)
            return found

        self.read, self.times = read, []


def make_student(model, processor, class_weights, teacher: Teacher | None):
    """Return the model as the Trainer wants it: `pixels` (uint8) and `labels` in, `loss` and `logits` out.

    With a teacher the loss has three parts: the labels, what the teacher says of our classes, and what it says of its
    own, which a second head on what the last layer is given learns (Hinton et al. 2015, Distilling the Knowledge in a
    Neural Network). That head is not part of the model; the features profit.
    """
    import torch
    from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

    def divergence(logits, wanted):
        return kl_div(log_softmax(logits, 1), wanted, reduction="batchmean")

    class Student(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = model
            self.register_buffer("class_weights", class_weights, persistent=False)
            self.imitation = torch.nn.Linear(head.in_features, teacher.classes) if teacher else None

        def forward(self, pixels, labels, plain=None):
            features = []
            with head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0])):
                logits = self.network(scale(pixels, processor)).logits
            loss = cross_entropy(logits, labels, self.class_weights)
            if teacher and self.training:
                theirs = teacher.logits(plain)
                ours, theirs = (torch.from_numpy(found).to(logits) for found in (teacher.read(theirs), theirs))
                loss = LABELS * loss + OUR_CLASSES * divergence(logits, ours)
                loss = loss + ITS_CLASSES * divergence(self.imitation(features[0]), softmax(theirs, 1))
            return {"loss": loss, "logits": logits}

    head = model.get_submodule(head_name(model))
    return Student()


def optimizer(model, lr: float):
    """Return AdamW (Loshchilov and Hutter 2019), whose weight decay spares biases and the scales of normalisation."""
    import torch

    parameters = list(model.parameters())
    decayed = {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": 0.05}
    spared = {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, spared], lr=lr, fused=True)


def keep_freed_memory() -> None:
    """Have glibc keep the large blocks that a training step frees, for the next step, instead of returning each."""
    import ctypes

    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None:
        mallopt(-4, 0)  # M_MMAP_MAX: no block is a mapping of its own, to be cleared page by page each time
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def metrics(prediction) -> dict[str, float]:
    """Return accuracy and the class means of precision, recall, F1 and ROC AUC, each 0 to 1, of a Trainer's prediction."""
    from sklearn.metrics import classification_report, roc_auc_score

    logits, labels = np.nan_to_num(prediction.predictions), prediction.label_ids
    report = classification_report(labels, logits.argmax(1), output_dict=True, zero_division=0)
    means = {name.removesuffix("-score"): report["macro avg"][name] for name in ("precision", "recall", "f1-score")}
    auc = roc_auc_score(np.eye(logits.shape[1])[labels], probabilities(logits))
    return {"accuracy": report["accuracy"], **means, "roc_auc": float(auc)}


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the softmax of the logits over the temperature, shape (photos, classes)."""
    from scipy.special import softmax

    return softmax(logits / temperature, axis=1)


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the least cross-entropy (Guo et al. 2017, On Calibration of Modern Neural Networks)."""
    from sklearn.metrics import log_loss

    def loss(temperature: float) -> float:
        return log_loss(labels, probabilities(logits, temperature), labels=range(logits.shape[1]))

    return min(np.geomspace(0.05, 20, 600), key=loss)


def confidences(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence of each answer, and whether it is right."""
    certain = probabilities(logits, temperature)
    return certain.max(1), certain.argmax(1) == labels


def unsure_below(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the confidence that 95 % of the photos which are answered right have at least; 0 if none is."""
    return float(np.quantile(confidence[right], 0.05)) if right.any() else 0.0


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error."""
    from sklearn.calibration import calibration_curve

    correct, mean = calibration_curve(right, confidence, n_bins=BINS)
    photos = np.histogram(confidence, BINS, (0, 1))[0]
    return float(np.average(abs(correct - mean), weights=photos[photos > 0]))


def worsen(photo: Image.Image) -> dict[str, Image.Image]:
    """Return a square photo as it is, and made worse in one way at a time."""
    side = photo.width
    return {
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


def stress(student, test: Photos) -> list[dict]:
    """Return how many per cent of test photos made worse are answered right, and how many wrong but surely."""
    import torch
    from tqdm.auto import tqdm

    found, device = [], student.class_weights.device
    for index in tqdm(np.random.default_rng(0).permutation(len(test))[:STRESS_PHOTOS], "Making test photos worse"):
        worse = worsen(test.photo(index))
        rows = batch([{"pixels": np.array(photo), "labels": test.labels[index]} for photo in worse.values()])
        with torch.inference_mode():
            logits = student(**{name: value.to(device) for name, value in rows.items()})["logits"].float().cpu().numpy()
        confidence, right = confidences(logits, test.labels[index])
        found.append([right, ~right & (confidence > 0.9)])
    right, wrong = 100 * np.mean(found, 0)
    return [{"photos": name, "right": right[place], "wrong": wrong[place]} for place, name in enumerate(worse)]


def load_baseline(source: str, names: list[str]):
    """Return transformers' pipeline of another model; ValueError if it cannot be loaded or answers with other labels."""
    from transformers import pipeline

    model, processor, _ = load_classifier("baseline", source)
    if set(model.config.id2label.values()) != set(names):
        raise ValueError(f"--baseline {source} has other labels than the dataset: {', '.join(model.config.label2id)}.")
    return pipeline("image-classification", model=model, image_processor=processor)


def compare(baseline, source: str, part, right: np.ndarray) -> str:
    """Return the sentence on a model and the baseline by McNemar's exact test; `right`: whether it answers each photo so."""
    from scipy.stats import binomtest

    names = part.features["label"].names
    answers = baseline((rgb(row["image"]) for row in part), top_k=1, batch_size=32)
    theirs = np.array([one[0]["label"] == names[label] for one, label in zip(answers, part["label"], strict=True)])
    better, worse = int((right & ~theirs).sum()), int((theirs & ~right).sum())
    p = binomtest(better, better + worse).pvalue if better + worse else 1.0
    outcome = f"this one is {'better' if better > worse else 'worse'}" if p < 0.05 else "no difference is shown"
    return (
        f"\nOn the same test photos `{source}` is right on {theirs.mean():.2%} and this model on {right.mean():.2%}: {better} "
        f"only this one answers right, {worse} only the other. By McNemar's exact test {outcome} (p = {p:.3g}).\n"
    )


def fingerprint(part) -> str:
    """Return the SHA-256 of a split's labels and image files, in order, so that two results can be told apart."""
    import datasets

    digest = hashlib.sha256()
    for row in part.cast_column("image", datasets.Image(decode=False)):
        content = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        digest.update(repr((row["label"], len(content))).encode() + content)
    return digest.hexdigest()


def draw_pictures(folder: Path, log_history: list[dict], prediction, test, stressed: list, temperature: float) -> None:
    """Write learning curves, confusion matrix, reliability, stress table and the most confident mistakes as PNG files."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import pandas as pd
    from sklearn.calibration import CalibrationDisplay
    from sklearn.metrics import ConfusionMatrixDisplay

    def save(figure, name: str) -> None:
        figure.savefig(folder / f"{name}.png", bbox_inches="tight", dpi=80, metadata={"Software": None})
        plt.close(figure)

    names, logits, labels = test.features["label"].names, prediction.predictions, prediction.label_ids
    log = pd.DataFrame(log_history).groupby("epoch").first()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5))
    log.filter(regex="^(eval_)?loss$").plot(ax=left, ylabel="loss")
    log.filter(regex="^eval_(accuracy|f1|precision|recall|roc_auc)$").plot(ax=right, ylabel="validation")
    save(figure, "learning_curves")

    few = len(names) <= 20
    figure, axes = plt.subplots(figsize=(5, 4.5) if few else (12, 12))
    how = {"display_labels": names if few else None, "include_values": few, "xticks_rotation": "vertical"}
    how |= {"labels": range(len(names)), "cmap": "Blues", "ax": axes}
    ConfusionMatrixDisplay.from_predictions(labels, logits.argmax(1), **how)
    save(figure, "confusion_matrix")

    figure, axes = plt.subplots(figsize=(4.5, 4))
    for value in (1.0, temperature):
        confidence, right = confidences(logits, labels, value)
        CalibrationDisplay.from_predictions(right, confidence, n_bins=BINS, name=f"temperature {value:.2f}", ax=axes)
    axes.set(xlabel="confidence", ylabel="share answered right")
    save(figure, "reliability")

    bars = pd.DataFrame(stressed).rename(columns={"wrong": "wrong with more than 90 % confidence"})[::-1]
    save(bars.plot.barh(x="photos", xlabel="per cent", ylabel="", figsize=(7, 5)).figure, "stress")

    wrong = [int(index) for index in confidence.argsort()[::-1] if not right[index]][:MISTAKES]
    figure, grid = plt.subplots(4, 6, figsize=(12, 10))
    for axes in grid.flat:
        axes.axis("off")
    for axes, index in zip(grid.flat, wrong):  # noqa: B905 - there may be fewer
        axes.imshow(rgb(test[index]["image"]))
        answer = f"{names[labels[index]]}, called {names[logits[index].argmax()]}\n{confidence[index]:.0%}"
        axes.set_title(answer, fontsize=8, parse_math=False)
    save(figure, "mistakes")


def own_cores() -> int:
    """Return how many cores of this machine there are for each of the run's processes on it."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def check_options(asked: dict) -> None:
    """Raise ValueError if an argument of `finetune` is out of its range, or something is not installed that it needs."""
    for name in ("epochs", "batch_size", "lr"):
        if asked[name] <= 0:
            raise ValueError(f"--{name} {asked[name]:g} must be greater than 0.")
    smallest = 224 if asked["model_name"].startswith("vgg") else 32  # a VGG stretches less, which ONNX cannot express
    if (size := asked["image_size"]) is not None and size < smallest:
        raise ValueError(f"--image_size {size} is too small: {asked['model_name']} needs {smallest} or more.")
    needed = {*NEEDED, asked["report_to"]} - {"none"}
    if missing := " ".join(sorted(name for name in needed if not find_spec(name))):
        raise ValueError(f"Not installed: {missing}. Run: pip install -r requirements.txt {missing}")


def check_output(folder: Path, unfinished: Path, command: str, overwrite: bool, resume: bool) -> None:
    """Raise OSError or ValueError if a model or an unfinished run is there that is neither replaced nor gone on with."""
    finished, begun = (folder / "config.json").is_file(), unfinished / "command.txt"
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not finished):
        raise FileExistsError(f"--checkpoints_path {folder} is not empty, and no model. Choose another folder.")
    if finished and not (overwrite or (resume and unfinished.exists())):
        advice = f"To train on from it, add --weights {folder} and choose another; to replace it, add --overwrite."
        raise FileExistsError(f"--checkpoints_path {folder} is not empty: a run was finished there. {advice}")
    if resume and begun.is_file() and begun.read_text() != command:
        advice = f"Repeat this one: {begun.read_text()}"
        raise ValueError(f"--resume: the run in {unfinished} was begun by another command. {advice}")
    if unfinished.exists() and not (overwrite or resume):
        advice = "Add --resume to continue it, or --overwrite to start anew."
        raise ValueError(f"A run was stopped before it was done, and its epochs are in {unfinished}. {advice}")


def last_epoch(unfinished: Path) -> str | None:
    """Return the folder of the last epoch that a run has saved whole: trainer_state.json is written last."""
    states = unfinished.glob("checkpoint-*/trainer_state.json")
    whole = [state.parent for state in states if state.read_text().endswith("}\n")]
    return str(max(whole, key=lambda folder: int(folder.name.split("-")[1]))) if whole else None


def finetune(
    *,
    data_path: Annotated[str | Path, "folder written by prep.py, or owner/name or owner/name@revision on the Hub"],
    model_name: Annotated[str, "classifier of the Hub or in a folder, or a name below"] = "mobilenet_v3_small",
    checkpoints_path: Annotated[str | Path | None, "model folder; if not given, checkpoints/NAME of the model"] = None,
    overwrite: Annotated[bool, "replace a model, or an unfinished run, that is already there"] = False,
    resume: Annotated[bool, "go on after the last whole epoch of a run that was stopped, if there is one"] = False,
    weights: Annotated[str, "DEFAULT: pretrained; none: from scratch; or a safetensors file or its folder"] = "DEFAULT",
    teacher: Annotated[str | None, "image classifier of any classes, on the Hub or in a folder, to learn from"] = None,
    baseline: Annotated[str | None, "model, on the Hub or in a folder, that the card compares the new one with"] = None,
    nclasses: Annotated[int | None, "number of classes; checked against the data, which decides"] = None,
    image_size: Annotated[
        int | None, "pixels of a photo's side; if not given, 192, VGG 224, or the Hub model's"
    ] = None,
    epochs: Annotated[int, "passes over the training photos"] = 3,
    max_steps: Annotated[int | None, "a trial of so many steps, which says what the whole run would take"] = None,
    early_stopping: Annotated[int, "stop after so many epochs without a better one; 0: never"] = 0,
    batch_size: Annotated[int, "photos per step, of all processes"] = 64,
    lr: Annotated[float, "highest learning rate; it warms up and falls along a cosine"] = 1e-3,
    class_weights: Annotated[Literal["auto", "none"], "auto: the loss counts rare classes more, by a root"] = "auto",
    monitor_metric_name: Annotated[MetricName, "validation metric that decides which epoch is kept"] = "accuracy",
    seed: Annotated[int, "the same seed gives the same weights on the same machine"] = 42,
    device: Annotated[Literal["auto", "cuda", "mps", "cpu"], "auto takes the first of the others there is"] = "auto",
    cache_gb: Annotated[float, "disk for decoded photos; more than that are decoded anew in each epoch"] = 20.0,
    report_to: Annotated[Literal["none", "trackio", "tensorboard", "wandb"], "where live curves are drawn"] = "none",
    license: Annotated[str, "what the card says of the licence, such as apache-2.0"] = "other",
    push_to_hub: Annotated[str | None, "also upload the model to this repo, private if it is new"] = None,
) -> tuple:
    """Train, keep the best epoch, calibrate it, measure it on the test split, write the model folder.

    Returns the calibrated transformers model on the CPU in evaluation mode, and the test split's metrics (each 0 to 1).
    OSError or ValueError with one sentence that says what is wrong; nothing is left at `checkpoints_path` then.
    """
    asked = dict(locals())
    check_options(asked)
    command = command_line(asked)
    folder = Path(checkpoints_path or Path("checkpoints") / Path(model_name).name)
    machine = os.environ.get("GROUP_RANK", "0")  # each keeps epochs of its own, whether or not they share a disk
    unfinished = folder.with_name(f".{folder.name}.unfinished" + (f"-{machine}" if machine != "0" else ""))
    check_output(folder, unfinished, command, overwrite, resume)
    if "LOCAL_RANK" not in os.environ:  # one process takes one GPU; the Trainer would multiply the batch by all of them
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    splits = load_splits(str(data_path))
    names = splits["train"].features["label"].names
    if nclasses not in (None, len(names)):
        raise ValueError(f"--nclasses {nclasses} contradicts the dataset, which has {len(names)}: {', '.join(names)}.")
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object
    from sklearn.utils.class_weight import compute_class_weight
    from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = next(name for name in there if there[name]) if device == "auto" else device
    if not there[device]:
        raise ValueError(f"--device {device} is not available here.")
    # However long one process takes, the others wait; if it ends, torchrun ends them.
    processes = PartialState(cpu=device == "cpu", timeout=timedelta(days=30))
    if batch_size % processes.num_processes:
        raise ValueError(f"--batch_size {batch_size} cannot be shared among {processes.num_processes} processes.")
    if device == "cpu":
        keep_freed_memory()
    set_seed(seed)  # before the network is made: the new layers start from random numbers
    model, processor = build_model(model_name, names, weights, image_size)
    rival = load_baseline(baseline, names) if baseline else None
    asking = Teacher(teacher, device) if teacher else None
    if push_to_hub and processes.is_main_process:
        create_repo(push_to_hub)  # now, so that a missing login does not show only after the training
    whole = {split: len(splits[split]) for split in SPLITS}
    if max_steps:
        for split, part in splits.items():
            splits[split] = part.shuffle(seed=seed).select(range(min(len(part), max_steps * batch_size)))
    processes.wait_for_everyone()  # until all have made sure that they can begin
    try:
        if processes.is_local_main_process:
            if not (resume and (unfinished / "command.txt").is_file()):
                shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True, exist_ok=True)
            (unfinished / "command.txt").write_text(command)
        start, pixels = time.perf_counter(), 3 * input_size(processor) ** 2 * sum(whole.values())
        decoded = {split: unfinished / f"{split}.arrow" if pixels <= cache_gb * 1e9 else None for split in SPLITS}
        with processes.local_main_process_first():
            parts = [Photos(splits[split], processor, seed, decoded[split]) for split in SPLITS]
        train, validation, test = parts
        if asking:
            asking.learn_our_classes(train, names, processes)
        prepared = time.perf_counter() - start
        rarity = torch.ones(len(names))
        if class_weights == "auto":  # without the root a network calls common classes rare
            present = np.unique(train.labels)
            balanced = compute_class_weight("balanced", classes=present, y=train.labels)
            rarity[present] = torch.from_numpy(balanced**0.5).float()
        student = make_student(model, processor, rarity, asking)
        steps = -(-len(train) // batch_size)
        stopping = [EarlyStoppingCallback(early_stopping)] if early_stopping else []
        trainer = Trainer(
            model=student,
            optimizers=(optimizer(student, lr), None),
            args=TrainingArguments(
                output_dir=str(unfinished),
                num_train_epochs=epochs,
                max_steps=max_steps or -1,
                per_device_train_batch_size=batch_size // processes.num_processes,
                per_device_eval_batch_size=batch_size,
                learning_rate=lr,
                lr_scheduler_type="cosine",
                # A tenth of all steps, rounded down: the first one of a warm-up changes nothing, and may be the only one.
                warmup_steps=(max_steps or epochs * steps) // 10,
                max_grad_norm=0,
                **dict.fromkeys(("eval_strategy", "logging_strategy", "save_strategy"), "epoch"),
                save_total_limit=1,
                save_on_each_node=True,
                load_best_model_at_end=True,
                metric_for_best_model=monitor_metric_name,
                greater_is_better=monitor_metric_name != "loss",
                fp16=device == "cuda",
                ddp_find_unused_parameters=False,
                dataloader_num_workers=4 * (device == "cuda"),  # on a CPU the threads of `Photos` do as well
                remove_unused_columns=False,
                use_cpu=device == "cpu",
                seed=seed,
                report_to=report_to,
            ),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=batch,
            compute_metrics=metrics,
            callbacks=[by_epoch(train, bool(max_steps)), *stopping],
        )
        saved = last_epoch(unfinished)
        if len(set(gather_object([saved and Path(saved).name]))) > 1:
            raise ValueError("--resume: the machines have saved different epochs. Use --overwrite to start anew.")
        seconds = trainer.train(resume_from_checkpoint=saved).metrics["train_runtime"]
        tuning, prediction = trainer.predict(validation), trainer.predict(test)
        if not (np.isfinite(prediction.predictions).all() and np.isfinite(tuning.predictions).all()):
            shutil.rmtree(unfinished, ignore_errors=True)
            raise ValueError(f"The training went to infinity with --lr {lr:g}; nothing was written. Use a smaller one.")
    except BaseException as error:
        if processes.is_local_main_process and not last_epoch(unfinished):  # else it is kept for --resume
            shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            advice = f"Try --batch_size {max(1, batch_size // 2)} or a smaller --image_size."
            raise ValueError(
                f"The memory of this {device} is too small for --batch_size {batch_size}. {advice}"
            ) from error
        raise
    # Divided into the last layer, so that a plain softmax is calibrated wherever the model goes.
    temperature = best_temperature(tuning.predictions, tuning.label_ids)
    with torch.no_grad():
        for parameter in model.get_submodule(head_name(model)).parameters():
            parameter /= temperature
    measured = metrics(prediction)
    if processes.is_main_process:
        stressed = stress(student.eval(), test)
        _, right = confidences(prediction.predictions, prediction.label_ids)
        comparison = compare(rival, baseline, splits["test"], right) if rival else ""
        result = unfinished / "result"
        shutil.rmtree(result, ignore_errors=True)
        threshold = unsure_below(*confidences(tuning.predictions, tuning.label_ids, temperature))
        write_model(result, model.cpu(), processor, threshold)
        draw_pictures(result, trainer.state.log_history, prediction, splits["test"], stressed, temperature)
        counts = [np.bincount(part.labels, minlength=len(names)).tolist() for part in parts]
        facts = {"state": trainer.state, "metrics": measured, "temperature": temperature, "comparison": comparison}
        facts |= {"stress": stressed, "size": train.size, "counts": dict(zip(SPLITS, counts, strict=True))}
        model_card(splits["test"], prediction, model, asked, **facts).save(result / "README.md")
        if folder.exists():
            folder.rename(unfinished / "replaced")
        result.rename(folder)
        print(f"Test accuracy {measured['accuracy']:.4f} on {len(test)} photos. Model written to {folder}")
        if push_to_hub:
            push(folder, push_to_hub)
        if max_steps:
            grown = sum(whole.values()) / sum(map(len, parts))
            steps, evaluation = -(-whole["train"] // batch_size), trainer.state.log_history[-2]["eval_runtime"]
            seconds = grown * prepared + epochs * ((seconds - evaluation) * steps / max_steps + grown * evaluation)
            disk = pixels * bool(decoded["train"]) + 24 * model.num_parameters()
            needs = f"about {seconds / 60:.0f} minutes on this {device}, and meanwhile {disk / 1e9:.1f} GB of disk"
            print(f"That was a trial. The whole run, {epochs} epochs of {steps} steps, would take {needs}.")
        print(f"Look at it on a page: MOBILENET_MODEL={shlex.quote(str(folder))} python app.py")
    processes.wait_for_everyone()
    if processes.is_local_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    return model.cpu().eval(), measured


def write_model(folder: Path, model, processor, unsure_below: float) -> None:
    """Write a new folder that transformers, ONNX runtimes and, if it is timm's network, timm open.

    `unsure_below` goes into the config: the confidence below which an answer had better be "not sure".
    """
    from safetensors.torch import save

    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if hasattr(model, "timm_model"):  # whose names transformers prefixes, which timm does not read
        tensors = {name: tensor.contiguous() for name, tensor in model.timm_model.state_dict().items()}
        (folder / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
        config["pretrained_cfg"]["num_classes"] = config["num_classes"]
    names = model.config.id2label  # in both forms, as timm reads one and transformers.js the other
    config |= {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    file.write_text(json.dumps({**config, "unsure_below": unsure_below}, indent=2) + "\n", encoding="utf-8")
    (folder / "onnx").mkdir()
    export_onnx(folder / "onnx" / "model.onnx", model, input_size(processor))


def export_onnx(file: Path, model, size: int) -> Path:
    """Write a model as ONNX, from pixel_values to logits, both of any number of photos; ValueError if it answers otherwise."""
    import openvino
    import torch

    pixels = torch.rand(2, 3, size, size)
    names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    anyhow = {"dynamic_axes": {"pixel_values": {0: "photos"}, "logits": {0: "photos"}}, "dynamo": False}
    with warnings.catch_warnings(action="ignore"), torch.no_grad():  # torch's, about tracing
        torch.onnx.export(model.eval(), (pixels[:1], {"return_dict": False}), file, **names, **anyhow)
        expected = model(pixels).logits.numpy()
    found = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels.numpy())[0]
    if (difference := abs(found - expected).max()) > 1e-3 * max(1, abs(expected).max()):
        raise ValueError(f"The logits of the ONNX file differ from torch's by up to {difference:.1g}.")
    return file


def command_line(asked: dict) -> str:
    """Return the command that trains what `finetune` was asked for, with the defaults, which another version may change."""
    words = ["python"]
    if processes := os.environ.get("LOCAL_WORLD_SIZE"):
        machines = os.environ.get("GROUP_WORLD_SIZE", "1")
        words = ["torchrun", *(["--nnodes", machines] if machines != "1" else []), "--nproc_per_node", processes]
    words.append("finetune.py")
    for name, value in asked.items():
        if value is not None and value is not False and name not in ("resume", "overwrite", "push_to_hub"):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(words)


def model_card(test, prediction, model, asked: dict, **facts):
    """Return the model card, with the test split's numbers in its text and, for the Hub, as `model-index`.

    `prediction` is the Trainer's, not calibrated; `asked` the arguments of `finetune`; `facts` what the text also names.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData
    from scipy.stats import binomtest
    from sklearn.metrics import classification_report

    names, model_name = test.features["label"].names, asked["model_name"]
    logits, labels = prediction.predictions, prediction.label_ids
    data, shared = str(asked["data_path"]).partition("@")[0], not Path(asked["data_path"]).is_dir()
    architecture, is_timm = Path(model_name).name, hasattr(model, "timm_model")
    where = {
        "dataset_type": data if shared else "imagefolder",
        "dataset_name": Path(data).name,
        "dataset_split": "test",
    }
    where["task_type"] = "image-classification"
    results = [
        EvalResult(metric_type=name, metric_name=name + " (macro)" * (name != "accuracy"), metric_value=value, **where)
        for name, value in facts["metrics"].items()
    ]
    card_data = ModelCardData(
        license=asked["license"],
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", *["timm"] * is_timm, "onnx", "transformers.js"],
        datasets=[data] if shared else None,
        base_model=None if model_name in NETWORKS or Path(model_name).exists() else model_name,
        model_name=architecture,
        eval_results=results,
    )
    repo = asked["push_to_hub"] or asked["checkpoints_path"] or f"checkpoints/{architecture}"
    start = START.get(asked["weights"], f"from the weights in {asked['weights']}")
    how = {"labels": range(len(names)), "target_names": names, "digits": 4, "zero_division": 0}
    best = facts["state"].best_global_step
    return ModelCard.from_template(
        card_data,
        template_str=CARD,
        **facts,
        asked=asked,
        model=model,
        architecture=architecture,
        names=names,
        start=start + (f" and with {Path(asked['teacher']).name} as its teacher" if asked["teacher"] else ""),
        best_epoch=next(max(1, round(log["epoch"])) for log in facts["state"].log_history if log["step"] == best),
        interval=binomtest(int((logits.argmax(1) == labels).sum()), len(labels)).proportion_ci(method="wilson"),
        bins=BINS,
        ece=tuple(calibration_error(*confidences(logits, labels, value)) for value in (1.0, facts["temperature"])),
        per_class=classification_report(labels, logits.argmax(1), **how),
        stressed=min(STRESS_PHOTOS, len(labels)),
        worst=min(facts["stress"][1:], key=lambda row: row["right"]),
        command=command_line(asked),
        fingerprint=fingerprint(test),
        versions=", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "timm", "datasets")),
        repo=repo,
        timm_source=is_timm and f"{'hf-hub' if asked['push_to_hub'] else 'local-dir'}:{repo}",
    )


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, for the use inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def ask_hub(call, problem: str, advice: str):
    """Return what `call()` returns, called again while the Hub is busy or the connection is cut, for about 20 seconds.

    OSError with the problem, the reason and the advice if it does not work.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

    def passing(error: BaseException) -> bool:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code == 429 or error.response.status_code >= 500
        cause = error.__cause__ or error.__context__
        return isinstance(error, httpx2.TransportError) or (cause is not None and passing(cause))

    wait = wait_exponential_jitter(initial=1, max=30)
    try:
        return Retrying(retry=retry_if_exception(passing), wait=wait, stop=stop_after_attempt(5), reraise=True)(call)
    except Exception as error:
        raise OSError(f"{problem} ({first_line(error)}). {advice}") from error


def create_repo(repo_id: str) -> None:
    """Make sure that the private model repo exists and may be written; OSError if not."""
    from huggingface_hub import HfApi

    advice = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there."
    problem = f"--push_to_hub {repo_id}: the Hub does not give a repo to write to"
    ask_hub(partial(HfApi().create_repo, repo_id, private=True, exist_ok=True), problem, advice)


def push(folder: Path, repo_id: str) -> None:
    """Upload the model folder in one commit; OSError if the Hub does not take it."""
    from huggingface_hub import HfApi

    upload = partial(HfApi().upload_folder, repo_id=repo_id, folder_path=folder, commit_message="Upload the model")
    advice = f"Push it later with: hf upload {repo_id} {folder}"
    commit = ask_hub(upload, f"The model is whole in {folder}, but the Hub did not take it", advice)
    print(f"Pushed to {repo_id}, revision {commit.oid}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of what `finetune` takes, with its types, defaults and words."""
    formatter, names = argparse.ArgumentDefaultsHelpFormatter, f"Names of torchvision: {', '.join(NETWORKS)}"
    about = {"description": __doc__.splitlines()[0], "epilog": names, "formatter_class": formatter}
    parser = argparse.ArgumentParser(prog="finetune.py", allow_abbrev=False, **about)
    for name, parameter in inspect.signature(finetune).parameters.items():
        kind, text = get_args(parameter.annotation)
        how = {"default": parameter.default, "help": text, "required": parameter.default is parameter.empty}
        if kind is bool:
            how["action"] = "store_true"
        elif get_origin(kind) is Literal:
            how["choices"] = get_args(kind)
        else:
            how |= {"metavar": "X", "type": next((one for one in (int, float) if one in (kind, *get_args(kind))), str)}
        parser.add_argument(f"--{name}", **how)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line, whose flags may be spelt with hyphens as well."""
    arguments = []
    for argument in sys.argv[1:] if argv is None else argv:
        flag, equals, value = argument.partition("=")
        arguments.append("--" + flag[2:].replace("-", "_") + equals + value if flag.startswith("--") else argument)
    try:
        finetune(**vars(parser().parse_args(arguments)))
    except (OSError, ValueError) as error:
        sys.exit(f"finetune.py: error: {error}")
    except KeyboardInterrupt:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", [])):  # or it would be drawn once more, behind the last line
            bar.close()
        sys.unraisablehook = lambda _: None  # a progress bar that was stopped half made has no more to say
        print("finetune.py: stopped; --resume continues after the last whole epoch, if there was one", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
