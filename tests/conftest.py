"""What the tests share: drawn photos, tiny models, the scripts as subprocesses, the app on a port, a real browser."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Before huggingface_hub is imported: the stand-in Hub speaks plain HTTP, and nothing may ask the real one.
os.environ.update(HF_HUB_DISABLE_XET="1", HF_ENDPOINT="http://127.0.0.1:9", GRADIO_ANALYTICS_ENABLED="False")
sys.path.insert(0, str(ROOT))
# A shell ignores Ctrl-C in what it starts with "&", and so would the programs that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

from PIL import Image, ImageDraw  # noqa: E402
from stand_in_hub import TOKEN, StandInHub  # noqa: E402

CLASSES = {"Cat": "ellipse", "Dog": "rectangle", "Neither": "line"}


def drawn_photo(label: str, seed: int, size=(90, 70)) -> Image.Image:
    """Return a picture of a shape that stands for the label, somewhere on a noisy ground."""
    chance = random.Random(seed)
    ground = Image.frombytes("RGB", (6, 5), bytes(chance.randrange(120) for _ in range(90)))
    image = ground.resize(size, Image.Resampling.BICUBIC)
    left, top = chance.randrange(size[0] // 4), chance.randrange(size[1] // 4)
    box = [left, top, left + size[0] // 2, top + size[1] // 2]
    getattr(ImageDraw.Draw(image), CLASSES[label])(
        box, fill=tuple(chance.randrange(135, 256) for _ in range(3)), width=5
    )
    return image


def write_photos(folder: Path, each: int = 12) -> tuple[Path, Path]:
    """Write `each` drawn photos of every class; return the image folder and the CSV."""
    images = folder / "images"
    images.mkdir(parents=True)
    rows = ["image_name,label"]
    for index in range(each):
        for number, label in enumerate(CLASSES):
            drawn_photo(label, 100 * number + index).save(images / f"{label}{index}.jpg")
            rows.append(f"{label}{index}.jpg,{label}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return images, folder / "labels.csv"


def run(script: str, *arguments, cwd: Path | None = None, **environment) -> subprocess.CompletedProcess:
    """Run one of the scripts as its user does."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """A prepared dataset of 60 drawn photos."""
    folder = tmp_path_factory.mktemp("dataset")
    images, labels = write_photos(folder, each=20)
    result = run("prep.py", "--image_path", images, "--label_path", labels, "--dst_path", folder / "prepared")
    assert result.returncode == 0, result.stderr
    return folder / "prepared"


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory) -> Path:
    """A folder with a random ViT of 1000 classes, as transformers writes it."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(image_size=32, patch_size=16, num_labels=1000, **sizes)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def app_process(folder: Path = ROOT, arguments: tuple = ("app.py",), **environment):
    """Start `python app.py` in a folder, wait for its page, yield the process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), **environment}
    process = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, "app.py stopped before its page was up"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=5).close()
                break
            time.sleep(0.2)
        yield process, url
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextlib.contextmanager
def running_app(folder: Path = ROOT, **environment):
    """Run `python app.py` and yield its address."""
    with app_process(folder, **environment) as (process, url):
        yield url
    assert process.returncode == 0


@pytest.fixture(scope="session")
def app_url(tmp_path_factory):
    """The app as a visitor without a network gets it: the shipped checkpoint, and no Hub for the other model."""
    with running_app(HF_HOME=str(tmp_path_factory.mktemp("cold-cache"))) as url:
        yield url


def asked(url: str, body: bytes | None = None, **headers) -> tuple[int, dict, bytes]:
    """Return status, headers and content that a GET, or with a body a POST, gets."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def start_call(url: str, api_name: str, *data) -> tuple[int, dict, bytes]:
    """Return what the first of the two plain HTTP calls of an endpoint gets."""
    headers = {"Content-Type": "application/json"}
    return asked(f"{url}/gradio_api/call/{api_name}", json.dumps({"data": data}).encode(), **headers)


def result(url: str, api_name: str, started: bytes) -> str:
    """Return what the second one gets."""
    return asked(f"{url}/gradio_api/call/{api_name}/{json.loads(started)['event_id']}")[2].decode()


def called(url: str, api_name: str, *data) -> str:
    """Return what an endpoint answers, without any client library."""
    status, _, content = start_call(url, api_name, *data)
    return result(url, api_name, content) if status == 200 else content.decode()


def leave(url: str, api_name: str, *data) -> None:
    """Start a call and hang up while it is answered."""
    event = json.loads(start_call(url, api_name, *data)[2])["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/{api_name}/{event}") as stream:
        stream.fp.raw._sock.shutdown(2)


def uploaded(url: str, name: str, content: bytes) -> dict:
    """Return what stands for an upload in a call: its path on the server, mostly."""
    body = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    status, _, answer = asked(f"{url}/gradio_api/upload", body + content + b"\r\n--x--\r\n", **kind)
    assert status == 200, answer
    return {"path": json.loads(answer)[0], "meta": {"_type": "gradio.FileData"}}


@pytest.fixture
def hub():
    """A stand-in Hub on this machine."""
    hub = StandInHub()
    yield hub
    hub.server.shutdown()


def hub_login(hub: StandInHub, folder: Path) -> dict[str, str]:
    """Return the environment of a program that is logged in to the stand-in Hub, with its cache in the folder."""
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "cache")}


@pytest.fixture
def scripts(tmp_path) -> Path:
    """A new folder with nothing but what a user has after cloning, and a cache with random "pretrained" weights."""
    for name in ("app.py", "prep.py", "finetune.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


@pytest.fixture(scope="session")
def browser():
    """Chromium, as Debian or Playwright installed it, with a camera that is none."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = shutil.which("chromium") or playwright.chromium.executable_path
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        quiet += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()
