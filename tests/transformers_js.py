"""Runs the JavaScript of the shipped model's card in Chromium, without a network, and compares it with /predict. By hand.

    python tests/transformers_js.py

It needs Node's npm, once, for `@huggingface/transformers`, and prints both labels of each example photo.
"""

import re
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from conftest import ROOT, browser_program, call_endpoint, data_url, running_app
from playwright.sync_api import sync_playwright

MODEL = "examples/mobilenet_v3_small"
PAGE = """<!doctype html>
<script type="importmap">{"imports": {
  "@huggingface/transformers": "/node_modules/@huggingface/transformers/dist/transformers.web.js",
  "onnxruntime-common": "/node_modules/onnxruntime-common/dist/esm/index.js",
  "onnxruntime-web/webgpu": "/node_modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs",
  "onnxruntime-web": "/node_modules/onnxruntime-web/dist/ort.bundle.min.mjs"
}}</script>
<script type="module">
import { env } from "@huggingface/transformers";
env.allowLocalModels = true;
env.allowRemoteModels = false;
env.localModelPath = "/";
env.backends.onnx.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
await import("/snippet.js");
</script>
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def main() -> None:
    """Serve the packages, the model and the card's snippet; print what it says of each photo."""
    snippet = re.search(r"```javascript\n(.*?)```", (ROOT / MODEL / "README.md").read_text(), re.DOTALL)[1]
    wrong = 0
    with (
        tempfile.TemporaryDirectory() as scratch,
        running_app(VIT_MODEL="none") as url,
        sync_playwright() as playwright,
    ):
        subprocess.run(
            ["npm", "install", "--silent", "--ignore-scripts", "@huggingface/transformers@4"], cwd=scratch, check=True
        )
        Path(scratch, "examples").symlink_to(ROOT / "examples")
        Path(scratch, "index.html").write_text(PAGE)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=scratch))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(**browser_program())
        for photo in sorted((ROOT / "examples").glob("*.jpg")):
            Path(scratch, "snippet.js").write_text(snippet.replace("photo.jpg", f"/examples/{photo.name}"))
            page = browser.new_page()
            said: list[str] = []
            page.on("console", lambda message, said=said: said.append(message.text) if message.type == "log" else None)
            page.on("pageerror", lambda error, said=said: said.append(f"error: {error}"))
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
            while not said:
                page.wait_for_timeout(100)
            page.close()
            ours = re.search(r'"label": "(\w+)"', call_endpoint(url, "predict", data_url(photo), "mobilenet"))[1]
            print(f"{photo.name:<20} transformers.js: {said[-1]:<10} /predict: {ours}", flush=True)
            wrong += said[-1] != ours
        browser.close()
    sys.exit(wrong)


if __name__ == "__main__":
    main()
