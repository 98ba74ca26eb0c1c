"""What a public page is fed: odd files, crowds, curious visitors, broken repos, stops in the middle."""

import dataclasses
import json
import re
import resource
import shutil
import signal
import socket
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import pytest
from conftest import (
    ROOT,
    app_process,
    ask,
    call_endpoint,
    data_url,
    fetch_result,
    leave,
    share,
    start_call,
    upload_file,
)
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from huggingface_hub import constants
from odd_files import odd_files
from PIL import Image
from playwright.sync_api import expect
from test_page import answer, classify_many, downloaded_rows

import app

REFUSED = re.compile(r"cannot be read as a photo|more than \d+ million pixels")
CAT = app.EXAMPLES / "cat-chelsea.jpg"


@pytest.fixture(scope="session")
def odd(tmp_path_factory) -> tuple[Path, dict[str, bool]]:
    folder = tmp_path_factory.mktemp("odd")
    with Image.open(CAT) as photo:
        return folder, odd_files(folder, photo.convert("RGB").resize((120, 90)))


def test_every_odd_file_is_answered_or_refused_with_words(app_url, odd):
    folder, files = odd
    client = Client(app_url, verbose=False)
    assert len(files) >= 60
    for name, good in list(files.items())[::3]:  # all of them go in one call below
        try:
            answer = client.predict(handle_file(folder / name), "mobilenet", api_name="/predict")
            assert good and sum(one["confidence"] for one in answer["confidences"]) == pytest.approx(1, abs=1e-4), name
        except AppError as error:
            assert not good and REFUSED.search(str(error)), (name, error)
    rows = client.predict([handle_file(folder / name) for name in files], "mobilenet", api_name="/predict_batch")[
        "data"
    ]
    assert [row[0] for row in rows] == list(files)
    for (name, good), (_, label, confidence, note) in zip(files.items(), rows, strict=True):
        assert (label in app.PET_LABELS and confidence and not note) if good else REFUSED.search(note), (name, note)


def test_the_page_answers_or_refuses_every_odd_file(browser, app_url, odd):
    folder, files = odd
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.on("dialog", lambda dialog: pytest.fail(f"a file ran a script: {dialog.message}"))
    page.goto(app_url)
    photo_box = page.locator("input[type=file]").first
    for name in ("cut.jpg", "bomb.png", "page.jpg"):
        photo_box.set_input_files({"name": name, "mimeType": "image/jpeg", "buffer": (folder / name).read_bytes()})
        expect(page.locator(".verdict").get_by_text(REFUSED)).to_be_visible(timeout=60_000)
        page.reload()
    photo_box.set_input_files(folder / "cmyk.jpg")  # the page is as before
    expect(answer(page)).to_have_text(re.compile("Cat|Dog|Neither"), timeout=60_000)
    classify_many(page, [folder / name for name in files])
    rows = downloaded_rows(page)[1:]
    assert {row[0]: bool(row[1]) for row in rows} == files and all(row[1] or REFUSED.search(row[3]) for row in rows)
    page.close()


def test_names_of_files_and_labels_cannot_be_html_nor_formulas(browser, app_url, put_behind, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(app.EXAMPLES / "mobilenet_v3_small", folder)
    evil = "<img src=x onerror=alert(1)>"
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(index): f"{evil}{index}" for index in range(3)}
    (folder / "config.json").write_text(json.dumps(config))
    photo = CAT.read_bytes()
    put_behind(mobilenet=folder)
    page = browser.new_page()
    page.on("dialog", lambda dialog: pytest.fail(f"a name ran a script: {dialog.message}"))
    page.goto(app_url)
    page.locator("input[type=file]").first.set_input_files(CAT)
    expect(page.get_by_text(evil).first).to_be_visible(timeout=60_000)
    page.get_by_role("tab", name="Many photos").click()
    names = [f"{evil}.jpg", "=1+1.jpg", "@SUM(1).jpg", "../../up.jpg"]
    files = [{"name": name, "mimeType": "image/jpeg", "buffer": photo} for name in names]
    page.locator(".files input[type=file]").set_input_files(files)
    expect(page.get_by_text("up").first).to_be_attached(timeout=60_000)
    page.get_by_role("button", name="Classify").click()
    with page.expect_download(timeout=60_000) as download:
        page.get_by_role("button", name="Download the answers as CSV").click(timeout=60_000)
    assert not re.search(r'^"?[=@+]', download.value.path().read_text(), re.MULTILINE)
    page.wait_for_timeout(1000)  # an image that fails to load takes a moment to say so
    page.close()


FILES_OF_THE_SERVER = [
    *("file=/etc/passwd", "file=../../../etc/passwd", "file=app.py", f"file={ROOT / 'app.py'}", "file=%2e%2e/app.py"),
    *(
        "file=http://127.0.0.1:1/",
        "file=https://example.org/",
        "proxy=http://127.0.0.1:1/",
        "runs",
        "run-history/records",
    ),
    *("../static/../app.py", "../assets/..%2f..%2f..%2fetc%2fpasswd", "/monitoring", "/monitoring/summary"),
    "custom_component/x/client/component/..%2f..%2fapp.py",
]


@pytest.mark.parametrize("path", FILES_OF_THE_SERVER)
def test_the_server_hands_out_no_files_and_no_insights(app_url, path):
    status, _, content = ask(f"{app_url}{path if path.startswith('/') else f'/gradio_api/{path}'}")
    assert status in (400, 403, 404) and b"root:" not in content and b"import gradio" not in content


@pytest.mark.parametrize(
    "data",
    [(), (5, "mobilenet"), ("x", "mobilenet"), ({"path": 5}, "mobilenet"), ({"path": "a\0b"}, "mobilenet"), (1, 2, 3)],
)
def test_a_call_that_makes_no_sense_is_told_so_without_details_of_the_server(app_url, data):
    said = call_endpoint(app_url, "predict", *data)
    assert "event: error" in said and '"error": null' not in said and str(ROOT) not in said


def test_an_unknown_model_is_refused_with_the_choices(app_url):
    said = call_endpoint(app_url, "predict", data_url(CAT), "../../etc")
    assert "event: error" in said and "mobilenet" in said


def test_uploads_are_limited_and_never_shown_as_pages(app_url):
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    large = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        + bytes(60_000_000)
        + b"\r\n--x--"
    )
    assert ask(f"{app_url}/gradio_api/upload", large, **kind)[0] == 413
    body = b'{"data": ["' + b"A" * 60_000_000 + b'"]}'
    status, _, content = ask(f"{app_url}/gradio_api/call/predict", body, **{"Content-Type": "application/json"})
    assert status == 413 and b"too large" in content
    for name, content in (
        ("a.html", b"<script>alert(1)</script>"),
        ("a.svg", b'<svg onload="alert(1)"/>'),
        ("a.jpg", b"<html>"),
    ):
        status, headers, _ = ask(f"{app_url}/gradio_api/file={upload_file(app_url, name, content)['path']}")
        shown = {key.lower(): value for key, value in headers.items()}
        assert status == 200 and shown["x-content-type-options"] == "nosniff"
        assert shown["content-disposition"].startswith("attachment") or shown["content-type"] == "image/jpeg"


def test_the_queue_cannot_be_gone_around_and_other_sites_may_not_read(app_url):
    kind = {"Content-Type": "application/json"}
    body = json.dumps({"data": [data_url(CAT), "mobilenet"]}).encode()
    assert ask(f"{app_url}/gradio_api/run/predict", body, **kind)[0] == 404
    _, headers, _ = ask(f"{app_url}/config", Origin="https://evil.example", Host="127.0.0.1:7860")
    assert "access-control-allow-origin" not in {name.lower() for name in headers}
    assert ask(f"{app_url}/")[1]["referrer-policy"] == "same-origin"


def test_of_64_callers_each_gets_an_answer_or_is_told_to_come_back(app_url):
    files = [upload_file(app_url, file.name, file.read_bytes()) for file in app.EXAMPLES.glob("*.jpg")] * 8

    def one(_) -> str:
        status, headers, content = start_call(app_url, "predict_batch", files, "mobilenet")
        if status == 503:
            assert json.loads(content)["error"] == app.BUSY and headers["retry-after"]
            return "busy"
        assert "event: complete" in (said := fetch_result(app_url, "predict_batch", content)), said
        return "answered"

    with ThreadPoolExecutor(64) as callers:
        found = list(callers.map(one, range(64)))
    assert set(found) == {"busy", "answered"} and found.count("answered") >= app.MAX_WAITING
    assert '[{"label": "Cat"' in call_endpoint(app_url, "predict", data_url(CAT), "mobilenet")


def test_uploads_and_results_are_deleted_after_their_time_and_control_c_stops(tmp_path):
    short = "import app, os; app.KEEP_SECONDS = 1; os._exit(app.serve())"
    with app_process(arguments=("-c", short), GRADIO_TEMP_DIR=str(tmp_path)) as (process, url):
        file = upload_file(url, "a.jpg", CAT.read_bytes())
        assert "event: complete" in call_endpoint(url, "predict_batch", [file], "mobilenet")
        half = f"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: {10**6}\r\n"
        half += (
            'Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\nContent-Disposition: form-data; name="files"; '
        )
        address = urllib.parse.urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(half.encode() + b'filename="b.jpg"\r\n\r\n' + bytes(100_000))
            while not list(tmp_path.glob("*/tmp*")):
                time.sleep(0.01)
        for _ in range(300):
            left = [path for path in (Path(file["path"]), *tmp_path.glob("*/tmp*")) if path.exists()]
            if not left:
                break
            time.sleep(0.1)
        assert not left
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130


def test_uploads_leave_room_on_the_disk(app_url, monkeypatch):
    monkeypatch.setattr(app, "FREE_BYTES", 10**18)
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    status, _, content = ask(f"{app_url}/gradio_api/upload", b"--x--", **kind)
    assert status == 507 and b"no room for more photos" in content
    assert "event: complete" in call_endpoint(app_url, "predict", data_url(CAT), "mobilenet")


def test_a_client_that_leaves_frees_its_work(app_url, monkeypatch):
    plain, looked_at, begun = app.READY["mobilenet"], [], threading.Event()

    def logits(pixel_values):
        looked_at.append(len(pixel_values))
        begun.set()
        return plain.logits(pixel_values)

    monkeypatch.setitem(app.READY, "mobilenet", dataclasses.replace(plain, logits=logits))
    files = [upload_file(app_url, "a.jpg", CAT.read_bytes())] * app.MAX_FILES
    leave(app_url, "predict_batch", files, "mobilenet", wait=begun.wait)
    assert "event: complete" in call_endpoint(app_url, "predict_batch", files[:1], "mobilenet")
    assert 1 < sum(looked_at) < app.MAX_FILES


def test_a_stop_lets_the_running_prediction_finish_and_its_client_fetch_the_answer(tmp_path):
    with app_process(GRADIO_TEMP_DIR=str(tmp_path)) as (process, url):
        call_endpoint(url, "predict", data_url(CAT), "mobilenet")  # the model is there
        files = [upload_file(url, "a.jpg", CAT.read_bytes())] * 150
        started = start_call(url, "predict_batch", files, "mobilenet")[2]
        process.send_signal(signal.SIGTERM)
        time.sleep(2)  # it is done by now, mostly
        assert "event: complete" in fetch_result(url, "predict_batch", started)
        assert process.wait(timeout=10) == 0
    assert not list(tmp_path.rglob("a.jpg"))  # uploads go, the examples may stay


def vit_answer(url: str) -> str:
    return call_endpoint(url, "predict", data_url(CAT), "vit")


def test_the_hub_fails_comes_back_and_goes_away(app_url, put_behind, hub, no_waiting, tiny_vit):
    put_behind(vit="you/vit")  # there is no such model yet
    assert "The model vit (you/vit) cannot be loaded: the Hub has no such model" in vit_answer(app_url)
    assert "event: complete" in call_endpoint(app_url, "predict", data_url(CAT), "mobilenet")
    share(hub, tiny_vit)
    hub.faults = {len(hub.requests) + number: 503 for number in (1, 2, 4)}
    answer = vit_answer(app_url)
    assert "event: complete" in answer and not hub.faults
    hub.close()
    put_behind(vit="you/vit")  # from its cache
    assert vit_answer(app_url).partition("data:")[2] == answer.partition("data:")[2]
    put_behind(vit="you/another")
    assert "the Hub cannot be reached" in vit_answer(app_url)


def test_a_download_that_is_cut_goes_on_where_it_was(hub, no_waiting, put_behind, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    # 32 MB, as huggingface_hub writes 10 MB at a time
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 250_000}
    ViTForImageClassification(ViTConfig(image_size=32, **sizes)).save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    share(hub, tmp_path / "model")
    original, cut = hub.read, []

    def cut_once(request):
        if request.path.startswith("/lfs/") and request.command == "GET":
            request.fault = None if cut else "half"
            cut.append(request.headers.get("Range"))
        original(request)

    hub.read = cut_once
    put_behind(vit="you/vit")
    assert app.classifier("vit").name.startswith("you/vit, revision")
    assert len(cut) == 2 and re.fullmatch(r"bytes=[1-9]\d*-", cut[1])


def test_a_cache_that_cannot_be_written_and_a_disk_that_is_full_are_told_in_words(
    hub, tiny_vit, put_behind, tmp_path, monkeypatch
):
    share(hub, tiny_vit)
    said = {}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for cache, largest_file in (("/proc/nowhere", soft), (str(tmp_path), 20_000)):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
        put_behind(vit="you/vit")
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
        try:
            with pytest.raises(gr.Error, match=r"The model vit \(you/vit\) cannot be loaded: ") as error:
                app.classifier("vit")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        said[cache] = error.value.message
    assert "/proc" not in said["/proc/nowhere"] and "File too large" in said[str(tmp_path)], said


SLOW_PAGE = """
import time
from starlette.templating import Jinja2Templates
respond = Jinja2Templates.TemplateResponse
def slowly(*arguments, **options):
    time.sleep(30)
    return respond(*arguments, **options)
Jinja2Templates.TemplateResponse = slowly
"""


def test_the_start_does_not_wait_for_its_own_page(tmp_path):
    """On a machine where the page takes 30 seconds, programs are answered long before."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_PAGE)
    start = time.monotonic()
    with app_process(page="/api/health", PYTHONPATH=str(tmp_path), VIT_MODEL="none") as (process, url):
        assert json.loads(ask(f"{url}/api/predict", CAT.read_bytes())[2])[0]["label"] == "Cat"
        assert time.monotonic() - start < 30  # or it was not slow
        status, _, _ = ask(url)
        assert status == 200 and time.monotonic() - start > 30 and process.poll() is None
