"""What programs and agents meet: /api/predict, /api/health, MCP, addresses of photos, and requests that make no sense."""

import base64
import dataclasses
import http.server
import io
import json
import socket
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import HUB_ADDRESS, ask, call_endpoint, call_tools, data_url, upload_file
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from huggingface_hub import InferenceClient
from PIL import Image

import app

CAT, DOG = app.EXAMPLES / "cat-chelsea.jpg", app.EXAMPLES / "dog-red.jpg"
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def form(name: str, content: bytes, filename: str = "a.jpg") -> bytes:
    """Return a form with one file."""
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n"


def ask_predict(url: str, body: bytes, query: str = "", **headers) -> list[dict]:
    status, found, content = ask(f"{url}/api/predict{query}", body, **headers)
    assert status == 200 and found["content-type"] == "application/json", content
    return json.loads(content)


def test_a_photo_is_answered_in_one_call_as_the_hub_would(app_url, put_behind, tiny_vit):
    put_behind(vit=tiny_vit)
    scores = ask_predict(app_url, DOG.read_bytes(), **{"Content-Type": "image/jpeg"})
    assert (
        scores[0]["label"] == "Dog"
        and {one["label"] for one in scores} == {"Dog", "Cat", "Neither"}
        and sum(one["score"] for one in scores) == pytest.approx(1)
    )
    named = Client(app_url, verbose=False).predict(handle_file(DOG), "mobilenet", api_name="/predict")
    assert [[one["label"], pytest.approx(one["confidence"])] for one in named["confidences"]] == [
        [one["label"], one["score"]] for one in scores
    ]
    for name in ("image", "file", "anything at all"):
        assert ask_predict(app_url, form(name, DOG.read_bytes()), **FORM) == scores
    assert ask_predict(app_url, DOG.read_bytes(), "?top=1&model=mobilenet") == scores[:1]
    assert ask_predict(app_url, DOG.read_bytes(), "?model=vit")[0]["label"] == "Neither"
    found = InferenceClient(model=f"{app_url}/api/predict").image_classification(str(DOG))
    assert [(one.label, one.score) for one in found] == [(one["label"], one["score"]) for one in scores]


def test_health_says_which_models_are_ready_and_why_not(app_url, put_behind):
    put_behind(vit="you/nothing")
    assert ask(f"{app_url}/api/predict?model=vit", CAT.read_bytes())[0] == 503
    found = json.loads(ask(f"{app_url}/api/health")[2])
    assert found["status"] == "ok" and found["models"]["mobilenet"] == "ready"
    assert "the Hub cannot be reached" in found["models"]["vit"]


def test_a_model_that_takes_long_to_load_does_not_hold_up_the_other(app_url, put_behind, monkeypatch):
    monkeypatch.setattr(app, "LOAD_SECONDS", 0.2)
    put_behind(vit="you/pets")
    with ThreadPoolExecutor(1) as pool, socket.create_server(HUB_ADDRESS):  # a Hub that is never done
        pool.submit(ask, f"{app_url}/api/predict?model=vit", odd_photo(1))
        while not app.LOADING["vit"].locked():
            time.sleep(0.01)
        status, _, content = ask(f"{app_url}/api/predict?model=vit", odd_photo(2))
        assert status == 503 and json.loads(content)["error"].startswith("The model vit is still being loaded.")
        assert ask_predict(app_url, DOG.read_bytes())[0]["label"] == "Dog"


@pytest.fixture
def slow(monkeypatch):
    """Have the model wait until the event is set; return it, and the list of how many photos it has been given."""
    plain, go, seen = app.READY["mobilenet"], threading.Event(), []

    def logits(pixel_values):
        seen.append(len(pixel_values))
        go.wait(60)
        return plain.logits(pixel_values)

    monkeypatch.setitem(app.READY, "mobilenet", dataclasses.replace(plain, revision=str(time.time()), logits=logits))
    yield go, seen
    go.set()


def odd_photo(number: int) -> bytes:
    """Return a photo that was not seen before."""
    file = io.BytesIO()
    Image.new("RGB", (40 + number, 30), (number * 7 % 256, 90, 20)).save(file, "PNG")
    return file.getvalue()


def test_so_many_calls_wait_and_the_next_is_told_when_to_come_back(app_url, slow):
    go, seen = slow
    lanes = app.CORES
    with ThreadPoolExecutor(app.MAX_WAITING + lanes) as pool:
        calls = [
            pool.submit(ask, f"{app_url}/api/predict", odd_photo(number)) for number in range(app.MAX_WAITING + lanes)
        ]
        while len(app.IN_LANE) < app.MAX_WAITING + lanes:
            time.sleep(0.01)
        status, headers, content = ask(f"{app_url}/api/predict", odd_photo(200))
        assert (status, headers["retry-after"]) == (503, "5") and json.loads(content)["error"] == app.BUSY
        assert len(seen) == lanes
        go.set()
        assert {call.result()[0] for call in calls} == {200}


def test_a_client_that_leaves_frees_its_place(app_url, slow):
    go, seen = slow
    lanes = app.CORES
    address = urllib.parse.urlsplit(app_url)
    left = []
    for number in range(lanes + 5):
        connection = socket.create_connection((address.hostname, address.port))
        photo = odd_photo(100 + number)
        connection.sendall(b"POST /api/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(photo) + photo)
        left.append(connection)
    while len(app.IN_LANE) < lanes + 5:
        time.sleep(0.01)
    for connection in left:
        connection.close()
    for _ in range(500):
        if not app.IN_LANE:
            break
        time.sleep(0.01)
    assert not app.IN_LANE
    go.set()
    assert ask_predict(app_url, DOG.read_bytes())[0]["label"] == "Dog"
    assert len(seen) == lanes + 1


PREDICT, CALL, QUEUE = "/api/predict", "/gradio_api/call/predict", "/gradio_api/queue/join"
DATA = json.dumps({"data": [data_url(CAT), "mobilenet"]}).encode()
DEEP = b"[" * 100_000
# Method, path, body, headers.
MALFORMED = [
    ("POST", PREDICT, b"", {}),
    ("POST", PREDICT, b"no photo", {}),
    ("POST", PREDICT, CAT.read_bytes()[:500], {"Content-Type": "image/jpeg"}),
    ("POST", PREDICT, b"{}", JSON),
    ("POST", PREDICT, DATA, JSON),
    ("POST", PREDICT, b"hello", {"Content-Type": "text/plain"}),
    ("POST", PREDICT, b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}),
    ("POST", PREDICT, b"", FORM),
    ("POST", PREDICT, b"--x--\r\n", FORM),
    ("POST", PREDICT, b"no form at all", FORM),
    ("POST", PREDICT, CAT.read_bytes(), {"Content-Type": "multipart/form-data"}),
    ("POST", PREDICT, CAT.read_bytes(), {"Content-Type": "multipart/form-data; boundary="}),
    ("POST", PREDICT, CAT.read_bytes(), {"Content-Type": "multipart/form-data; boundary=\xe4"}),
    ("POST", PREDICT, b"--x\r\n\r\n\r\n--x--", FORM),
    ("POST", PREDICT, b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--", FORM),
    ("POST", PREDICT, b'--x\r\nContent-Disposition: form-data; name=""\r\n\r\na\r\n--x--', FORM),
    ("POST", PREDICT, b'--x\r\nContent-Disposition: form-data; name="a\r\n\r\na\r\n--x--', FORM),
    ("POST", PREDICT, b"--x\r\nContent-Disposition: \xff\xfe; name=\xff\r\n\r\na\r\n--x--", FORM),
    ("POST", PREDICT, form("file", b""), FORM),
    ("POST", PREDICT, form("file", b"no photo"), FORM),
    ("POST", PREDICT, form("", CAT.read_bytes()[:100]), FORM),
    ("POST", PREDICT, form("a", b"1")[:-8] + form("b", b"2"), FORM),
    ("POST", PREDICT, form("a", CAT.read_bytes())[:-9], FORM),
    (
        "POST",
        PREDICT,
        b"".join(f'--x\r\nContent-Disposition: form-data; name="{i}"\r\n\r\n'.encode() for i in range(2000)),
        FORM,
    ),
    ("POST", f"{PREDICT}?model=nobody", CAT.read_bytes(), {}),
    ("POST", f"{PREDICT}?model=", CAT.read_bytes(), {}),
    ("POST", f"{PREDICT}?model=%00", CAT.read_bytes(), {}),
    ("POST", f"{PREDICT}?top=0", CAT.read_bytes(), {}),
    ("POST", f"{PREDICT}?top=-1", CAT.read_bytes(), {}),
    ("POST", f"{PREDICT}?top=many", CAT.read_bytes(), {}),
    ("POST", f"{PREDICT}?top=1e9", CAT.read_bytes(), {}),
    ("POST", f"{PREDICT}?top={'9' * 5000}", CAT.read_bytes(), {}),
    ("POST", PREDICT, CAT.read_bytes(), {"Content-Encoding": "gzip", "Content-Type": "application/json"}),
    ("GET", PREDICT, None, {}),
    ("PUT", PREDICT, CAT.read_bytes(), {}),
    ("DELETE", PREDICT, None, {}),
    ("POST", "/api/health", b"", {}),
    ("POST", "/api/nothing", b"", {}),
    ("GET", "/api/nothing", None, {}),
    ("GET", "/card/nobody", None, {}),
    ("GET", "/card/%2e%2e%2fapp.py", None, {}),
    ("POST", "/source", b"", {}),
    ("POST", CALL, b"", JSON),
    ("POST", CALL, b"{", JSON),
    ("POST", CALL, b"null", JSON),
    ("POST", CALL, b"[]", JSON),
    ("POST", CALL, b"5", JSON),
    ("POST", CALL, b'"x"', JSON),
    ("POST", CALL, b"{}", JSON),
    ("POST", CALL, b'{"data": 5}', JSON),
    ("POST", CALL, b'{"data": {"image": 1}}', JSON),
    ("POST", CALL, b"\xff\xfe", JSON),
    ("POST", CALL, DEEP, JSON),
    ("POST", CALL, form("a", CAT.read_bytes()), FORM),
    ("POST", CALL, CAT.read_bytes(), {"Content-Type": "image/jpeg"}),
    ("POST", CALL, DATA, {"Content-Type": "text/plain"}),
    ("POST", "/gradio_api/call/nothing", DATA, JSON),
    ("POST", "/gradio_api/call/v2/predict", b'{"image": 5', JSON),
    ("POST", "/gradio_api/call/v2/predict", form("a", CAT.read_bytes()), FORM),
    ("PUT", CALL, DATA, JSON),
    ("POST", QUEUE, b"", JSON),
    ("POST", QUEUE, b"{", JSON),
    ("POST", QUEUE, b'{"data": []}', JSON),
    ("POST", QUEUE, b'{"data": [], "fn_index": 9999, "session_hash": "x"}', JSON),
    ("POST", QUEUE, b'{"data": [], "fn_index": "x", "session_hash": []}', JSON),
    ("POST", QUEUE, form("a", CAT.read_bytes()), FORM),
    ("GET", "/gradio_api/queue/data", None, {}),
    ("POST", "/gradio_api/upload", b"{}", JSON),
    ("POST", "/gradio_api/upload", b"--x\r\nNo-Colon\r\n\r\na\r\n--x--", FORM),
    ("GET", "/gradio_api/file=/etc/passwd", None, {}),
    ("GET", "/gradio_api/file=", None, {}),
    ("GET", f"/gradio_api/file={'x' * 5000}", None, {}),
    ("GET", "/gradio_api/file=%00", None, {}),
    ("GET", "/gradio_api/upload_progress", None, {}),
    ("POST", "/gradio_api/reset/", b"{", JSON),
    ("POST", "/gradio_api/cancel", b"[]", JSON),
    ("POST", "/gradio_api/cancel", form("a", b"b"), FORM),
    ("POST", "/gradio_api/component_server", b"{}", JSON),
    ("POST", "/gradio_api/component_server", b"\xff", FORM),
    ("GET", "/gradio_api/startup-events/x", None, {}),
    ("POST", "/login", b"{}", JSON),
    ("GET", "/theme.css/../../app.py", None, {}),
    ("GET", "/static/%00", None, {}),
    ("GET", "/assets/../../../app.py", None, {}),
    ("POST", "/gradio_api/mcp/", b"{", JSON),
    ("POST", "/gradio_api/mcp/", b"[]", JSON),
    ("POST", "/gradio_api/mcp/", form("a", b"b"), FORM),
    ("GET", "/gradio_api/mcp/", None, {}),
    ("PUT", "/gradio_api/mcp/", b"", {}),
]


def raw(url: str, method: str, path: str, body: bytes | None, headers: dict) -> tuple[int, str, bytes]:
    """Return status, headers and content of a request of any method, sent as it is."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        connection.request(method, path, body, {"X-Secret": "not-to-be-repeated", **headers})
        answer = connection.getresponse()
        return answer.status, str(answer.headers), answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("request_number", range(len(MALFORMED)))
def test_a_malformed_request_is_told_so_in_one_sentence(app_url, request_number):
    method, path, body, headers = MALFORMED[request_number]
    status, back, content = raw(app_url, method, path, body, headers)
    assert 400 <= status < 500, (status, content)
    words = content.decode()
    if "application/json" in back:
        words = json.loads(words)["error"]
        words = words["message"] if isinstance(words, dict) else words  # of MCP
    assert isinstance(words, str) and words and "\n" not in words and "Traceback" not in words
    assert "not-to-be-repeated" not in back + content.decode()


@pytest.mark.parametrize(
    "value", ["bytes=x-y", "bytes=5-1", "bytes=-", "lines=1-2", "bytes=99999999-", "bytes=1-2,3-", "\xe4"]
)
def test_a_malformed_range_is_no_fault_of_the_server(app_url, value):
    path = f"/gradio_api/file={upload_file(app_url, 'a.jpg', CAT.read_bytes())['path']}"
    status, back, content = raw(app_url, "GET", path, None, {"Range": value})
    assert status < 500 and "not-to-be-repeated" not in back + content.decode("latin-1")


def test_what_is_too_large_is_refused_without_a_reset(app_url):
    for path in (PREDICT, CALL):
        status, _, content = ask(f"{app_url}{path}", bytes(app.MAX_BODY + 1000))
        assert status == 413 and "too large" in json.loads(content)["error"]


def test_agents_find_tools_that_only_read_and_say_how_a_photo_is_given(app_url):
    tools, _ = call_tools(f"{app_url}/gradio_api/mcp/", [])
    assert [tool.name for tool in tools] == ["predict", "predict_batch", "compare", "explain", "models"]
    for tool in tools:
        assert tool.title and tool.annotations.readOnlyHint and len(tool.description) > 30
        if tool.name != "models":
            assert all(word in tool.description for word in ("data URL", "upload", "public http(s) address"))
        json.dumps(tool.inputSchema)
        assert "$ref" not in str(tool.inputSchema)
    batch = next(tool for tool in tools if tool.name == "predict_batch").inputSchema
    assert batch["properties"]["files"]["type"] == "array" and batch["properties"]["files"]["items"]["type"] == "string"


@pytest.mark.parametrize("way", ["data URL", "upload", "address of an upload"])
def test_agents_call_every_tool(app_url, put_behind, tiny_vit, way):
    put_behind(vit=tiny_vit)
    photo = data_url(DOG)["url"]
    if way != "data URL":
        photo = upload_file(app_url, "a dog.jpg", DOG.read_bytes())["path"]
    if way == "address of an upload":
        photo = f"{app_url}/gradio_api/file={urllib.parse.quote(photo)}"
    calls = [
        ("predict", {"image": photo, "model": "mobilenet"}),
        ("predict", {"image": photo}),
        ("predict_batch", {"files": [photo, photo], "model": "mobilenet"}),
        ("compare", {"image": photo}),
        ("explain", {"image": photo, "model": "vit"}),
        ("models", {}),
    ]
    _, answers = call_tools(f"{app_url}/gradio_api/mcp/", calls)
    assert not any(answer.isError for answer in answers), answers
    one, same, many, both, _, models = (
        json.loads(answer.content[0].text) if answer.content[0].type == "text" else 0 for answer in answers
    )
    assert one == same and one["label"] == "Dog" and one["model"] == "mobilenet_v3_small"
    assert [row["label"] for row in many] == ["Dog", "Dog"]
    assert both[0] == one and both[1]["label"] == "Neither" and both[2].startswith("They disagree")
    picture, legend = answers[4].content
    assert picture.type == "image" and Image.open(io.BytesIO(base64.b64decode(picture.data))).size[0] > 100
    assert "Neither" in legend.text
    assert [model["name"] for model in models] == ["mobilenet", "vit"]


# Photos that are not looked at, and what is said of them.
REFUSED = {
    "http://127.0.0.1:1/secret.jpg": "must be public",
    "http://localhost/secret.jpg": "must be public",
    "http://169.254.169.254/secret": "must be public",
    "http://10.0.0.1/secret.jpg": "must be public",
    "http://[::1]/secret.jpg": "must be public",
    "https://secret.invalid/secret.jpg": "must be public",
    "ftp://example.org/secret.jpg": "Upload the photo first",
    "file:///etc/secret": "Upload the photo first",
    "/etc/secret": "Upload the photo first",
    "secret": "Upload the photo first",
    "data:image/png;base64,secret!": "not valid base64",
    "data:image/png;base64,c2VjcmV0": "cannot be read as a photo",
    "data:secret": "cannot be read as a photo",
    "": "Upload a photo first",
    "\0secret": "Upload a photo first",
}


def test_agents_are_refused_in_words_that_do_not_repeat_what_they_sent(app_url):
    calls = [
        (tool, {"files": [photo]} if tool == "predict_batch" else {"image": photo})
        for photo in [*REFUSED, 5, None, {"path": "secret"}]
        for tool in ("predict", "predict_batch", "compare", "explain")
    ]
    _, answers = call_tools(
        f"{app_url}/gradio_api/mcp/",
        [*calls, ("predict", {}), ("nothing", {}), ("predict", {"image": "", "model": "secret"})],
    )
    for (tool, arguments), answer in zip(calls, answers, strict=False):
        said = answer.content[0].text
        if tool == "predict_batch" and not answer.isError:  # it names the file, and says in the note what is wrong
            said = json.loads(said)[0]["note"]
        assert answer.isError == (tool != "predict_batch") and "secret" not in said, (tool, arguments, said)
        photo = arguments.get("image", arguments.get("files", [0])[0] if "files" in arguments else 0)
        assert REFUSED.get(photo if isinstance(photo, str) else "", "") in said, (tool, arguments, said)
    assert all(answer.isError for answer in answers[-3:])


@pytest.fixture
def inside():
    """A web server in the network of this machine, with its address and what it was asked for."""
    hits = []

    class Inside(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            moved = {"/moved": "/cat.jpg", "/away": "http://127.0.0.1:1/", "/round": "/round"}.get(self.path)
            self.send_response(302 if moved else 404 if "missing" in self.path else 200)
            if moved:
                self.send_header("Location", moved)
            self.end_headers()
            if self.path == "/slow":
                while not self.wfile.closed:
                    self.wfile.write(b"x")
                    time.sleep(0.1)
            self.wfile.write(bytes(app.MAX_FILE + 1) if self.path == "/large" else CAT.read_bytes())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Inside)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", hits
    server.shutdown()


def test_no_address_inside_a_network_is_fetched_for_a_client(app_url, inside):
    url, hits = inside
    address, kind = f"{url}/cat.jpg", {"meta": {"_type": "gradio.FileData"}}
    files = [{"path": address}, {"path": address, **kind}, {"url": address}, {"path": "x.jpg", "url": address, **kind}]
    for file in files:
        for endpoint, argument in (("predict", file), ("predict_batch", [file]), ("explain", file), ("compare", file)):
            said = call_endpoint(app_url, endpoint, argument, *["mobilenet"] * (endpoint != "compare"))
            assert "must be public" in said or "Upload the photo first" in said, (endpoint, file, said)
            assert address not in said and (endpoint == "predict_batch") == ("event: complete" in said)
    escaped = json.dumps({"data": [files[1], "mobilenet"]}).replace("http", "\\u0068ttp").encode()
    started = ask(f"{app_url}{CALL}", escaped, **JSON)[2]
    assert b"must be public" in ask(f"{app_url}{CALL}/{json.loads(started)['event_id']}")[2]
    with pytest.raises(AppError, match="must be public"):
        Client(app_url, verbose=False).predict(handle_file(address), "mobilenet", api_name="/predict")
    for path in ("https://example.org/x.jpg", address):  # gradio would hand it on, for anybody
        assert ask(f"{app_url}/gradio_api/file={path}")[0] == 403
    assert not hits


@pytest.mark.parametrize(
    ("path", "said"),
    [("/cat.jpg", ""), ("/moved", ""), ("/away", "must be public"), ("/round", "must be public")]
    + [("/large", "20 MB"), ("/slow", "10 seconds"), ("/missing", "must be public")],
)
def test_a_public_address_is_fetched_within_limits(app_url, inside, monkeypatch, path, said):
    """The server of this machine counts as public here, but no other port of it."""
    url, _ = inside

    async def validate(host: str) -> str:
        if host != "pets.example":
            raise ValueError(host)
        return "127.0.0.1"

    monkeypatch.setattr(app, "async_validate_url", validate)
    address = url.replace("127.0.0.1", "pets.example") + path
    found = call_endpoint(app_url, "predict", {"url": address}, "mobilenet")
    assert ('[{"label": "Cat"' in found) if not said else ("event: error" in found and said in found)
    assert "pets.example" not in found
