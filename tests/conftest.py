"""What the tests share: drawn photos, tiny models, the scripts, the app in a thread, a Hub, a real browser.

Command lines are called in this process (`call`); a program is started (`run_program`, `app_process`) only where the
program is the point. A worker starts the app and the browser once.
"""

import asyncio
import base64
import contextlib
import hashlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Bound, but nobody listens: whoever asks the Hub is refused, until the fixture `hub` opens one at this port.
RESERVED = socket.socket()
RESERVED.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
RESERVED.bind(("127.0.0.1", 0))
HUB_ADDRESS = RESERVED.getsockname()
# Uploads, downloads, caches and temporary files of this process; each test has a folder of its own inside.
SCRATCH = tempfile.TemporaryDirectory(prefix="cat-dog-tests-")
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    APP_PORT = free.getsockname()[1]
# Before the libraries are imported. One thread each: there are as many workers as cores.
os.environ.update(
    GRADIO_SERVER_PORT=str(APP_PORT),  # else two workers that start at once want the same one
    HF_ENDPOINT=f"http://127.0.0.1:{HUB_ADDRESS[1]}",
    HF_HUB_DISABLE_XET="1",  # the stand-in Hub speaks plain HTTP
    HF_HOME=f"{SCRATCH.name}/hub",
    GRADIO_TEMP_DIR=f"{SCRATCH.name}/gradio",
    GRADIO_ANALYTICS_ENABLED="False",
    OMP_NUM_THREADS="1",
)
os.environ.pop("HF_TOKEN", None)
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


def call(script: str, *arguments) -> subprocess.CompletedProcess:
    """Call the `main` of a script in this process; return what a program would have said and its exit code."""
    module = importlib.import_module(script.removesuffix(".py"))
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = module.main([*map(str, arguments)]) or 0
        except SystemExit as stop:
            code = stop.code
            if isinstance(code, str):
                print(code, file=err)
                code = 1
    return subprocess.CompletedProcess([script, *arguments], code, out.getvalue(), err.getvalue())


def run_program(script: str, *arguments, cwd: Path | None = None, **environment) -> subprocess.CompletedProcess:
    """Run one of the scripts as its user does."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Send those tests of a file that need the app or the browser to one worker, and start with the longest."""
    items.sort(key=lambda item: ("as_pasted" not in item.name, "test_page" not in item.nodeid))
    for item in items:
        if {"app_url", "browser"} & set(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(autouse=True)
def own_temp_folder(monkeypatch, tmp_path_factory):
    """Give each test, and the programs that it starts, a folder of its own for temporary files and uploads."""
    tmp_path_factory.getbasetemp()  # which pytest makes at its first use, and not in there
    with tempfile.TemporaryDirectory(dir=SCRATCH.name) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """A prepared dataset of 60 drawn photos."""
    folder = tmp_path_factory.mktemp("dataset")
    images, labels = write_photos(folder, each=20)
    paths = ["--image_path", images, "--label_path", labels, "--dst_path", folder / "prepared"]
    result = call("prep.py", *paths, "--num_proc", 1)
    assert result.returncode == 0, result.stderr
    return folder / "prepared"


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory) -> Path:
    """A folder with a random ViT of ImageNet's 1000 classes, which finds the last one, a thing, in every photo."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(image_size=32, patch_size=16, num_labels=1000, **sizes)
    model = ViTForImageClassification(config)
    model.classifier.bias.data[999] = 9.2
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def app_process(folder: Path = ROOT, arguments: tuple = ("app.py",), page: str = "/", **environment):
    """Start `python app.py` in a folder, wait for its page, yield the process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": f"{tempfile.gettempdir()}/gradio"}
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, **own, **environment}, stdout=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, "app.py stopped before its page was up"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url + page, timeout=5).close()
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
def app_server():
    """The address of the app in a thread of this process, once its own model is loaded; there is no Hub."""
    import app

    app.launch()
    app.classifier("mobilenet")
    yield f"http://127.0.0.1:{app.demo.server_port}"
    app.demo.close(verbose=False)


@pytest.fixture
def app_url(app_server) -> str:
    """The address of the app, whose uploads are deleted after each test."""
    import app

    yield app_server
    for path in app.UPLOADS.glob("*"):
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def put_behind(monkeypatch):
    """Return the function that puts other models behind the names of the app, until the test is over."""
    import app

    changed = {}

    def put(**sources) -> None:
        for name, source in sources.items():
            changed.setdefault(name, app.READY.get(name))
            monkeypatch.setitem(app.MODELS, name, str(source))
            app.READY.pop(name, None)

    yield put
    for name, ready in changed.items():
        app.READY.pop(name, None)
        if ready:
            app.READY[name] = ready


def ask(url: str, body: bytes | None = None, **headers) -> tuple[int, dict, bytes]:
    """Return status, headers and content that a GET, or with a body a POST, gets."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def start_call(url: str, api_name: str, *data) -> tuple[int, dict, bytes]:
    """Return what the first of the two plain HTTP calls of an endpoint gets."""
    headers = {"Content-Type": "application/json"}
    return ask(f"{url}/gradio_api/call/{api_name}", json.dumps({"data": data}).encode(), **headers)


def fetch_result(url: str, api_name: str, started: bytes) -> str:
    """Return what the second one gets."""
    return ask(f"{url}/gradio_api/call/{api_name}/{json.loads(started)['event_id']}")[2].decode()


def call_endpoint(url: str, api_name: str, *data) -> str:
    """Return what an endpoint answers, without any client library."""
    status, _, content = start_call(url, api_name, *data)
    return fetch_result(url, api_name, content) if status == 200 else content.decode()


def leave(url: str, api_name: str, *data, wait: Callable = lambda: None) -> None:
    """Start a call and hang up while it is answered, once `wait` has returned."""
    event = json.loads(start_call(url, api_name, *data)[2])["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/{api_name}/{event}") as stream:
        wait()
        stream.fp.raw._sock.shutdown(2)


def call_tools(address: str, calls: list[tuple[str, dict]]) -> tuple[list, list]:
    """Return the tools of an MCP server, and the answers of calls to them, through the client library."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def run():
        async with streamable_http_client(address) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            return tools, [await session.call_tool(name, arguments) for name, arguments in calls]

    with ThreadPoolExecutor(1) as thread:  # in this one, the browser's loop may be running
        return thread.submit(asyncio.run, run()).result()


def upload_file(url: str, name: str, content: bytes) -> dict:
    """Return what stands for an upload in a call: its path on the server, mostly."""
    body = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    status, _, answer = ask(f"{url}/gradio_api/upload", body + content + b"\r\n--x--\r\n", **kind)
    assert status == 200, answer
    return {"path": json.loads(answer)[0], "meta": {"_type": "gradio.FileData"}}


def data_url(file: Path) -> dict:
    """Return a JPEG as it stands in a call, whole."""
    return {"url": f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}"}


@pytest.fixture
def hub(monkeypatch):
    """A stand-in Hub, new for each test, which this process and its programs are logged in to."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub = StandInHub(HUB_ADDRESS[1])
    yield hub
    hub.close()


def share(hub, folder: Path, repo_id: str = "you/vit") -> None:
    """Put a model folder on the stand-in Hub, its weights as LFS."""
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for weights in (content for name, content in files.items() if name.endswith((".safetensors", ".onnx"))):
        hub.lfs[hashlib.sha256(weights).hexdigest()] = weights
    hub.commits[repo_id], hub.private[repo_id] = [files], False


@pytest.fixture
def logged_out(hub, monkeypatch):
    """A stand-in Hub that knows nobody here."""
    monkeypatch.delenv("HF_TOKEN")


@pytest.fixture
def no_waiting(monkeypatch):
    """Have calls to the Hub repeated at once instead of after seconds."""
    import tenacity

    monkeypatch.setattr(tenacity.nap, "time", types.SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def scripts(tmp_path) -> Path:
    """A new folder with nothing but what a user has after cloning."""
    for name in ("app.py", "prep.py", "finetune.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def browser_program() -> dict:
    """Return how Playwright starts Chromium, as Debian or Playwright installed it, with a camera that is none."""
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    quiet += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    return {"executable_path": shutil.which("chromium"), "args": quiet}


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**browser_program())
        yield browser
        browser.close()
