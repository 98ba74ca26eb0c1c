"""Timings and accuracy, run by hand.

    pip install cleanvision && python tests/benchmark.py prep --image_path images --label_path labels.csv
    python tests/benchmark.py rows --image_path images
    python tests/benchmark.py train --data_path dataset --teacher efficientnet_lite2
    python tests/benchmark.py options --data_path dataset --teacher efficientnet_lite0
    python tests/benchmark.py serve --image_path full_size
    python tests/benchmark.py accuracy --image_path images --label_path labels.csv
    python tests/benchmark.py crowd
    python tests/benchmark.py soak
    python tests/benchmark.py fuzz --minutes 20

Each prints tables on stdout, timings with their ratios against the alternative in the same run.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

DECODE = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
def decode(file):
    try:
        with Image.open(file) as image:
            image.load()
    except OSError:
        pass
files = open(sys.argv[1]).read().splitlines()
with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(decode, files))
"""

IMAGEFOLDER = """
import os, sys
from datasets import load_dataset
dataset = load_dataset("imagefolder", data_dir=sys.argv[1], split="train")
def whole(photo):
    try:
        photo["image"].load()
        return {"whole": True}
    except OSError:
        return {"whole": False}
dataset = dataset.map(whole, num_proc=os.cpu_count()).filter(lambda whole: whole, input_columns="whole")
dataset = dataset.remove_columns("whole").train_test_split(0.3, stratify_by_column="label", seed=42)
dataset.save_to_disk(sys.argv[2])
"""

CLEANVISION = (
    """
import sys
from cleanvision import Imagelab
lab = Imagelab(data_path=sys.argv[1])
lab.find_issues()
"""
    + IMAGEFOLDER
)


def measured(command: list) -> tuple[float, float]:
    """Return the seconds and the peak MB (10^6 bytes) of a command; its children's memory counts as one's own maximum."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            sys.exit(log.read().decode()[-2000:])
    return time.perf_counter() - start, usage.ru_maxrss * (1024 if sys.platform == "linux" else 1) / 1e6


def printed(command: list) -> str:
    """Return what a command prints on stdout; if it fails, stop with its errors."""
    result = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr[-2000:])
    return result.stdout


def table(header: tuple, rows: list[tuple]) -> None:
    """Print a Markdown table."""
    for row in (header, ("---",) * len(header), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


def labelled_files(image_path: Path, label_path: Path) -> list[tuple[Path, str]]:
    """Return the rows of the CSV (columns image_name and label) whose file exists and whose label is not empty."""
    with label_path.open(encoding="utf-8") as file:
        rows = [(image_path / row["image_name"], row["label"]) for row in csv.DictReader(file)]
    return [(file, label) for file, label in rows if label and file.is_file()]


def prep(image_path: Path, label_path: Path) -> None:
    """prep.py with 2,000 and with 20,000 photos; decoding alone; cleanvision, and datasets' imagefolder with a map."""
    from PIL import Image

    def is_whole(file: Path) -> bool:
        with contextlib.suppress(OSError), Image.open(file) as photo:
            photo.load()
            return True
        return False

    # cleanvision ends at the first damaged photo.
    photos = [(file, label) for file, label in labelled_files(image_path, label_path) if is_whole(file)]
    # Mixed, so that 2,000 of them have every class: real tables are often sorted.
    photos = [photos[index * 7919 % len(photos)] for index in range(len(photos))][:20_000]
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in (len(photos) // 10, len(photos)):
            labels, files, folders = (Path(scratch, f"{name}{count}") for name in ("labels", "files", "folders"))
            labels.write_text(
                "\n".join(["image_name,label", *(f"{f.relative_to(image_path)},{name}" for f, name in photos[:count])])
            )
            files.write_text("\n".join(str(file) for file, _ in photos[:count]))
            for file, label in photos[:count]:
                (folders / label).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folders / label / file.name)
            command = ["--image_path", image_path, "--label_path", labels, "--dst_path", Path(scratch, f"a{count}")]
            alternatives = {
                "prep.py": [ROOT / "prep.py", *command],
                "decoding alone, parallel": ["-c", DECODE, files],
                "imagefolder + map + split": ["-c", IMAGEFOLDER, folders, Path(scratch, f"b{count}")],
                "cleanvision, then imagefolder": ["-c", CLEANVISION, folders, Path(scratch, f"c{count}")],
            }
            for name, words in alternatives.items():
                seconds, memory = found[name, count] = measured(words)
                ratio = seconds / found["prep.py", count][0]
                speed = f"{count / seconds:.0f}"
                rows.append((name, count, f"{seconds:.1f}", speed, f"{memory:.0f}", f"{ratio:.2f}"))
    table(("what", "photos", "s", "photos/s", "peak MB", "time against prep.py's"), rows)
    small, large = found["prep.py", len(photos) // 10], found["prep.py", len(photos)]
    steady = (len(photos) * 9 / 10) / (large[0] - small[0])
    decode = (len(photos) * 9 / 10) / (
        found["decoding alone, parallel", len(photos)][0] - found["decoding alone, parallel", len(photos) // 10][0]
    )
    print()
    table(
        ("prep.py, ten times the photos", "ratio"),
        [
            ("time", f"{large[0] / small[0]:.1f}"),
            ("peak memory", f"{large[1] / small[1]:.2f}"),
            ("photos/s past the start, against decoding alone", f"{steady / decode:.2f}"),
        ],
    )


def rows(image_path: Path, most: int) -> None:
    """prep.py with 10,000, 100,000 and 1,000,000 rows of 1,000 folders: hard links to small copies of photos."""
    from PIL import Image

    found = []
    with tempfile.TemporaryDirectory(dir=image_path.parent) as scratch:
        small = Path(scratch, "small")
        small.mkdir()
        for file in sorted(image_path.glob("*.jpg"))[:5000]:
            with contextlib.suppress(OSError), Image.open(file) as image:
                image.convert("RGB").resize((64, 64)).save(small / file.name)
        files = sorted(small.iterdir())
        for count in (10_000, 100_000, 1_000_000):
            if count > most:
                break
            folder, labels = Path(scratch, f"folders{count}"), Path(scratch, f"{count}.csv")
            with labels.open("w") as table_of_rows:
                table_of_rows.write("file,label\n")
                for number in range(count):
                    place = folder / f"{number % 1000:03d}"
                    place.mkdir(parents=True, exist_ok=True)
                    os.link(files[number % len(files)], place / f"{number}.jpg")
                    table_of_rows.write(f"{place.name}/{number}.jpg,class {number % len(files) % 100}\n")
            command = ["--image_path", folder, "--label_path", labels, "--dst_path", Path(scratch, f"out{count}")]
            seconds, memory = measured([ROOT / "prep.py", *command])
            found.append((count, f"{seconds:.1f}", f"{count / seconds:.0f}", f"{memory:.0f}"))
            shutil.rmtree(folder)
    table(("rows", "s", "rows/s", "peak MB"), found)


BARE_LOOP = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
import finetune
finetune.keep_freed_memory()
model = finetune.build_model("mobilenet_v3_small", ["a", "b", "c"], "none", None)[0].train()
optimizer = torch.optim.AdamW(model.parameters())
pixels, labels = torch.randn(64, 3, 160, 160).contiguous(memory_format=torch.channels_last), torch.randint(0, 3, (64,))
def step():
    torch.nn.functional.cross_entropy(model(pixels).logits, labels).backward()
    optimizer.step()
    optimizer.zero_grad()
for _ in range(3):
    step()
start = time.perf_counter()
for _ in range(30):
    step()
print("photos/s", 30 * 64 / (time.perf_counter() - start))
"""

REPORT = """
import sys, time, transformers
class Report(transformers.TrainerCallback):
    def on_epoch_begin(self, *_, **__):
        self.start = time.perf_counter()
    def on_epoch_end(self, args, state, *_, **__):
        print("photos/s", len(part) / (time.perf_counter() - self.start))
"""

OURS = """
sys.path.insert(0, sys.argv[1])
import finetune
splits = finetune.load_splits(sys.argv[2])
splits["train"] = part = splits["train"].shuffle(seed=0).select(range(min(len(splits["train"]), 3200)))
splits["validation"], splits["test"] = (splits[name].shuffle(seed=0).select(range(64)) for name in ("validation", "test"))
finetune.load_splits = lambda path: splits
def photos_as_at_the_end(train, trial):
    train.side = 160  # the size of the last epochs, and of the others' photos here
    return Report()
finetune.by_epoch = photos_as_at_the_end
finetune.READING_PHOTOS = 400
teacher = sys.argv[4] if sys.argv[4:] else None
finetune.finetune(data_path=sys.argv[2], weights="none", epochs=2, checkpoints_path=sys.argv[3], teacher=teacher)
"""

STOCK = """
import torch, torchvision
from datasets import load_from_disk
from torchvision.transforms import v2
part = load_from_disk(sys.argv[2])["train"]
part = part.shuffle(seed=0).select(range(min(len(part), 1600)))
normalize = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
change = v2.Compose([v2.RandomResizedCrop(160), v2.RandomHorizontalFlip(), v2.ToImage(),
    v2.ToDtype(torch.float32, scale=True), normalize])  # those of transformers' run_image_classification.py
changed = part.with_transform(
    lambda rows: {"pixel_values": [change(image.convert("RGB")) for image in rows["image"]], "labels": rows["label"]})
class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = torchvision.models.get_model("mobilenet_v3_small", num_classes=3)
    def forward(self, pixel_values, labels):
        logits = self.network(pixel_values)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}
options = transformers.TrainingArguments(output_dir=sys.argv[3], num_train_epochs=2, per_device_train_batch_size=64,
    remove_unused_columns=False, save_strategy="no", report_to="none")
transformers.Trainer(model=Plain(), args=options, train_dataset=changed, callbacks=[Report()]).train()
"""

ASK_TEACHER = """
import sys, time, torch, transformers
sys.path.insert(0, sys.argv[1])
import finetune
views = torch.randint(0, 256, (64, 160, 160, 3), dtype=torch.uint8)
teacher = finetune.Teacher(sys.argv[4], "cpu")
model = transformers.AutoModelForImageClassification.from_pretrained(sys.argv[4], dtype=torch.float32).eval()
def eager(views):
    with torch.inference_mode():
        pixels = torch.nn.functional.interpolate(views.permute(0, 3, 1, 2), (teacher.size,) * 2, mode="bilinear", antialias=True)
        return model(finetune.scale(pixels, teacher.processor).contiguous()).logits
ask = eager if sys.argv[5:] else teacher.logits
ask(views)
start = time.perf_counter()
for _ in range(4):
    ask(views)
print("photos/s", 4 * 64 / (time.perf_counter() - start))
"""


def train(data_path: Path, teacher: str | None) -> None:
    """An epoch of finetune.py at 160 pixels, alone and by torchrun; the bare loop; a stock Trainer; with a teacher."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", os.cpu_count(), "--no_python", sys.executable]
        programs = {
            "finetune.py": ([], REPORT + OURS, []),
            "torchrun finetune.py, a process per core": (torchrun, REPORT + OURS, []),
            "bare loop": ([], BARE_LOOP, []),
            "stock Trainer": ([], REPORT + STOCK, []),
        }
        if teacher:
            programs["finetune.py --teacher"] = ([], REPORT + OURS, [teacher])
            programs["torchrun finetune.py --teacher"] = (torchrun, REPORT + OURS, [teacher])
            programs["the teacher alone"] = ([], ASK_TEACHER, [teacher])
            programs["the teacher alone, in eager torch"] = ([], ASK_TEACHER, [teacher, "eager"])
        for name, (start, code, more) in programs.items():
            command = [sys.executable, *start, "-c", code, ROOT, data_path, Path(scratch, name.replace(" ", "")), *more]
            found[name] = float(re.findall(r"photos/s (\S+)", printed(command))[-1])
    ours = list(found.values())[:2]
    rows = [(name, f"{speed:.0f}", *(f"{one / speed:.2f}" for one in ours)) for name, speed in found.items()]
    table(("what", "photos/s", "finetune.py against it", "torchrun finetune.py against it"), rows)


OPTIONS = ("", "--teacher {}", "--class_weights none")


def options(data_path: Path, teacher: str) -> None:
    """Test accuracy and F1 with each option of the training, from scratch at 96 pixels, 20 epochs, for three seeds."""
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    def trained(option: str, seed: str) -> tuple[float, ...]:
        with tempfile.TemporaryDirectory() as scratch:
            command = ["env", "OMP_NUM_THREADS=1", sys.executable, ROOT / "finetune.py", "--data_path", data_path]
            command += ["--weights", "none", "--image_size", "96", "--epochs", "20", "--batch_size", "32"]
            command += ["--lr", "2e-3", "--seed", seed, "--checkpoints_path", Path(scratch, "pets")]
            printed([*command, *option.format(teacher).split()])
            card = Path(scratch, "pets", "README.md").read_text()
        return tuple(float(re.search(rf"- {name}[^:]*: (\S+)", card)[1]) for name in ("accuracy", "f1"))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a run for each core: together they take less time
        runs = [pool.submit(trained, option, seed) for option in OPTIONS for seed in ("1", "2", "3")]
        found = [run.result() for run in tqdm(runs, unit="run")]
    rows = []
    for index, option in enumerate(OPTIONS):
        seeds = found[3 * index : 3 * index + 3]
        means = [sum(values) / 3 for values in zip(*seeds, strict=True)]
        rows.append((option.split(" {")[0] or "none", *(f"{one:.4f}, {two:.4f}" for one, two in (*seeds, means))))
    table(("option", "seed 1: accuracy, F1", "seed 2", "seed 3", "mean"), rows)


ENGINE = """
import io, json, os, statistics, sys, time, warnings
warnings.filterwarnings("ignore")
root, folder, kind, cores = *sys.argv[1:4], int(sys.argv[4])
files = sys.argv[5:]
os.environ.update({"MOBILENET_MODEL": folder, "VIT_MODEL": "nowhere", "HF_HUB_OFFLINE": "1"})
os.environ["GRADIO_TEMP_DIR"] = os.path.commonpath(files)
sys.path.insert(0, root)
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from PIL import Image
photos = [open(file, "rb").read() for file in files]

def resized(file, size):
    image = Image.open(file).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1)[None] / 255

def ms(inputs, **functions):
    times = {name: [] for name in functions}
    for data in [inputs[0], *inputs]:
        for name, function in functions.items():  # in turn, so that a slow moment of the machine meets all of them
            start = time.perf_counter()
            function(data)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(found[1:]) for name, found in times.items()}

if kind == "pipeline":
    import transformers
    ask = transformers.pipeline("image-classification", model=folder)
    found = ms(photos, **{"transformers.pipeline": lambda data: ask(Image.open(io.BytesIO(data)))})
elif kind == "callers":
    import app
    app.classifier("mobilenet")
    single = lambda data: app.answers([app.open_photo(io.BytesIO(data))], "mobilenet")
    found = {}
    for callers in (1, 8, 32):
        with ThreadPoolExecutor(callers) as pool:
            start = time.perf_counter()
            list(pool.map(single, photos))
            found[callers] = len(photos) / (time.perf_counter() - start)
else:
    import app
    app.UPLOADS = app.Path(files[0]).parent
    ready = app.classifier("mobilenet")
    size = ready.pixels([Image.new("RGB", (9, 9))]).shape[-1]
    single = lambda data: app.answers([app.open_photo(io.BytesIO(data))], "mobilenet")
    uploads = [{"path": file} for file in files]
    bare = lambda data: ready.logits(resized(io.BytesIO(data), size))
    found = ms(photos, **{"app.py": single, "decode, resize, compiled forward": bare})
    if kind == "batch":
        start = time.perf_counter()
        list(app.predict_batch(uploads, "mobilenet"))
        found["batch"] = len(files) / (time.perf_counter() - start)
        found.update(ms(photos, **{"a photo alone": single}))
        with ThreadPoolExecutor(1) as pool:
            batches = pool.submit(lambda: [list(app.predict_batch(uploads, "mobilenet")) for _ in range(6)])
            found.update(ms(photos[:100], **{"a photo while batches run": single}))
            assert not batches.done()
        with ThreadPoolExecutor(cores) as pool:
            start = time.perf_counter()
            list(pool.map(lambda file: resized(file, size), files))
            found["decode, resize"] = len(files) / (time.perf_counter() - start)
print("found", json.dumps(found))
"""

CONSTANT_APP = """
import gradio as gr
def predict(image, model):
    return {"Cat": 0.5, "Dog": 0.3, "Neither": 0.2}
with gr.Blocks(analytics_enabled=False) as demo:
    photo, model, label = gr.Image(type="pil"), gr.Dropdown(["mobilenet", "vit"], value="mobilenet"), gr.Label()
    gr.Button().click(predict, [photo, model], label, api_name="predict")
demo.launch()
"""

# Callers in a process of their own, each with a connection that it keeps: address, how many, photos.
CALLERS = """
import socket, sys, time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit
address, callers = urlsplit(sys.argv[1]), int(sys.argv[2])
photos = [open(file, "rb").read() for file in sys.argv[3:]]
head = f"POST {address.path} HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: image/jpeg\\r\\nContent-Length: "
requests = [f"{head}{len(photo)}\\r\\n\\r\\n".encode() + photo for photo in photos]
def call(requests):
    connection = socket.create_connection((address.hostname, address.port))
    for request in requests:
        connection.sendall(request)
        answer = b""
        while not answer.endswith(b"]"):
            answer += connection.recv(65536)
        assert b" 200 " in answer[:20], answer
start = time.perf_counter()
with ThreadPoolExecutor(callers) as pool:
    list(pool.map(call, (requests[caller::callers] for caller in range(callers))))
print("found", len(photos) / (time.perf_counter() - start))
"""

PIPELINE_SERVER = """
import io, os
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from transformers import pipeline
ask, server = pipeline("image-classification", model=os.environ["MODEL"]), FastAPI()
@server.get("/")
def page():
    return "up"
@server.post("/predict")
async def predict(request: Request):
    body = await request.body()
    return await run_in_threadpool(lambda: ask(Image.open(io.BytesIO(body))))
uvicorn.run(server, port=int(os.environ["GRADIO_SERVER_PORT"]), log_level="warning")
"""


def serve(image_path: Path) -> None:
    """One photo, many, over HTTP, start and memory of app.py against the usual ways; the folder needs 200 photos."""
    from transformers import (
        TimmWrapperConfig,
        TimmWrapperForImageClassification,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
    )

    photos = sorted(file for file in image_path.rglob("*") if file.suffix == ".jpg")[:200]
    with tempfile.TemporaryDirectory() as scratch:
        vit, mobilenet = Path(scratch, "vit-base"), Path(scratch, "timm-mobilenetv3-small")
        ViTForImageClassification(ViTConfig(num_labels=1000)).save_pretrained(vit)
        ViTImageProcessor().save_pretrained(vit)
        sizes = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
        config = TimmWrapperConfig(architecture="mobilenetv3_small_100", num_labels=1000, pretrained_cfg=sizes)
        TimmWrapperForImageClassification(config).save_pretrained(mobilenet)

        def engine(kind: str, folder: Path, files: list[Path]) -> dict[str, float]:
            command = [sys.executable, "-c", ENGINE, ROOT, folder, kind, os.cpu_count(), *files]
            return json.loads(printed(command).split("found ")[1])

        rows = []
        for name, folder, number in (("ViT-B/16", vit, 30), ("MobileNetV3-small", mobilenet, 200)):
            found = {**engine("app", folder, photos[:number]), **engine("pipeline", folder, photos[:number])}
            rows += [(name, what, f"{time:.1f}", f"{time / found['app.py']:.2f}") for what, time in found.items()]
        table(("model, random weights", "from bytes to scores", "ms, median", "against app.py"), rows)
        print()
        found = engine("batch", ROOT / "examples" / "mobilenet_v3_small", photos)
        rows = [
            (what, f"{found[what]:.0f}", f"{found['batch'] / found[what]:.2f}") for what in ("batch", "decode, resize")
        ]
        table((f"{len(photos)} photos at once", "photos/s", "batch against it"), rows)
        print()
        beside = [found[what] for what in ("a photo while batches run", "a photo alone")]
        table(("a photo", "ms, median"), [("while batches run", f"{beside[0]:.1f}"), ("alone", f"{beside[1]:.1f}")])
        print()
        for name, code in (("constant", CONSTANT_APP), ("pipeline", PIPELINE_SERVER)):
            Path(scratch, name).mkdir()
            Path(scratch, name, "app.py").write_text(code)
        empty = {"HF_ASSETS_CACHE": str(Path(scratch, "assets"))}
        shipped = str(ROOT / "examples" / "mobilenet_v3_small")
        measures = {
            "app.py, one model": over_http(photos, ROOT, VIT_MODEL="none", **empty),
            "app.py, both models, its first start": over_http(photos, ROOT, VIT_MODEL=str(vit), **empty),
            "app.py, both models, started again": over_http(photos, ROOT, VIT_MODEL=str(vit), **empty),
            "FastAPI and transformers.pipeline": over_http(photos, Path(scratch, "pipeline"), MODEL=shipped),
            "gradio, constant answer": over_http(photos, Path(scratch, "constant")),
        }
        callers_table(photos, scratch, shipped)
    print()
    other = measures["app.py, one model"]
    rows = [
        (what, *(f"{one:.4g} ({one / two:.2f})" for one, two in zip(found, other, strict=True)))
        for what, found in measures.items()
    ]
    table(("(against the first)", "ms, median", "calls/s, 8 callers", "s to page", "s to answer", "peak MB"), rows)


def callers_table(photos: list[Path], scratch: str, shipped: str) -> None:
    """Print photos/s of /api/predict, of decoding and the model without HTTP, and of FastAPI around a pipeline."""
    from conftest import app_process
    from PIL import Image

    new = []  # no photo twice, so no answer comes from memory
    for number in range(3 * len(photos)):
        with Image.open(photos[number % len(photos)]) as photo:
            new.append(Path(scratch, f"{number}.jpg"))
            photo.crop((number // len(photos), 0, *photo.size)).convert("RGB").save(new[-1], quality=92)

    def rates(folder: Path, path: str, **environment) -> list[float]:
        with app_process(folder, HF_HUB_OFFLINE="1", **environment) as (_, url):
            printed([sys.executable, "-c", CALLERS, url + path, 1, ROOT / "examples" / "cat-chelsea.jpg"])
            parts = [new[start : start + len(photos)] for start in range(0, len(new), len(photos))]
            commands = [
                [sys.executable, "-c", CALLERS, url + path, callers, *part]
                for callers, part in zip((1, 8, 32), parts, strict=True)
            ]
            return [float(printed(command).split("found ")[1]) for command in commands]

    ours = rates(ROOT, "/api/predict", VIT_MODEL="none")
    command = [sys.executable, "-c", ENGINE, ROOT, shipped, "callers", os.cpu_count(), *photos]
    bare = list(json.loads(printed(command).split("found ")[1]).values())
    others = rates(Path(scratch, "pipeline"), "/predict", MODEL=shipped)
    rows = [
        (callers, f"{one:.0f}", f"{two:.0f} ({one / two:.2f})", f"{three:.0f} ({one / three:.1f})")
        for callers, one, two, three in zip((1, 8, 32), ours, bare, others, strict=True)
    ]
    table(("callers", "photos/s of /api/predict", "without HTTP (ratio)", "FastAPI and pipeline (ratio)"), rows)


def over_http(photos: list[Path], folder: Path, **environment) -> tuple[float, ...]:
    """Return ms of a call, requests/s of 8 callers, s from the start to the page and to an answer, peak MB of an app."""
    from concurrent.futures import ThreadPoolExecutor
    from statistics import median

    from conftest import app_process, ask, call_endpoint, data_url

    start = time.perf_counter()
    with app_process(folder, HF_HUB_OFFLINE="1", **environment) as (_, url):
        page = time.perf_counter() - start

        def call(photo: Path, model: str = "mobilenet") -> float:
            """Ask by plain HTTP: the client libraries take longer than a server."""
            start = time.perf_counter()
            if "MODEL" in environment:
                assert ask(f"{url}/predict", photo.read_bytes())[0] == 200
            else:
                assert "event: complete" in call_endpoint(url, "predict", data_url(photo), model)
            return time.perf_counter() - start

        call(ROOT / "examples" / "cat-chelsea.jpg")
        answer = time.perf_counter() - start
        if environment.get("VIT_MODEL", "none") != "none":
            call(photos[0], "vit")
        half = len(photos) // 2
        latency = median(call(photo) for photo in photos[:half])
        with ThreadPoolExecutor(8) as pool:
            start = time.perf_counter()
            list(pool.map(call, photos[half:]))
            rate = (len(photos) - half) / (time.perf_counter() - start)
        port = url.rsplit(":", 1)[1]
        peak = 0.0
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                if f"GRADIO_SERVER_PORT={port}".encode() in (status.parent / "environ").read_bytes():
                    peak = max(peak, int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024 / 1e6)
        return 1000 * latency, rate, page, answer, peak


def accuracy(image_path: Path, label_path: Path) -> None:
    """What the running app answers, by both models: accuracy, recall of each label, expected calibration error."""
    import numpy as np
    from conftest import running_app
    from gradio_client import Client, handle_file

    photos = labelled_files(image_path, label_path)
    truth = np.array([label for _, label in photos])
    rows = []
    with running_app() as url:
        client = Client(url, verbose=False)
        for model in ("mobilenet", "vit"):
            answers = []
            try:
                for start in range(0, len(photos), 100):
                    files = [handle_file(file) for file, _ in photos[start : start + 100]]
                    answers += client.predict(files, model, api_name="/predict_batch")["data"]
            except Exception as error:  # noqa: BLE001 - a model that cannot be loaded has no numbers
                print(error)
                continue
            found, confidence = np.array([row[1] for row in answers]), np.array([row[2] or 0 for row in answers])
            right = found == truth
            place = (confidence * 15).clip(0, 14).astype(int)
            error = sum((place == one).mean() * abs((confidence - right)[place == one].mean()) for one in set(place))
            recalls = [right[truth == label].mean() if label in truth else None for label in ("Cat", "Dog", "Neither")]
            rows.append((model, *("" if x is None else f"{x:.4f}" for x in (right.mean(), *recalls, error))))
    print(f"{len(photos)} photos")
    table(("model", "accuracy", "Cat recall", "Dog recall", "Neither recall", "calibration error"), rows)


def crowd(callers: int) -> None:
    """Callers who all send a photo at the same moment: how many are answered or told that the app is busy, and when."""
    import io
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from conftest import fetch_result, running_app, start_call, upload_file
    from PIL import Image

    with Image.open(ROOT / "examples" / "cat-chelsea.jpg") as photo:
        pixels = np.asarray(photo.convert("RGB"))
    with running_app(VIT_MODEL="none") as url, ThreadPoolExecutor(callers) as pool:

        def upload(number: int) -> dict:
            file = io.BytesIO()
            Image.fromarray(np.roll(pixels, number, axis=1)).save(file, "JPEG")  # so no answer comes from memory
            return upload_file(url, "a.jpg", file.getvalue())

        def call(file: dict) -> tuple[str, float]:
            start = time.perf_counter()
            status, _, content = start_call(url, "predict", file, "mobilenet")
            kind = "busy" if status == 503 else "lost"
            if status == 200 and "event: complete" in fetch_result(url, "predict", content):
                kind = "answered"
            return kind, time.perf_counter() - start

        call(upload(callers))  # the model is there
        files = [upload(number) for number in range(callers)]
        found = list(pool.map(call, files))
        alone = call(upload(callers + 1))
    rows = []
    for kind in ("answered", "busy", "lost"):
        times = [seconds for one, seconds in found if one == kind]
        rows.append(
            (kind, len(times), *(f"{np.quantile(times, share):.2f}" if times else "" for share in (0.5, 0.95, 1)))
        )
    table((f"of {callers} callers at once", "number", "s, median", "s, 95th percentile", "s, longest"), rows)
    print(f"The next call: {alone[0]} in {alone[1]:.2f} s")
    sys.exit(any(kind == "lost" for kind, _ in [*found, alone]))


SOAKED = """
import app, os, sys
import numpy as np
app.KEEP_SECONDS = 10  # so that the folder of uploads shows whether it is bounded
if sys.argv[1:] == ["leak"]:
    kept, answers = [], app.answers
    app.answers = lambda photos, model: kept.append(np.ones(100_000)) or answers(photos, model)
os._exit(app.serve())
"""


def soak(predictions: int, leak: bool) -> None:
    """Thousands of calls, 8 at a time; of ten one is a batch, one damaged, one by a client that leaves: what stays behind."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from conftest import app_process, call_endpoint, leave, upload_file
    from PIL import Image
    from test_nothing_hurts import REFUSED
    from tqdm import tqdm

    photos = [Image.open(file).convert("RGB").resize((320, 240)) for file in sorted(ROOT.glob("examples/*-*.jpg"))]

    def one(number: int) -> bool:
        """Return whether a call ended as it should."""
        photo = np.asarray(photos[number % len(photos)]).copy()
        photo[number % 240, number % 320] = number % 251  # another photo each time, so no answer comes from memory
        file = Path(folder, f"{number}.jpg")
        Image.fromarray(photo).save(file)
        content = file.read_bytes()
        file.unlink()
        if number % 10 == 3:
            return bool(
                REFUSED.search(call_endpoint(url, "predict", upload_file(url, "cut.jpg", content[:900]), "mobilenet"))
            )
        if number % 10 == 7:
            leave(url, "predict", upload_file(url, "left.jpg", content), "mobilenet")
            return True
        photo = upload_file(url, "whole.jpg", content)
        if number % 10 == 5:
            return "event: complete" in call_endpoint(url, "predict_batch", [photo, photo], "mobilenet")
        return "event: complete" in call_endpoint(url, "predict", photo, "mobilenet")

    samples, failures = [], 0
    arguments = ("-c", SOAKED, *["leak"] * leak)
    with (
        tempfile.TemporaryDirectory() as folder,
        app_process(arguments=arguments, GRADIO_TEMP_DIR=folder, VIT_MODEL="none") as (process, url),
        ThreadPoolExecutor(8) as callers,
    ):
        for start in tqdm(range(0, predictions, 100), unit="00 calls"):
            failures += sum(not well for well in callers.map(one, range(start, start + 100)))
            status = Path(f"/proc/{process.pid}/status").read_text()
            files = sum(len(names) for _, _, names in os.walk(folder))  # some vanish meanwhile
            handles = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
            samples.append((start + 100, int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1000, handles, files))
    table(("calls", "MB of memory", "handles", "files kept"), samples[:: max(1, len(samples) // 10)] + samples[-1:])
    half = samples[len(samples) // 2 :]
    growth = np.polyfit(range(len(half)), [sample[1] for sample in half], 1)[0] * len(half)
    print(f"{failures} unexpected failures; memory grew by {growth:.0f} MB over the last half")
    sys.exit(bool(failures) or growth > 50 or half[-1][2] > 2 * half[0][2])


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return the content with a few bytes changed, lost, repeated, or replaced by ones that programs stumble over."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        place, length = chance.randrange(len(changed) + 1), chance.randint(1, 40)
        other = chance.randrange(len(changed) + 1)
        odd = (
            b"\xff" * 4,
            b"\0" * 4,
            b"\x7f\xff\xff\xff",
            b'"',
            b",",
            b"\n",
            b"\r",
            b"\t",
            b"\xff\xfe",
            b"../",
            b"://",
        )
        changed[place : place + chance.choice((0, 1, length))] = chance.choice(
            (bytes([chance.randrange(256)]), b"", changed[other : other + length], chance.choice(odd))
        )
    return bytes(changed)


def fuzz(minutes: float) -> None:
    """Mutated photos through the app's loader and mutated CSVs through prep.py's: only their own errors may come out."""
    import faulthandler
    import signal
    import warnings

    import conftest  # noqa: F401 - finds the scripts
    from odd_files import odd_files
    from PIL import Image

    import app
    import prep

    warnings.filterwarnings("ignore")
    faulthandler.enable()
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    images = folder / "images"
    images.mkdir()
    with Image.open(next(ROOT.glob("examples/cat-*.jpg"))) as photo:
        odd_files(images, photo.convert("RGB").resize((48, 36)))
    files = prep.list_files(images.resolve(), images.resolve())

    def read_photo(case: Path) -> None:
        assert app.open_photo(case).mode == "RGB"

    def read_csv(case: Path) -> None:
        with contextlib.redirect_stdout(None):
            columns = dict.fromkeys(("image_column", "label_column", "split_column", "group_column"))
            prep.locate(prep.choose_columns(prep.read_list(case, None, files), files, columns), files)

    header = 'image_name;label\ncut.jpg;Cat\n"whole.png";Dog\n../x.jpg;Cat\nhttp://a/b.jpg;Dog\n;\nä.jpg;Ä\n'
    csvs = [
        header.replace(";", mark).encode(code)
        for mark in ";,\t"
        for code in ("utf-8", "utf-16", "latin-1", "utf-8-sig")
    ]
    whole = [file.read_bytes() for file in images.iterdir() if file.stat().st_size < 100_000]
    rows = []
    for name, job, seeds, expected in (
        ("photos", read_photo, whole, app.gr.Error),
        ("CSVs", read_csv, csvs, (ValueError, OSError)),
    ):
        tries, refused, findings, chance = 0, 0, 0, random.Random(name)
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            tries += 1
            case = folder / f"{name}-{tries}"
            case.write_bytes(mutated(chance.choice(seeds), chance))  # it stays if the interpreter itself crashes
            signal.alarm(20)  # longer is a finding as well
            try:
                job(case)
            except expected:
                refused += 1
            except Exception as error:  # noqa: BLE001 - that is what is looked for
                findings += 1
                print(f"{case}: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            case.unlink()
        signal.alarm(0)
        rows.append((name, tries, refused, findings))
    table(("mutated", "tries", "refused", "findings"), rows)
    if any(row[3] for row in rows):
        sys.exit(f"The findings are in {folder}.")
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Timings and accuracy, as tables.")
    commands = parser.add_subparsers(required=True)
    for job in (prep, accuracy):
        command = commands.add_parser(job.__name__, help=job.__doc__)
        command.add_argument("--image_path", type=Path, required=True)
        command.add_argument("--label_path", type=Path, required=True, help="CSV with columns image_name and label")
        command.set_defaults(job=job)
    command = commands.add_parser("rows", help=rows.__doc__)
    command.add_argument("--image_path", type=Path, required=True)
    command.add_argument("--most", type=int, default=1_000_000, help="the largest table")
    command.set_defaults(job=rows)
    command = commands.add_parser("serve", help=serve.__doc__)
    command.add_argument("--image_path", type=Path, required=True, help="folder of JPEG photos, as users have them")
    command.set_defaults(job=serve)
    for job in (train, options):
        command = commands.add_parser(job.__name__, help=job.__doc__)
        command.add_argument("--data_path", type=Path, required=True, help="dataset that prep.py made")
        command.add_argument("--teacher", required=job is options, help="Hub id or folder, as finetune.py takes it")
        command.set_defaults(job=job)
    command = commands.add_parser("crowd", help=crowd.__doc__)
    command.add_argument("--callers", type=int, default=64)
    command.set_defaults(job=crowd)
    command = commands.add_parser("soak", help=soak.__doc__)
    command.add_argument("--predictions", type=int, default=5000)
    command.add_argument(
        "--leak", action="store_true", help="with an app that keeps 0.8 MB of each call; it has to fail"
    )
    command.set_defaults(job=soak)
    command = commands.add_parser("fuzz", help=fuzz.__doc__)
    command.add_argument("--minutes", type=float, default=20, help="for each of the two")
    command.set_defaults(job=fuzz)
    arguments = vars(parser.parse_args())
    arguments.pop("job")(**arguments)


if __name__ == "__main__":
    main()
