# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "accelerate>=1.15,<2",
#   "datasets>=5.2,<6",
#   "huggingface_hub>=2.4,<3",
#   "matplotlib>=3.10,<4",
#   "numpy>=2.2,<3",
#   "pillow>=12,<13",
#   "safetensors>=0.8,<1",
#   "scikit-learn>=1.9,<2",
#   "tenacity>=9,<10",
#   "timm>=1.0.20,<2",
#   "torch>=2.14,<2.15",
#   "torchvision>=0.29,<0.30",
#   "tqdm>=4.70,<5",
#   "transformers>=5.23,<6",
# ]
#
# [tool.hf-jobs]
# flavor = "t4-small"
# timeout = "4h"
# secrets = ["HF_TOKEN"]
# ///
"""Fine-tune an image classifier on a dataset made by prep.py, and write a model folder, which is a model of the Hub.

    python finetune.py --data_path dataset --model_name mobilenet_v3_small
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
import json
import math
import os
import random
import shlex
import shutil
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

# torchvision's networks: timm's name of each, and what makes that one the same function and train alike. Written out so
# that --help needs no torch; a test compares all of them with torchvision's.
NETWORKS = {
    "mobilenet_v2": ("mobilenetv2_100", {"drop_rate": 0.2}),
    "mobilenet_v3_large": ("mobilenetv3_large_100", {"bn_eps": 1e-3, "drop_rate": 0.2}),
    "mobilenet_v3_small": ("mobilenetv3_small_100", {"bn_eps": 1e-3, "drop_rate": 0.2}),
    **{f"resnet{depth}": (f"resnet{depth}", {}) for depth in (18, 34, 50, 101, 152)},
    **{f"vgg{depth}{bn}": (f"vgg{depth}{bn}", {"drop_rate": 0.5}) for depth in (11, 13, 16, 19) for bn in ("", "_bn")},
}
# All but accuracy and loss are means over the classes; roc_auc is that of each class against the rest.
METRIC_NAMES = ("accuracy", "f1", "precision", "recall", "roc_auc", "loss")
START = {"none": "from scratch", "DEFAULT": "from pretrained weights"}
TEACHER_WEIGHT = 3.0  # of the loss of imitating the teacher, beside that of the labels
TEACHER_VIEWS = 4  # parts of each training photo that the teacher is asked about
SPLITS = ("train", "validation", "test")
CACHE_BYTES = 4 * 2**30  # of decoded photos in each split; the photos beyond it are decoded anew each time
IMAGE_SIZE = 192  # of torchvision's networks
CALIBRATION_BINS = 15
MISTAKES = 24  # on the picture of the worst ones
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which torchvision's weights expect

CARD = """# {architecture}: {labels}

`{architecture}` ({kind}), trained by `finetune.py` on {photos} photos, {start}. {parameters} parameters, {megabytes:.1f} MB.
A photo is scaled to {size}x{size} pixels, as `preprocessor_config.json` says.

## Results

The test split ({test_photos} photos) was not looked at before the last epoch; it was measured once, with the epoch
that had the best validation {monitor}: epoch {best_epoch}, {best_value:.4f}. All but the accuracy are means over the
classes (macro).

{results}

A confidence is the plain softmax of the logits. The temperature that fits the validation split best, {temperature:.3f}, is
divided into the last layer. Expected calibration error on the test split ({bins} bins): {ece_before:.4f} without it,
{ece:.4f} with it.

| class | test photos | precision | recall |
| --- | --- | --- | --- |
{per_class}

![Rows are the true classes](confusion_matrix.png)
![How often an answer of that confidence is right](reliability.png)
![Loss and validation metrics by epoch](learning_curves.png)
![The most confident mistakes](mistakes.png)

## How it was made

```
{command}
```

Photos by class: {counts}. SHA-256 of the test split: `{fingerprint}`. Versions: {versions}.

## How to use it

With transformers:

```python
from transformers import pipeline

classify = pipeline("image-classification", model="{repo}")
print(classify("photo.jpg"))
```
{timm}
In a browser or in Node, with transformers.js:

```javascript
import {{ AutoImageProcessor, AutoModel, RawImage, softmax }} from "@huggingface/transformers";

const processor = await AutoImageProcessor.from_pretrained("{repo}");
const model = await AutoModel.from_pretrained("{repo}", {{ dtype: "fp32" }});
const {{ logits }} = await model(await processor(await RawImage.read("photo.jpg")));
const scores = softmax(logits.data);
console.log(model.config.id2label[scores.indexOf(Math.max(...scores))]);
```

On a page: `MOBILENET_MODEL={repo} python app.py`. Any ONNX runtime takes `onnx/model.onnx`.

## Limits

It knows the classes above and nothing else: any photo is given one of them. The numbers hold for photos like those of
the dataset.
"""
TIMM_SNIPPET = """
With timm:

```python
import timm
from PIL import Image

model = timm.create_model("{source}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
scores = model(transform(Image.open("photo.jpg").convert("RGB"))[None]).softmax(1)[0].tolist()
print(dict(zip(model.pretrained_cfg["label_names"], scores)))
```
"""


def load_splits(data_path: str):
    """Return the `DatasetDict` at a folder written by prep.py, or of a Hub dataset with the same splits and columns.

    Raises:
        OSError, ValueError: if there is none, or its splits or columns are others.
    """
    from datasets import ClassLabel, load_dataset, load_from_disk

    advice = f"Prepare it first: python prep.py --image_path {shlex.quote(data_path)} --dst_path dataset"
    if Path(data_path).is_dir():
        if not (Path(data_path) / "dataset_dict.json").is_file():
            raise ValueError(f"--data_path {data_path} is a folder, but not one that prep.py wrote. {advice}")
        splits = load_from_disk(data_path)
    else:
        try:
            splits = load_dataset(data_path)
        except Exception as error:
            raise OSError(
                f"--data_path {data_path} is neither a folder nor a dataset that the Hub hands out: {first_line(error)}"
            ) from error
    for split in SPLITS:
        if split not in splits:
            raise ValueError(f"--data_path {data_path} has no split {split!r}; it has: {', '.join(splits)}. {advice}")
    if not isinstance(splits["train"].features.get("label"), ClassLabel) or "image" not in splits["train"].features:
        raise ValueError(
            f"--data_path {data_path} needs a column 'image' and a column 'label' of type ClassLabel. {advice}"
        )
    return splits


def rgb(image):
    """Return a PIL photo upright and in RGB, transparent parts white. app.py does the same."""
    from PIL import Image, ImageOps

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


class Photos:
    """A split whose photos, decoded to uint8 of shape (3, size, size), stay in memory; `transform` varies them."""

    teacher_logits = None  # of shape (photos, views, teacher's classes), if there is a teacher
    transform = None

    def __init__(self, part, processor):
        import torch
        from tqdm.auto import tqdm

        self.part, self.labels = part, list(part["label"])
        self.processor = partial(processor, do_rescale=False, do_normalize=False, return_tensors="pt")
        shape = (3, *[input_size(processor)] * 2)
        kept = min(len(part), CACHE_BYTES // math.prod(shape))
        self.pixels = torch.empty(kept, *shape, dtype=torch.uint8)
        with ThreadPoolExecutor() as pool:
            photos = pool.map(self.decoded, range(kept))
            for index, photo in enumerate(tqdm(photos, total=kept, desc="Decoding photos", unit="photo")):
                self.pixels[index] = photo

    def decoded(self, index: int):
        """Return a photo in the size that the network's evaluation sees."""
        return self.processor(rgb(self.part[index]["image"]))["pixel_values"][0]

    def view(self, index: int, number: int):
        """Return a part of a photo, for each `number` another one but always the same; for 0 the whole photo."""
        pixels = self.pixels[index] if index < len(self.pixels) else self.decoded(index)
        if number == 0:
            return pixels
        height, width = pixels.shape[1:]
        dice = random.Random(f"{index} {number}")
        area, stretch = dice.uniform(0.35, 1), math.exp(dice.uniform(-0.28, 0.28))
        rows = min(height, int(height * (area * stretch) ** 0.5))
        columns = min(width, int(width * (area / stretch) ** 0.5))
        top, left = dice.randint(0, height - rows), dice.randint(0, width - columns)
        return pixels[:, top : top + rows, left : left + columns]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        photo, number = {"labels": self.labels[index]}, 0
        if self.teacher_logits is not None:
            number = random.randrange(TEACHER_VIEWS)
            photo["teacher_logits"] = self.teacher_logits[index, number].float()
        pixels = self.view(index, number)
        return {**photo, "pixels": self.transform(pixels) if self.transform else pixels}


def input_size(processor) -> int:
    """Return the side of the square that a processor makes of a photo."""
    from PIL import Image

    return processor(Image.new("RGB", (64, 64)), return_tensors="np")["pixel_values"].shape[-1]


def batch(photos: list[dict], processor) -> dict:
    """Return `pixel_values` (N, 3, size, size) scaled as the processor does, `labels` (N), `teacher_logits`."""
    import torch
    from torch.utils.data import default_collate
    from torchvision.transforms.v2.functional import normalize

    pixels = torch.stack([photo.pop("pixels") for photo in photos]) * processor.rescale_factor
    return {"pixel_values": normalize(pixels, processor.image_mean, processor.image_std), **default_collate(photos)}


def teacher_logits(photos: Photos, teacher: str, device: str, cache: Path):
    """Return the teacher's logits of every view of every photo, shape (photos, views, teacher's classes), float16.

    They are kept in the safetensors file `cache`, for a run that goes on and for other processes.

    Raises:
        OSError, ValueError: if transformers cannot load the teacher as an image classifier from safetensors.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from torchvision.transforms.functional import to_pil_image
    from tqdm.auto import tqdm
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    if cache.is_file():
        return load_file(cache)["logits"]
    try:
        processor = AutoImageProcessor.from_pretrained(teacher, trust_remote_code=False)
        model = AutoModelForImageClassification.from_pretrained(
            teacher, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"--teacher {teacher} cannot be loaded by transformers: {first_line(error)}.") from error
    model = model.to(device).eval()
    logits = []
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)  # torchrun gives each process one, but the others wait meanwhile
    with torch.inference_mode():
        for start in tqdm(range(0, len(photos), 16), desc="Asking the teacher", unit="batch"):
            some = range(start, min(start + 16, len(photos)))
            views = [to_pil_image(photos.view(index, number)) for index in some for number in range(TEACHER_VIEWS)]
            pixels = processor(views, return_tensors="pt")["pixel_values"].to(device)
            answers = model(pixels.contiguous(memory_format=torch.channels_last)).logits
            logits.append(answers.reshape(len(some), TEACHER_VIEWS, -1).half().cpu())
    torch.set_num_threads(threads)
    save_file({"logits": torch.cat(logits)}, f"{cache}.part")
    Path(f"{cache}.part").rename(cache)
    return load_file(cache)["logits"]


def augmentation(size: int, smallest: float):
    """Return the random changes of a training photo: a part of it, of a share of at least `smallest` of its area,
    somewhat stretched, its colours, its sharpness, perhaps mirrored."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(smallest, 1.0), ratio=(3 / 4, 4 / 3)),
            v2.RandomApply([v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3)], p=0.5),
            v2.RandomGrayscale(0.05),
            v2.RandomAdjustSharpness(2, p=0.3),
            v2.RandomApply([v2.JPEG((30, 95))], p=0.3),
            v2.RandomHorizontalFlip(),
        ]
    )


def training_size(size: int, progress: float) -> int:
    """Return the side of the training photos, a multiple of 16, at a share of all epochs: from size / 2 to 5/6 of size.

    Early epochs learn from small photos nearly as much, in half the time (Tan and Le 2021, EfficientNetV2). A part of a
    photo shows things larger than the whole photo does; at 5/6 of the size they are as large as in evaluation (Touvron
    et al. 2019, Fixing the train-test resolution discrepancy).
    """
    grown = min(1.0, progress / 0.75)
    return max(32, round(size * (3 + 2 * grown) / 6 / 16) * 16)


def photos_by_epoch(train: Photos, trained, size: int):
    """Return the callback that gives the training photos the size of each epoch, and mixes fewer and fewer of them.

    The last epochs see photos as they are: a network that has learnt from mixed ones alone is unsure of plain ones.
    """
    from transformers import TrainerCallback

    class PhotosByEpoch(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **_):
            progress = state.epoch / args.num_train_epochs
            # The views that a teacher was asked about are parts of the photo already.
            smallest = 0.4 if train.teacher_logits is None else 0.6
            train.transform = augmentation(training_size(size, progress), smallest)
            trained.mixed_steps = (1 - progress) / 2

    return PhotosByEpoch()


def frozen_body(head: str, epochs: int):
    """Return the callback that lets only the new last layer learn in the first epochs."""
    from transformers import TrainerCallback

    class FrozenBody(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            if state.epoch < epochs:
                for name, parameter in model.named_parameters():
                    if f"network.{head}." not in name and "imitation." not in name:
                        parameter.grad = None  # so the optimizer leaves it alone, in every process

    return FrozenBody()


def start_weights(model_name: str, weights: str) -> dict:
    """Return the tensors to start from: torchvision's pretrained ones, or those of a safetensors file or its folder.

    Raises:
        OSError, ValueError: if they cannot be downloaded or read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torchvision.models import get_model_weights

    if weights == "DEFAULT":
        try:
            return get_model_weights(model_name).DEFAULT.get_state_dict(
                progress=True, check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"The pretrained weights of {model_name} cannot be downloaded ({first_line(error)}). "
                "Use --weights none to train from scratch, or --weights FILE with a safetensors file."
            ) from error
    file = Path(weights, "model.safetensors") if Path(weights).is_dir() else weights
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"--weights {weights} is neither DEFAULT, none, nor a safetensors file or a folder with one: {first_line(error)}."
        ) from error


def fill(network, model_name: str, weights: str) -> None:
    """Give timm's network the weights, named as in torchvision or in timm, all but the last layer, which stays new.

    Tensors of the two differ in name and shape, not in order. A file without any classifier leaves those layers new.

    Raises:
        OSError, ValueError: if the weights cannot be read, or are not exactly those of this network.
    """
    import torch
    from torchvision.models import get_model

    with torch.device("meta"):
        theirs = list(get_model(model_name).state_dict())
    own = network.state_dict()
    renamed = dict(zip(theirs, own, strict=True))
    classifier = {renamed[name] for name in theirs if name.startswith(("classifier.", "fc."))}
    head = {f"{head_name(network)}.{name}" for name in ("weight", "bias")}
    given = {}
    for name, tensor in start_weights(model_name, weights).items():
        name = name.removeprefix("timm_model.")
        given[renamed.get(name, name)] = tensor
    new = head if (classifier - head) & set(given) else classifier
    body = {name: tensor for name, tensor in given.items() if name not in head}
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # which older files lack
    if wrong := sorted((set(own) - counters - new) ^ (set(body) - counters)):
        raise ValueError(f"--weights {weights} is not a {model_name}: {wrong[0]} is only in one of the two.")
    for name, tensor in body.items():
        if tensor.numel() != own[name].numel():
            raise ValueError(f"--weights {weights} is not a {model_name}: {name} has another shape.")
        if not tensor.isfinite().all():
            raise ValueError(f"--weights {weights} cannot be used: {name} holds numbers that are not finite.")
    if new != head:
        print(f"{weights} has no classifier: {', '.join(sorted(new))} start new.")
    shaped = {name: tensor.reshape(own[name].shape) for name, tensor in body.items()}
    network.load_state_dict(shaped, strict=False)


def torchvision_model(model_name: str, labels: dict, weights: str, size: int):
    """Return torchvision's network as a transformers model (timm's, wrapped) with a new last layer, and its processor.

    Raises:
        OSError, ValueError: if the weights cannot be read, or belong to another network.
    """
    import torch
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    architecture, arguments = NETWORKS[model_name]
    config = TimmWrapperConfig(architecture=architecture, model_args=arguments, **labels)
    model = TimmWrapperForImageClassification(config)
    network = model.timm_model
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
    if weights != "none":
        fill(network, model_name, weights)
    # How timm is to prepare a photo: as the processor does.
    seen = {"input_size": [3, size, size], "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    kept = {name: network.pretrained_cfg[name] for name in ("pool_size", "first_conv", "classifier")}
    config.pretrained_cfg = {**kept, **seen, "fixed_input_size": False, "mean": MEAN, "std": STD}
    return model, image_processor(size)


def hub_model(model_name: str, labels: dict, weights: str, size: int | None):
    """Return an image classifier of the Hub, or of a folder, with a new last layer, and its processor.

    Raises:
        OSError, ValueError: if transformers cannot load it from safetensors, or it lacks more than the last layer.
    """
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    safely = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(model_name, **labels, **safely)
        if weights == "none":
            model, absent = AutoModelForImageClassification.from_config(config, **safely), []
        else:
            how = {"dtype": torch.float32, "use_safetensors": True, "ignore_mismatched_sizes": True, **safely}
            model, found = AutoModelForImageClassification.from_pretrained(
                model_name, config=config, output_loading_info=True, **how
            )
            absent = found["missing_keys"]
        processor = AutoImageProcessor.from_pretrained(model_name, backend="pil", **safely)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"--model_name {model_name} is neither a name of torchvision nor an image classifier that transformers loads: "
            f"{first_line(error)}."
        ) from error
    head = head_name(model)
    if wrong := [name for name in absent if not name.startswith(f"{head}.")]:
        raise ValueError(f"--model_name {model_name}: its weights lack {min(wrong)}.")
    model.get_submodule(head).reset_parameters()
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise ValueError(f"--model_name {model_name}: its weights are not finite numbers.")
    if config.model_type == "timm_wrapper" and not hasattr(processor, "image_mean"):  # timm's processor is its own
        seen = config.pretrained_cfg
        return model, image_processor(size or seen["input_size"][-1], seen["mean"], seen["std"])
    return model, image_processor(size, processor.image_mean, processor.image_std) if size else processor


def build_model(model_name: str, names: list[str], weights: str, size: int | None):
    """Return the transformers model with a new last layer for the classes, the rest from `weights`, and its processor.

    Raises:
        OSError, ValueError: if the model or the weights cannot be loaded.
    """
    labels = {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
    if model_name in NETWORKS:
        return torchvision_model(model_name, labels, weights, size or max(IMAGE_SIZE, smallest_size(model_name)))
    return hub_model(model_name, labels, weights, size)


def smallest_size(model_name: str) -> int:
    """Return the least pixels of a photo's side; for less, a VGG stretches its features, which ONNX cannot express."""
    return 224 if model_name in NETWORKS and model_name.startswith("vgg") else 32


def head_name(model) -> str:
    """Return the name of the model's last layer, whose outputs are the logits."""
    import torch

    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)][-1]


def loss_weights(labels: list[int], nclasses: int):
    """Return the loss weight of each class, shape (nclasses,): 1 over the square root of its frequency, 1 if balanced.

    The root is between leaving a rare class to be ignored and, with the full inverse, calling common ones rare.
    """
    import torch

    counts = torch.bincount(torch.tensor(labels), minlength=nclasses)
    return (counts.sum() / (nclasses * counts)).sqrt()


def mixed(pixel_values, how_often: float):
    """Return a batch, now and then mixed in pairs, and the share (N, N) that each photo has in each of it.

    MixUp (Zhang et al. 2018) lays one photo over the other, CutMix (Yun et al. 2019) a piece of it.
    """
    import torch
    from torchvision.transforms import v2

    count = len(pixel_values)
    if torch.rand(()) >= how_often:
        return pixel_values, torch.eye(count, device=pixel_values.device)
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=count), v2.CutMix(num_classes=count)])
    return mix(pixel_values, torch.arange(count, device=pixel_values.device))


def trainable(model, weights, *, label_smoothing: float, mix: bool, ema_decay: float, teacher_classes: int):
    """Return the model as the Trainer wants it: `pixel_values` and `labels` in, `loss` and `logits` out.

    With `teacher_logits`, a second head on what the last layer is given, which is not part of the model, also learns to
    give them (Hinton et al. 2015, Distilling the Knowledge in a Neural Network), and the features profit. With `mix`,
    photos are mixed, and what is to be learnt of them as well. With `ema_decay`, evaluation takes the exponential moving
    average of the weights.
    """
    import torch
    from torch.nn.functional import kl_div, log_softmax, one_hot, softmax
    from torch.optim.swa_utils import AveragedModel

    def moving_average(average, new, updates):
        return average + (new - average) * (1 - min(ema_decay, (1 + updates) / (10 + updates)))

    class Trainable(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = model
            self.loss = torch.nn.CrossEntropyLoss(weights, label_smoothing=label_smoothing)
            self.imitation = torch.nn.Linear(head.in_features, teacher_classes) if teacher_classes else None
            self.average = None
            if ema_decay:  # of the batch norms' statistics too, which belong to the weights
                self.average = AveragedModel(model, avg_fn=moving_average, use_buffers=True).requires_grad_(False)
            self.mixed_steps = 0.0  # share of the steps whose photos are mixed; `photos_by_epoch` sets it

        def forward(self, pixel_values, labels, teacher_logits=None):
            if self.training and self.average:
                self.average.update_parameters(self.network)
            if self.training and mix:
                pixel_values, shares = mixed(pixel_values, self.mixed_steps)
                labels = shares @ one_hot(labels, head.out_features).to(shares)
            elif not self.training and self.average:
                logits = self.average(pixel_values).logits
                return {"loss": self.loss(logits, labels), "logits": logits}
            features = []
            with head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0])):
                # channels_last: 1.6 times the photos/s on a CPU with two cores
                logits = self.network(pixel_values.contiguous(memory_format=torch.channels_last)).logits
            loss = self.loss(logits, labels)
            if teacher_logits is not None:
                teacher = softmax(teacher_logits, 1)
                teacher = shares @ teacher if mix else teacher
                student = log_softmax(self.imitation(features[0]), 1)
                loss = loss + TEACHER_WEIGHT * kl_div(student, teacher, reduction="batchmean")
            return {"loss": loss, "logits": logits}

    head = model.get_submodule(head_name(model))
    return Trainable()


def optimizer(model, lr: float):
    """Return AdamW (Loshchilov and Hutter 2019), whose weight decay spares biases and the scales of normalisation."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": 0.05}
    spared = {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, spared], lr=lr, fused=True)


def keep_freed_memory() -> None:
    """Have glibc keep the large blocks that a training step frees, for the next step, instead of returning each."""
    import ctypes

    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt:
            mallopt(-4, 0)  # M_MMAP_MAX: no block is a mapping of its own, to be cleared page by page each time
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def metrics(prediction) -> dict[str, float]:
    """Return accuracy and the class means of precision, recall, F1 and ROC AUC, each 0 to 1, of a Trainer's prediction."""
    import numpy as np
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

    logits, labels = np.nan_to_num(prediction.predictions), prediction.label_ids
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, logits.argmax(-1), average="macro", zero_division=0
    )
    one_hot = np.eye(logits.shape[1])[labels]
    return {
        "accuracy": accuracy_score(labels, logits.argmax(-1)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "roc_auc": float(roc_auc_score(one_hot, probabilities(logits, 1.0))),
    }


def probabilities(logits, temperature: float):
    """Return the softmax of the logits over the temperature, shape (photos, classes)."""
    from scipy.special import softmax

    return softmax(logits / temperature, axis=1)


def best_temperature(logits, labels) -> float:
    """Return the temperature with the least cross-entropy (Guo et al. 2017, On Calibration of Modern Neural Networks)."""
    from scipy.optimize import minimize_scalar
    from sklearn.metrics import log_loss

    classes = range(logits.shape[1])
    return float(
        minimize_scalar(
            lambda temperature: log_loss(labels, probabilities(logits, temperature), labels=classes),
            bounds=(0.05, 20),
            method="bounded",
        ).x
    )


def unsure_below(logits, labels, temperature: float) -> float:
    """Return the confidence that 95 % of the photos which are answered right have at least; 0 if none is."""
    import numpy as np

    certain = probabilities(logits, temperature)
    right = certain.argmax(1) == labels
    return float(np.quantile(certain.max(1)[right], 0.05)) if right.any() else 0.0


def calibration(logits, labels, temperature: float) -> tuple[list, float]:
    """Return (share of photos, mean confidence, share answered right) of each bin, and the expected calibration error."""
    import numpy as np

    certain = probabilities(logits, temperature)
    confidence, right = certain.max(1), certain.argmax(1) == labels
    place = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = [
        ((place == one).mean(), confidence[place == one].mean(), right[place == one].mean())
        for one in range(CALIBRATION_BINS)
        if (place == one).any()
    ]
    return bins, float(sum(share * abs(mean - correct) for share, mean, correct in bins))


def fingerprint(part) -> str:
    """Return the SHA-256 of a split's labels and image files, in order, so that two results can be told apart."""
    import hashlib

    digest = hashlib.sha256()
    for row in part.data.to_batches(max_chunksize=100):
        for image, label in zip(row.column("image").to_pylist(), row.column("label").to_pylist(), strict=True):
            digest.update(repr((label, len(image["bytes"]))).encode() + image["bytes"])
    return digest.hexdigest()


def draw_pictures(folder: str, log_history: list[dict], prediction, test, names: list[str], temperature: float) -> None:
    """Write learning curves, confusion matrix, reliability diagram and the most confident mistakes as PNG files."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import pandas as pd
    from sklearn.metrics import ConfusionMatrixDisplay

    logits, labels = prediction.predictions, prediction.label_ids
    certain = probabilities(logits, temperature)

    log = pd.DataFrame(log_history).groupby("epoch").first()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5))
    log[["loss", "eval_loss"]].plot(ax=left, ylabel="loss")
    log[[f"eval_{name}" for name in METRIC_NAMES if name != "loss" and f"eval_{name}" in log]].plot(
        ax=right, ylabel="validation"
    )
    save_figure(figure, folder, "learning_curves.png")

    few = len(names) <= 20
    figure, axes = plt.subplots(figsize=(5, 4.5) if few else (12, 12))
    ConfusionMatrixDisplay.from_predictions(
        labels,
        logits.argmax(1),
        labels=range(len(names)),
        display_labels=names if few else None,
        include_values=few,
        cmap="Blues",
        ax=axes,
        xticks_rotation="vertical",
    )
    save_figure(figure, folder, "confusion_matrix.png")

    figure, axes = plt.subplots(figsize=(4.5, 4))
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="as it should be")
    for legend, value in (("temperature 1", 1.0), (f"temperature {temperature:.2f}", temperature)):
        _, confidence, correct = zip(*calibration(logits, labels, value)[0], strict=True)
        axes.plot(confidence, correct, marker="o", label=legend)
    axes.set(xlabel="confidence", ylabel="share answered right", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    save_figure(figure, folder, "reliability.png")

    wrong = [index for index in certain.max(1).argsort()[::-1] if logits[index].argmax() != labels[index]][:MISTAKES]
    figure, grid = plt.subplots(
        max(1, -(-len(wrong) // 6)), 6, figsize=(12, 2.4 * max(1, -(-len(wrong) // 6))), squeeze=False
    )
    for axes in grid.flat:
        axes.axis("off")
    for axes, index in zip(grid.flat, wrong):  # noqa: B905 - the last row may have room left
        axes.imshow(rgb(test[int(index)]["image"]))
        answer = f"{names[labels[index]]}, called {names[logits[index].argmax()]}\n{certain[index].max():.0%}"
        axes.set_title(answer, fontsize=8, parse_math=False)
    save_figure(figure, folder, "mistakes.png")


def save_figure(figure, folder: str, name: str) -> None:
    """Write a figure as a PNG that is the same for the same data."""
    import matplotlib.pyplot as plt

    figure.savefig(f"{folder}/{name}", bbox_inches="tight", dpi=80, metadata={"Software": None})
    plt.close(figure)


def checked_device(device: str) -> str:
    """Return the device that "auto" stands for, or the given one.

    Raises:
        ValueError: if this machine has no such device.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in available.items() if there)
    if not available[device]:
        raise ValueError(
            f"--device {device} is not available here; there is: {', '.join(name for name in available if available[name])}."
        )
    return device


def check_output(folder: Path, overwrite: bool) -> None:
    """Make sure that the folder of the checkpoint may be written.

    Raises:
        FileExistsError: if something is there that is not to be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--checkpoints_path {folder} is a file. Choose another folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (overwrite and (folder / "config.json").is_file()):
        raise FileExistsError(
            f"--checkpoints_path {folder} is not empty. Choose another folder, or add --overwrite to replace a checkpoint."
        )


def finetune(
    *,
    data_path: str | Path,
    model_name: str = "mobilenet_v3_small",
    checkpoints_path: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    weights: str = "DEFAULT",
    teacher: str | None = None,
    nclasses: int | None = None,
    image_size: int | None = None,
    epochs: int = 3,
    freeze_epochs: int = 0,
    early_stopping: int = 0,
    batch_size: int = 64,
    lr: float = 1e-3,
    label_smoothing: float = 0.0,
    mix: bool = False,
    ema_decay: float = 0.0,
    class_weights: str = "auto",
    monitor_metric_name: str = "accuracy",
    seed: int = 42,
    device: str = "auto",
    license: str = "other",
    push_to_hub: str | None = None,
) -> tuple:
    """Train, keep the best epoch, calibrate it, measure it on the test split, write the model folder.

    Returns:
        The calibrated transformers model on the CPU in evaluation mode, and the test split's metrics (each 0 to 1).

    Raises:
        OSError, ValueError: with one sentence that says what is wrong; nothing is left at `checkpoints_path` then.
    """
    asked = dict(locals())
    check_numbers(asked)
    command = command_line(asked)
    folder = Path(checkpoints_path or Path("checkpoints") / Path(model_name).name)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    check_output(folder, overwrite or (resume and unfinished.exists()))
    splits = load_splits(str(data_path))
    names = splits["train"].features["label"].names
    if nclasses not in (None, len(names)):
        raise ValueError(f"--nclasses {nclasses} contradicts the dataset, which has {len(names)}: {', '.join(names)}.")
    device = checked_device(device)
    # Several processes have made sure of the folders before the first one changes them.
    import numpy as np
    import torch
    from accelerate import PartialState
    from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed

    processes = PartialState(cpu=device == "cpu")
    if batch_size % processes.num_processes:
        raise ValueError(f"--batch_size {batch_size} cannot be shared among {processes.num_processes} processes.")
    clear_unfinished_run(unfinished, command, overwrite, resume)
    processes.wait_for_everyone()
    if push_to_hub and processes.is_main_process:
        create_repo(push_to_hub)  # now, so that a missing login does not show only after the training

    if device == "cpu":
        keep_freed_memory()
    set_seed(seed)  # before the network is made: the new layers start from random numbers
    model, processor = build_model(model_name, names, weights, image_size)
    train, validation, test = (Photos(splits[split], processor) for split in SPLITS)
    try:
        if processes.is_main_process:
            unfinished.mkdir(parents=True, exist_ok=True)
            (unfinished / "command.txt").write_text(command)
        with processes.main_process_first():
            if teacher:
                cache = unfinished / "teacher.safetensors"
                train.teacher_logits = teacher_logits(train, teacher, device, cache)
        trained = trainable(
            model,
            loss_weights(train.labels, len(names)) if class_weights == "auto" else None,
            label_smoothing=label_smoothing,
            mix=mix,
            ema_decay=ema_decay,
            teacher_classes=train.teacher_logits.shape[2] if teacher else 0,
        )
        trainer = Trainer(
            model=trained,
            optimizers=(optimizer(trained, lr), None),
            args=TrainingArguments(
                output_dir=str(unfinished),
                num_train_epochs=epochs,
                per_device_train_batch_size=batch_size // processes.num_processes,
                per_device_eval_batch_size=batch_size,
                learning_rate=lr,
                lr_scheduler_type="cosine",
                # A tenth of all steps, rounded down: the first one of a warm-up changes nothing, and may be the only one.
                warmup_steps=epochs * -(-len(train) // batch_size) // 10,
                max_grad_norm=0,
                eval_strategy="epoch",
                logging_strategy="epoch",
                save_strategy="epoch",
                save_total_limit=1,
                load_best_model_at_end=True,
                metric_for_best_model=monitor_metric_name,
                greater_is_better=monitor_metric_name != "loss",
                fp16=device == "cuda",
                ddp_find_unused_parameters=False,
                dataloader_num_workers=4 * (device == "cuda"),  # on a CPU they only take cores from the training
                remove_unused_columns=False,
                use_cpu=device == "cpu",
                seed=seed,
                report_to="none",
            ),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=partial(batch, processor=processor),
            compute_metrics=metrics,
            callbacks=[
                photos_by_epoch(train, trained, input_size(processor)),
                *([frozen_body(head_name(model), freeze_epochs)] if freeze_epochs else []),
                *([EarlyStoppingCallback(early_stopping)] if early_stopping else []),
            ],
        )
        trainer.train(resume_from_checkpoint=last_epoch(unfinished))
        tuning, prediction = trainer.predict(validation), trainer.predict(test)
        if not (np.isfinite(prediction.predictions).all() and np.isfinite(tuning.predictions).all()):
            shutil.rmtree(unfinished, ignore_errors=True)
            raise ValueError(f"The training went to infinity with --lr {lr:g}; nothing was written. Use a smaller one.")
    except BaseException:
        if processes.is_main_process and not last_epoch(unfinished):  # else it is kept for --resume
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    model = (trained.average.module if ema_decay else model).cpu().eval()
    # Divided into the last layer, so that a plain softmax is calibrated wherever the model goes.
    temperature = best_temperature(tuning.predictions, tuning.label_ids)
    with torch.no_grad():
        for parameter in model.get_submodule(head_name(model)).parameters():
            parameter /= temperature
    measured = metrics(prediction)
    if processes.is_main_process:
        scratch = unfinished / "result"
        shutil.rmtree(scratch, ignore_errors=True)
        write_result(
            scratch, model, processor, splits, trainer.state.log_history, tuning, prediction, temperature, asked
        )
        if folder.exists():
            folder.rename(unfinished / "replaced")
        scratch.rename(folder)
        shutil.rmtree(unfinished)
        print(f"Test accuracy {measured['accuracy']:.4f} on {len(test)} photos. Model written to {folder}")
        if push_to_hub:
            push(folder, push_to_hub)
    processes.wait_for_everyone()
    return model, measured


def write_result(
    folder: Path,
    model,
    processor,
    splits,
    log_history: list[dict],
    tuning,
    prediction,
    temperature: float,
    asked: dict,
) -> None:
    """Write all of a model folder to a new one: weights, config, preprocessing, ONNX, pictures, card.

    Args:
        model: calibrated, which the predictions are not.
        tuning, prediction: the Trainer's, of the validation and of the test split.
        asked: the arguments of `finetune`.
    """
    names = splits["train"].features["label"].names
    write_model(folder, model, processor, unsure_below(tuning.predictions, tuning.label_ids, temperature))
    draw_pictures(str(folder), log_history, prediction, splits["test"], names, temperature)
    start = START.get(asked["weights"], f"from the weights in {asked['weights']}")
    monitor = asked["monitor_metric_name"]
    card = model_card(
        splits,
        prediction,
        model=model,
        asked=asked,
        temperature=temperature,
        best=best_epoch(log_history, monitor),
        architecture=Path(asked["model_name"]).name,
        size=input_size(processor),
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        start=start + (f" and with {Path(asked['teacher']).name} as its teacher" if asked["teacher"] else ""),
        monitor=monitor,
        command=command_line(asked),
    )
    card.save(folder / "README.md")


def check_numbers(asked: dict) -> None:
    """Make sure that the arguments of `finetune` are in their ranges.

    Raises:
        ValueError: with the flag that is not.
    """
    choices = {"monitor_metric_name": METRIC_NAMES, "class_weights": ("auto", "none")}
    for name, allowed in choices.items():
        if asked[name] not in allowed:
            raise ValueError(f"--{name} {asked[name]} is none of: {', '.join(map(str, allowed))}.")
    for name in ("epochs", "batch_size", "lr"):
        if asked[name] <= 0:
            raise ValueError(f"--{name} {asked[name]:g} must be greater than 0.")
    for name in ("freeze_epochs", "early_stopping"):
        if not 0 <= asked[name] < asked["epochs"]:
            raise ValueError(f"--{name} {asked[name]} must be 0 or more, and less than --epochs.")
    for name in ("label_smoothing", "ema_decay"):
        if not 0 <= asked[name] < 1:
            raise ValueError(f"--{name} {asked[name]:g} must be 0 or more, and less than 1.")
    smallest = smallest_size(asked["model_name"])
    if asked["image_size"] is not None and asked["image_size"] < smallest:
        raise ValueError(
            f"--image_size {asked['image_size']} is too small: {asked['model_name']} needs {smallest} pixels or more."
        )
    if asked["model_name"] not in NETWORKS and asked["weights"] not in START:
        raise ValueError(
            f"--weights {asked['weights']} is for torchvision's names. To start from that model, give its folder to --model_name."
        )


def clear_unfinished_run(unfinished: Path, command: str, overwrite: bool, resume: bool) -> None:
    """Remove the folder that holds the epochs of a run until it is done, unless they are to go on with.

    Raises:
        ValueError: if a run lies there that the flags do not continue or replace.
    """
    begun = unfinished / "command.txt"
    if resume and begun.is_file():
        if begun.read_text() != command:
            raise ValueError(
                f"--resume: the run in {unfinished} was begun by another command. Repeat this one: {begun.read_text()}"
            )
    elif unfinished.exists() and not (overwrite or resume):
        raise ValueError(
            f"A run was stopped before it was done, and its epochs are in {unfinished}. "
            "Add --resume to continue it, or --overwrite to start anew."
        )
    elif int(os.environ.get("RANK", 0)) == 0:
        shutil.rmtree(unfinished, ignore_errors=True)


def last_epoch(unfinished: Path) -> str | None:
    """Return the folder of the last epoch that a run has saved whole; trainer_state.json is written last."""

    def whole(state: Path) -> bool:
        try:
            return bool(json.loads(state.read_text()))
        except ValueError:  # the run was killed while it wrote this file
            return False

    folders = [state.parent for state in unfinished.glob("checkpoint-*/trainer_state.json") if whole(state)]
    return str(max(folders, key=lambda folder: int(folder.name.split("-")[1]))) if folders else None


def write_model(folder: Path, model, processor, unsure_below: float) -> None:
    """Write a new folder that transformers, ONNX runtimes and, if it is timm's network, timm open.

    Args:
        unsure_below: what the config also holds: the confidence below which an answer had better be "not sure".
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
    export_onnx(folder / "onnx", model, input_size(processor))


def export_onnx(folder: Path, model, size: int) -> None:
    """Write model.onnx, from pixel_values to logits, both of any number of photos, and compare it with torch.

    Raises:
        ValueError: if its logits are others.
    """
    import openvino
    import torch

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model(pixel_values).logits

    folder.mkdir()
    pixels = torch.rand(2, 3, size, size)
    with warnings.catch_warnings(action="ignore"):  # torch's, about tracing
        torch.onnx.export(
            Logits().eval(),
            (pixels[:1],),
            folder / "model.onnx",
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_axes={"pixel_values": {0: "photos"}, "logits": {0: "photos"}},
            dynamo=False,
        )
    with torch.inference_mode():
        expected = model(pixels).logits.numpy()
    found = openvino.compile_model(folder / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels.numpy())[0]
    if (difference := abs(found - expected).max()) > 1e-3 * max(1, abs(expected).max()):
        raise ValueError(f"The logits of the ONNX file differ from torch's by up to {difference:.1g}.")


def command_line(asked: dict) -> str:
    """Return the command that trains what `finetune` was asked for, with the defaults, which another version may change."""
    processes = os.environ.get("WORLD_SIZE", "1")
    words = ["python" if processes == "1" else f"torchrun --nproc_per_node {processes}", "finetune.py"]
    for name, value in asked.items():
        if value is not None and value is not False and name not in ("resume", "overwrite", "push_to_hub"):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return " ".join([*words[:2], shlex.join(words[2:])])


def class_counts(part) -> str:
    """Return how many photos of each class a split holds, in words."""
    counts = Counter(part["label"])
    return ", ".join(f"{name} {counts[index]}" for index, name in enumerate(part.features["label"].names))


def best_epoch(log_history: list[dict], monitor: str) -> tuple[int, float]:
    """Return the epoch whose validation metric is the best, and the metric; the first one of equals, as the Trainer."""
    found = [(round(entry["epoch"]), entry[f"eval_{monitor}"]) for entry in log_history if f"eval_{monitor}" in entry]
    return (min if monitor == "loss" else max)(found, key=lambda epoch: epoch[1])


def model_card(splits, prediction, *, model, asked: dict, temperature: float, best: tuple[int, float], **facts):
    """Return the model card, with the test split's numbers in its text and, for the Hub, as `model-index`.

    Args:
        prediction: the Trainer's, of the test split, not calibrated.
        asked: the arguments of `finetune`.
        facts: what the card's text names besides: architecture, size, megabytes, start, monitor, command.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData
    from scipy.stats import binomtest
    from sklearn.metrics import precision_recall_fscore_support

    names = splits["train"].features["label"].names
    measured = metrics(prediction)
    logits, labels = prediction.predictions, prediction.label_ids
    right = binomtest(int((logits.argmax(1) == labels).sum()), len(labels)).proportion_ci(method="wilson")
    precision, recall, _, counts = precision_recall_fscore_support(
        prediction.label_ids, prediction.predictions.argmax(-1), labels=range(len(names)), zero_division=0
    )
    data_path = str(asked["data_path"])
    shared_data = not Path(data_path).is_dir()
    where = {
        "task_type": "image-classification",
        "dataset_type": data_path if shared_data else "imagefolder",
        "dataset_name": Path(data_path).name,
        "dataset_split": "test",
    }
    of_hub = asked["model_name"] not in NETWORKS and not Path(asked["model_name"]).exists()
    is_timm = hasattr(model, "timm_model")
    data = ModelCardData(
        license=asked["license"],
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", *(["timm"] if is_timm else []), "onnx", "transformers.js"],
        datasets=[data_path] if shared_data else None,
        base_model=asked["model_name"] if of_hub else None,
        model_name=facts["architecture"],
        eval_results=[
            EvalResult(
                **where,
                metric_type=name,
                metric_name=name if name == "accuracy" else f"{name} (macro)",
                metric_value=round(value, 4),
                metric_args=None if name == "accuracy" else {"average": "macro"},
            )
            for name, value in measured.items()
        ],
    )
    folder = asked["checkpoints_path"] or f"checkpoints/{Path(asked['model_name']).name}"
    repo = asked["push_to_hub"] or folder
    per_class = zip(names, counts, precision, recall, strict=True)
    text = CARD.format(
        **facts,
        labels=", ".join(names),
        kind=f"timm's `{model.config.architecture}`, which is the same network" if is_timm else "of transformers",
        parameters=f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        photos=len(splits["train"]),
        test_photos=len(splits["test"]),
        best_epoch=best[0],
        best_value=best[1],
        temperature=temperature,
        results="\n".join(
            f"- {name}{'' if name == 'accuracy' else ' (macro)'}: {value:.4f}"
            + f" (95 % interval {right.low:.4f} to {right.high:.4f})" * (name == "accuracy")
            for name, value in measured.items()
        ),
        bins=CALIBRATION_BINS,
        ece_before=calibration(logits, labels, 1.0)[1],
        ece=calibration(logits, labels, temperature)[1],
        fingerprint=fingerprint(splits["test"]),
        per_class="\n".join("| {} | {} | {:.4f} | {:.4f} |".format(*row) for row in per_class),
        counts="; ".join(f"{split} {class_counts(splits[split])}" for split in SPLITS),
        versions=", ".join(
            f"{name} {version(name)}" for name in ("torch", "torchvision", "transformers", "timm", "datasets")
        ),
        repo=repo,
        timm=TIMM_SNIPPET.format(source=f"hf-hub:{repo}" if asked["push_to_hub"] else f"local-dir:{repo}")
        if is_timm
        else "",
    )
    return ModelCard(f"---\n{data}\n---\n\n{text}")


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, for the use inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def retried(call):
    """Return what `call()` returns, called again while the Hub is busy or the connection is cut, for about 20 seconds.

    Raises:
        OSError, ValueError: what the last call raised.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

    def passing(error: BaseException) -> bool:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code == 429 or error.response.status_code >= 500
        return isinstance(error, httpx2.TransportError)

    wait = wait_exponential_jitter(initial=1, max=30)
    retrying = Retrying(retry=retry_if_exception(passing), wait=wait, stop=stop_after_attempt(5), reraise=True)
    try:
        return retrying(call)
    except httpx2.TransportError as error:
        raise ConnectionError(str(error)) from error


def create_repo(repo_id: str) -> None:
    """Make sure that the private model repo exists and may be written.

    Raises:
        OSError: with the reason, if not.
    """
    from huggingface_hub import HfApi

    try:
        retried(lambda: HfApi().create_repo(repo_id, private=True, exist_ok=True))
    except (OSError, ValueError) as error:
        raise OSError(
            f"--push_to_hub {repo_id}: the Hub does not give a repo to write to ({first_line(error)}). "
            "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there."
        ) from error


def push(folder: Path, repo_id: str) -> None:
    """Upload the checkpoint folder in one commit.

    Raises:
        OSError: with the command that uploads it later, if the Hub does not take it.
    """
    from huggingface_hub import HfApi

    try:
        message = "Upload the checkpoint"
        commit = retried(lambda: HfApi().upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))
    except (OSError, ValueError) as error:
        raise OSError(
            f"The checkpoint is whole in {folder}, but the Hub did not take it ({first_line(error)}). "
            f"Push it later with: hf upload {repo_id} {folder}"
        ) from error
    print(f"Pushed to {repo_id}, revision {commit.oid}")


def parser() -> argparse.ArgumentParser:
    """Return the parser; `main` also takes the flags with hyphens."""
    parser = argparse.ArgumentParser(
        prog="finetune.py",
        description="Fine-tune an image classifier on a dataset made by prep.py, and write a model folder, which is a model of the Hub.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    required = {"required": True, "default": argparse.SUPPRESS}
    add = parser.add_argument_group("data").add_argument
    add("--data_path", help="folder written by prep.py, or a dataset on the Hub", **required)
    add("--nclasses", type=int, metavar="N", help="number of classes; checked against the data, which decides")
    square = f"side of the square that a photo is scaled to; if not given, {IMAGE_SIZE}, 224 for a VGG, or what a model of the Hub takes"
    add("--image_size", type=int, metavar="PIXELS", help=square)
    add = parser.add_argument_group("model").add_argument
    names = f"an image classifier of the Hub (owner/name), a folder of one, or one of: {', '.join(NETWORKS)}"
    add("--model_name", default="mobilenet_v3_small", metavar="NAME", help=names)
    start = "DEFAULT: the pretrained weights; none: from scratch; or, for a name of torchvision, a safetensors file or folder"
    add("--weights", default="DEFAULT", metavar="WHICH", help=start)
    taught = "image classifier of any classes, a Hub id or folder that transformers loads, to learn from as well"
    add("--teacher", metavar="MODEL", help=taught)
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, default=3, metavar="N", help="passes over the training photos")
    frozen = "first epochs in which only the new last layer learns"
    add("--freeze_epochs", type=int, default=0, metavar="N", help=frozen)
    add("--early_stopping", type=int, default=0, metavar="N", help="stop after N epochs without a better one; 0: never")
    add("--batch_size", type=int, default=64, metavar="N", help="photos per step, of all processes")
    rate = "highest learning rate; it warms up and falls along a cosine"
    add("--lr", type=float, default=1e-3, metavar="RATE", help=rate)
    smooth = "share of the label given to all classes"
    add("--label_smoothing", type=float, default=0.0, metavar="SHARE", help=smooth)
    mix = "mix photos and their labels by MixUp or CutMix: in half of the steps at first, and in fewer and fewer"
    add("--mix", action="store_true", help=mix)
    average = "evaluate the moving average of the weights, with this decay, such as 0.999; 0: the weights themselves"
    add("--ema_decay", type=float, default=0.0, metavar="DECAY", help=average)
    rare = "auto: the loss counts rare classes more, by the root of their frequency"
    add("--class_weights", default="auto", choices=("auto", "none"), help=rare)
    best = "validation metric that decides which epoch is kept"
    add("--monitor_metric_name", default="accuracy", choices=METRIC_NAMES, help=best)
    add("--seed", type=int, default=42, help="the same seed gives the same weights on the same machine")
    devices = ("auto", "cuda", "mps", "cpu")
    add("--device", default="auto", choices=devices, help="auto takes the first of the others there is")
    add = parser.add_argument_group("output").add_argument
    written = "folder of the checkpoint; if not given, checkpoints/NAME of the model"
    add("--checkpoints_path", metavar="FOLDER", help=written)
    add("--overwrite", action="store_true", help="replace a checkpoint, or an unfinished run, that is already there")
    resumed = "go on after the last whole epoch of a run that was stopped, if there is one"
    add("--resume", action="store_true", help=resumed)
    add("--license", default="other", metavar="ID", help="what the card says of the licence, such as apache-2.0")
    pushed = "also upload the checkpoint to this model repo, private if it is new"
    add("--push_to_hub", metavar="REPO_ID", help=pushed)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = [underscored(argument) for argument in (sys.argv[1:] if argv is None else argv)]
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


def underscored(argument: str) -> str:
    """Return `--data-path=a-b` as `--data_path=a-b`, so that both spellings of a flag work."""
    flag, equals, value = argument.partition("=")
    return flag.replace("-", "_").replace("__", "--", 1) + equals + value if flag.startswith("--") else argument


if __name__ == "__main__":
    main()
