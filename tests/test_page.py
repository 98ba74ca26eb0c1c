"""The page in a real browser."""

import base64
import csv
import dataclasses
import io
import json
import re
import shutil
import socket
import threading
import zipfile
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import HUB_ADDRESS
from gradio_client import Client, handle_file
from huggingface_hub import ModelCard
from odd_files import stored
from PIL import Image
from playwright.sync_api import expect

import app
import finetune

PERMISSIONS = ["clipboard-read", "clipboard-write", "camera"]
# The phone in the dark.
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
ENOUGH_TIME = 60_000  # ms
PHOTOS = sorted(file.name for file in app.EXAMPLES.glob("*.jpg"))


both_sizes = pytest.mark.parametrize("page", SIZES, indirect=True)


@pytest.fixture
def page(browser, app_url, request):
    size = getattr(request, "param", "desktop")
    dark = "dark" if size == "phone" else "light"
    page = browser.new_page(viewport=SIZES[size], color_scheme=dark, permissions=PERMISSIONS)
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: None if local(asked.url, app_url) else complaints.append(asked.url))
    page.goto(app_url)
    expect(page.get_by_role("heading", name="Cat, dog or neither?")).to_be_visible()
    page.wait_for_load_state("networkidle")  # before, a click may be lost on a busy machine
    yield page
    page.close()
    assert not complaints


def local(address: str, app_url: str) -> bool:
    return address.startswith((app_url, "data:", "blob:", "about:"))


def answer(page):
    return page.locator(".verdict .say")


def upload(page, file):
    page.locator("input[type=file]").first.set_input_files(app.EXAMPLES / file if isinstance(file, str) else file)


def example(page, name):
    page.get_by_role("button", name=f"Try: {name[:-4].replace(chr(45), chr(32))}").click()


def choose(page, model):
    page.get_by_label("Model").click()
    page.get_by_role("option", name=model).click()


def ask_why(page):
    page.get_by_role("button", name="Why?").click()
    expect(page.get_by_text("The stronger the tint")).to_be_visible(timeout=ENOUGH_TIME)


def classify_many(page, files):
    page.get_by_role("tab", name="Many photos").click()
    page.locator(".files input[type=file]").set_input_files(files)
    name = files[-1]["name"] if isinstance(files[-1], dict) else files[-1].name
    expect(page.locator(".files").get_by_text(Path(name).stem).first).to_be_attached(timeout=ENOUGH_TIME)
    page.get_by_role("button", name="Classify", exact=True).click()


def downloaded(page, words: str) -> bytes:
    with page.expect_download(timeout=ENOUGH_TIME) as download:
        page.get_by_role("button", name=words).click(timeout=ENOUGH_TIME)
    return download.value.path().read_bytes()


def downloaded_rows(page) -> list[list[str]]:
    return list(csv.reader(io.StringIO(downloaded(page, "Download the answers as CSV").decode())))


def in_first_screen(page, *locators) -> bool:
    height = page.viewport_size["height"]
    boxes = [one.bounding_box() for locator in locators for one in locator.all()]
    return bool(boxes) and all(box["y"] >= 0 and box["y"] + box["height"] <= height for box in boxes)


def fits(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@both_sizes
def test_an_example_is_answered_on_the_first_screen_and_nothing_jumps(page):
    thumbnails, verdict = page.locator(".examples button"), page.locator(".block.verdict")
    expect(thumbnails).to_have_count(6)
    place = verdict.bounding_box()
    for name, label in (("cat-profile.jpg", "Cat"), ("dog-grey.jpg", "Dog"), ("neither-coffee.jpg", "Neither")):
        example(page, name)
        expect(answer(page)).to_have_text(label, timeout=ENOUGH_TIME)
        bars = page.locator(".verdict .bar")
        expect(bars).to_have_count(3)
        assert in_first_screen(page, answer(page), bars, thumbnails)
        assert verdict.bounding_box() == place
        assert page.locator(".photo img").count() == 1
    assert re.fullmatch(r"(Very|Fairly) sure: (> )?\d+ %", page.locator(".sure").inner_text())
    assert page.evaluate("scrollY") == 0 and fits(page)


@both_sizes
def test_why_and_the_other_model_answer_on_the_same_screen(page, put_behind, tiny_vit):
    put_behind(vit=tiny_vit)
    why, other = page.get_by_role("button", name="Why?"), page.get_by_role("button", name="Ask the other model")
    expect(why).to_be_disabled()
    expect(other).to_be_disabled()
    example(page, "dog-grey.jpg")
    expect(answer(page)).to_have_text("Dog", timeout=ENOUGH_TIME)
    plain = page.locator(".photo img").get_attribute("src")
    ask_why(page)
    expect(page.locator(".photo img")).not_to_have_attribute("src", plain)
    other.click()
    second = page.get_by_text(f"{tiny_vit.name}: Neither")
    expect(second).to_be_visible(timeout=ENOUGH_TIME)
    assert in_first_screen(page, page.get_by_text("The stronger the tint"), second, answer(page))
    expect(answer(page)).to_have_text("Dog")
    example(page, "cat-chelsea.jpg")  # what was said of the other photo goes
    expect(answer(page)).to_have_text("Cat", timeout=ENOUGH_TIME)
    expect(page.get_by_text("The stronger the tint")).to_have_count(0)
    expect(second).to_have_count(0)


def test_the_page_says_which_model_answers(page):
    upload(page, "cat-profile.jpg")
    expect(page.get_by_text(re.compile(r"^mobilenet_v3_small, \d+ ms\.$"))).to_be_visible(timeout=ENOUGH_TIME)
    page.get_by_role("tab", name="About").click()
    card = ModelCard.load(app.EXAMPLES / "mobilenet_v3_small" / "README.md")
    accuracy = next(result.metric_value for result in card.data.eval_results if result.metric_type == "accuracy")
    expect(page.get_by_text(f"It answers Cat, Dog, Neither. By its card it answers {accuracy:.1%}")).to_be_visible()
    expect(page.get_by_text("vit is vit-base-patch16-224. It is not loaded yet.")).to_be_visible()
    with page.expect_popup() as card_page:
        page.get_by_role("link", name="mobilenet_v3_small").click()
    expect(card_page.value.get_by_text("# mobilenet_v3_small: Cat, Dog, Neither")).to_be_visible()


def test_the_page_says_what_an_imagenet_model_sees(page, put_behind, tiny_vit):
    put_behind(vit=tiny_vit)
    choose(page, "vit")
    upload(page, "cat-profile.jpg")
    expect(page.get_by_text("Of ImageNet's 1000 classes it looks most like")).to_be_visible(timeout=ENOUGH_TIME)
    page.get_by_role("tab", name="About").click()
    expect(page.get_by_text("its 5 cats count as Cat, its 118 dogs as Dog")).to_be_visible(timeout=ENOUGH_TIME)


def test_a_visitor_is_told_that_the_model_is_being_loaded(page, put_behind):
    put_behind(vit="you/pets")
    with socket.create_server(HUB_ADDRESS):  # a Hub that is never done
        choose(page, "vit")
        upload(page, "cat-profile.jpg")
        expect(page.get_by_text("The model vit is being loaded.")).to_be_visible(timeout=ENOUGH_TIME)


def test_a_pasted_photo_and_one_from_the_camera_are_answered(page):
    photo = base64.b64encode((app.EXAMPLES / "dog-red.jpg").read_bytes()).decode()
    page.evaluate(  # the clipboard takes no JPEG
        """async photo => {
            const image = await createImageBitmap(await (await fetch("data:image/jpeg;base64," + photo)).blob());
            const canvas = new OffscreenCanvas(image.width, image.height);
            canvas.getContext("2d").drawImage(image, 0, 0);
            await navigator.clipboard.write([new ClipboardItem({"image/png": await canvas.convertToBlob()})]);
        }""",
        photo,
    )
    page.get_by_role("button", name="Paste from clipboard").first.click()
    expect(answer(page)).to_have_text("Dog", timeout=ENOUGH_TIME)
    page.get_by_role("button", name="Remove Image").first.click()
    expect(answer(page)).to_have_text("No photo yet")
    page.get_by_role("button", name="Capture from camera").first.click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('video').readyState > 2")
    page.get_by_role("button", name="capture photo").click()
    # the camera shows a test pattern
    expect(answer(page)).to_have_text(re.compile("^(Cat|Dog|Neither)$"), timeout=ENOUGH_TIME)


@both_sizes
def test_no_tab_shuts_anybody_out(page):
    """All of axe-core's rules, before and after the answers are there."""

    def check(state: str) -> None:
        for tab in ("One photo", "Many photos", "About"):
            page.get_by_role("tab", name=tab).click()
            expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
            found = Axe().run(page).response["violations"]
            assert not [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in found], (tab, state)
            assert fits(page), (tab, state)

    check("empty")
    page.get_by_role("tab", name="One photo").click()
    example(page, "dog-grey.jpg")
    expect(answer(page)).to_have_text("Dog", timeout=ENOUGH_TIME)
    ask_why(page)
    classify_many(page, [*app.EXAMPLES.glob("*.jpg"), Path(__file__)])
    expect(page.locator(".thumbnails img").first).to_be_visible(timeout=ENOUGH_TIME)
    check("answered")


def test_the_keyboard_alone_does_everything(page):
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.ariaLabel") == "Try: cat chelsea":
            break
    page.keyboard.press("Enter")
    expect(answer(page)).to_have_text("Cat", timeout=ENOUGH_TIME)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent").strip() == "Why?":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_text("The stronger the tint")).to_be_visible(timeout=ENOUGH_TIME)
    page.get_by_role("tab", name="One photo").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Choose a folder")).to_be_visible()


def drop(page, place, name: str, kind: str, content: bytes):
    """Drop a file with the type that the browser gives it."""
    script = """([name, kind, bytes]) => {
        const dropped = new DataTransfer();
        dropped.items.add(new File([new Uint8Array(bytes)], name, {type: kind}));
        return dropped;
    }"""
    data = page.evaluate_handle(script, [name, kind, list(content)])
    place.dispatch_event("drop", {"dataTransfer": data})


@pytest.mark.parametrize("way", ["click", "drop"])
@pytest.mark.parametrize(("name", "image_format"), [("IMG_0001.HEIC", "HEIF"), ("scan.tif", "TIFF"), ("photo", "JPEG")])
def test_a_photo_that_browsers_do_not_know_is_taken_and_shown(page, way, name, image_format):
    with Image.open(app.EXAMPLES / "dog-red.jpg") as photo:
        content = stored(photo.convert("RGB"), image_format)
    kind = "image/tiff" if image_format == "TIFF" else ""
    if way == "click":
        upload(page, {"name": name, "mimeType": kind, "buffer": content})
    else:
        drop(page, page.get_by_role("button", name="Drop an image file here"), name, kind, content)
    expect(answer(page)).to_have_text("Dog", timeout=ENOUGH_TIME)
    page.wait_for_function("document.querySelector('.photo img')?.naturalWidth > 100", timeout=ENOUGH_TIME)
    page.get_by_role("tab", name="Many photos").click()
    if way == "drop":
        drop(page, page.locator(".files button").first, name, kind, content)
        expect(page.locator(".files").get_by_text(Path(name).stem).first).to_be_attached(timeout=ENOUGH_TIME)
        page.get_by_role("button", name="Classify", exact=True).click()
    else:
        classify_many(page, [{"name": name, "mimeType": kind, "buffer": content}])
    expect(page.get_by_text("1 photo: 1 Dog; 0 of them")).to_be_visible(timeout=ENOUGH_TIME)


def test_a_refusal_stands_where_the_answer_would_and_stays(page):
    upload(page, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    expect(answer(page)).to_have_text("No answer", timeout=ENOUGH_TIME)
    expect(page.locator(".verdict").get_by_text("This file cannot be read as a photo. Use a JPEG")).to_be_visible()
    expect(page.get_by_role("button", name="Why?")).to_be_disabled()
    assert page.locator(".photo img").count() == 0
    assert page.get_by_text("Error", exact=True).count() == 0 and page.locator(".toast-wrap").inner_text() == ""
    page.get_by_role("tab", name="About").click()
    page.get_by_role("tab", name="One photo").click()
    expect(answer(page)).to_have_text("No answer")
    upload(page, "dog-red.jpg")
    expect(answer(page)).to_have_text("Dog", timeout=ENOUGH_TIME)
    page.get_by_role("tab", name="Many photos").click()
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.get_by_text("Choose some photos.")).to_be_visible(timeout=ENOUGH_TIME)


def test_a_model_that_cannot_be_loaded_says_so_and_the_other_still_answers(page):
    upload(page, "dog-grey.jpg")
    expect(answer(page)).to_have_text("Dog", timeout=ENOUGH_TIME)
    choose(page, "vit")
    expect(page.locator(".verdict").get_by_text("cannot be loaded: the Hub cannot be reached")).to_be_visible(
        timeout=ENOUGH_TIME
    )
    assert page.locator(".photo img").count() == 1
    choose(page, "mobilenet")
    expect(answer(page)).to_have_text("Dog", timeout=ENOUGH_TIME)
    page.get_by_role("button", name="Ask the other model").click()
    expect(page.get_by_text("cannot be loaded: the Hub cannot be reached")).to_be_visible(timeout=ENOUGH_TIME)
    expect(answer(page).first).to_have_text("Dog")


def test_an_address_opens_a_photo_with_a_model(page, app_url, put_behind, tiny_vit):
    put_behind(vit=tiny_vit)
    page.goto(f"{app_url}/?model=vit&example=dog-red")
    expect(answer(page)).to_have_text("Neither", timeout=ENOUGH_TIME)
    expect(page.get_by_label("Model")).to_have_value("vit")
    page.goto(f"{app_url}/?example=dog-red&model=nobody")
    expect(answer(page)).to_have_text("Dog", timeout=ENOUGH_TIME)


def test_links_icon_and_social_card_are_there(page, app_url):
    page.set_viewport_size(SIZES["phone"])
    for words in ("API", "Source", "Privacy"):
        expect(page.get_by_role("link", name=words)).to_be_visible()
    assert page.locator('meta[property="og:title"]').first.get_attribute("content")
    picture = page.locator('meta[property="og:image"]').first.get_attribute("content")
    shared = page.request.get(f"{app_url}/{picture.rsplit('/', 1)[1]}")
    assert picture.startswith("https://") and shared.body() == (app.EXAMPLES / "page.png").read_bytes()
    assert page.request.get(f"{app_url}/favicon.ico").body() == (app.EXAMPLES / "favicon.png").read_bytes()
    assert page.request.get(f"{app_url}/source").text() == Path(app.__file__).read_text()
    page.get_by_role("link", name="Privacy").click()
    expect(page.get_by_text("deleted from the server after two hours")).to_be_visible()


def test_the_calls_are_described_on_a_phone_too(browser, app_url):
    page = browser.new_page(viewport=SIZES["phone"])
    page.goto(app_url)
    page.get_by_role("link", name="API").click()
    expect(page.get_by_text("predict_batch").locator("visible=true").first).to_be_visible(timeout=ENOUGH_TIME)
    page.close()


def test_many_photos_come_back_counted_sorted_and_to_download(page, tmp_path):
    (tmp_path / "broken.jpg").write_text("no photo")
    shutil.copy(app.EXAMPLES / "cat-chelsea.jpg", tmp_path / "=1+1.jpg")
    files = [*sorted(app.EXAMPLES.glob("*.jpg")), tmp_path / "broken.jpg", tmp_path / "=1+1.jpg"]
    classify_many(page, files)
    expect(page.get_by_text("8 photos: 3 Cat, 2 Dog, 2 Neither, 1 could not be read; 0 of them")).to_be_visible(
        timeout=ENOUGH_TIME
    )
    captions = page.locator(".thumbnails figcaption")
    expect(captions).to_have_count(7)
    rows = downloaded_rows(page)
    assert [row[1] for row in rows] == ["label", "Cat", "Cat", "Dog", "Dog", "Neither", "Neither", "", "Cat"]
    assert "cannot be read" in rows[7][3] and rows[8][0] == "'=1+1.jpg"
    least_sure = min((row for row in rows[1:] if row[1]), key=lambda row: float(row[2]))
    assert least_sure[0] in captions.first.inner_text()
    with zipfile.ZipFile(io.BytesIO(downloaded(page, "sorted into folders"))) as archive:
        assert sorted(archive.namelist()) == sorted(
            [f"{row[1]}/{row[0].lstrip(chr(39))}" for row in rows[1:] if row[1]]
        )
        assert archive.read("Cat/=1+1.jpg") == (tmp_path / "=1+1.jpg").read_bytes()
    page.get_by_label("Show", exact=True).click()
    page.get_by_role("option", name="Dog").click()
    expect(captions.locator("visible=true")).to_have_count(2)
    expect(page.get_by_role("columnheader", name="confidence")).to_have_count(0)  # the table is closed
    page.get_by_role("button", name="As a table").click()
    expect(page.get_by_role("columnheader", name="confidence").first).to_be_visible()


def test_a_folder_is_taken_whole(page, tmp_path):
    for index, name in enumerate(("cat-chelsea.jpg", "dog-red.jpg")):
        (tmp_path / "pets" / str(index)).mkdir(parents=True)
        shutil.copy(app.EXAMPLES / name, tmp_path / "pets" / str(index))
    page.get_by_role("tab", name="Many photos").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a folder").click()
    chooser.value.set_files(tmp_path / "pets")
    expect(page.locator(".files").get_by_text("dog-red").first).to_be_attached(timeout=ENOUGH_TIME)
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.get_by_text(re.compile("2 photos: 1 (Cat|Dog), 1 (Cat|Dog);"))).to_be_visible(timeout=ENOUGH_TIME)


def test_a_program_is_answered_while_the_page_looks_at_300_photos(page, app_url, tmp_path, monkeypatch):
    plain, seen = app.READY["mobilenet"], threading.Event()

    def logits(pixel_values):
        if len(pixel_values) > 1:
            seen.wait(2)
        return plain.logits(pixel_values)

    late = dataclasses.replace(plain, logits=logits)
    monkeypatch.setitem(app.READY, "mobilenet", late)  # each batch takes 2 seconds until all was looked at
    shown = [(app.EXAMPLES / name, name.split("-")[0].title()) for name in PHOTOS]
    for index in range(300):
        with Image.open(shown[index % len(shown)][0]) as photo:
            photo.resize((300 + index, 300)).save(tmp_path / f"{index:03}.jpg")
    classify_many(page, sorted(tmp_path.iterdir()))
    expect(page.get_by_text(re.compile(r"\d+ of 300 photos\. About \d+ seconds left\.")).first).to_be_visible(
        timeout=ENOUGH_TIME
    )
    photo = handle_file(shown[0][0])
    assert Client(app_url, verbose=False).predict(photo, "mobilenet", api_name="/predict")["label"] == shown[0][1]
    assert page.locator(".thumbnails img").count() == 0  # the page is not done yet
    seen.set()
    expect(page.locator(".thumbnails img").first).to_be_visible(timeout=ENOUGH_TIME)
    rows = downloaded_rows(page)[1:]
    assert [row[0] for row in rows] == [f"{index:03}.jpg" for index in range(300)]
    right = [row[1] == shown[index % len(shown)][1] for index, row in enumerate(rows)]
    assert sum(right) > 0.9 * len(rows)


LONG = "μακρύ " * 19 + "名前"  # 117 characters
LABELS = {
    "three": ["rose", "tulip", "daisy"],
    "five": ["rose", LONG, "Ümläut & <b>", "x" * 120, "🌷"],
    "two hundred": [f"species {number}" for number in range(200)],
}


@pytest.fixture
def own_model(tmp_path, put_behind):
    """Return the function that puts a random model with such labels in the place of ours."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    def put(labels: list[str], examples: tuple = ()) -> Path:
        folder = tmp_path / "flowers"
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = ViTConfig(image_size=32, patch_size=16, id2label=dict(enumerate(labels)), **sizes)
        ViTForImageClassification(config).save_pretrained(folder)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        (folder / "examples").mkdir()
        for name in examples:
            shutil.copy(app.EXAMPLES / name, folder / "examples")
        put_behind(mobilenet=folder)
        app.classifier("mobilenet")
        return folder

    return put


def test_a_quick_second_photo_is_answered_too(page, put_behind):
    put_behind(mobilenet=app.OURS)
    with app.LOADING["mobilenet"]:
        example(page, "cat-chelsea.jpg")
        expect(answer(page)).to_have_text("One moment", timeout=ENOUGH_TIME)
        example(page, "dog-red.jpg")
        page.wait_for_timeout(500)  # for a request that may not come
    expect(answer(page)).to_have_text("Dog", timeout=ENOUGH_TIME)


def test_a_doubtful_answer_is_called_so(page, tmp_path, put_behind):
    model, processor = finetune.build_model("mobilenet_v3_small", app.PET_LABELS, "none", 48)
    finetune.write_model(tmp_path / "model", model.eval(), processor, 0.999)
    put_behind(vit=tmp_path / "model")
    choose(page, "vit")
    example(page, "dog-red.jpg")
    expect(answer(page)).to_have_text("Not sure", timeout=ENOUGH_TIME)
    expect(page.locator(".verdict .sure")).to_have_text(re.compile(r"^Perhaps (Cat|Dog|Neither): \d+ %$"))


@pytest.mark.parametrize(
    ("kind", "heading"), [("three", "Rose, tulip or daisy?"), ("five", "flowers"), ("two hundred", "flowers")]
)
@pytest.mark.parametrize("size", SIZES)
def test_a_model_of_ones_own_has_its_own_title_labels_and_examples(browser, app_url, own_model, kind, heading, size):
    examples = ("dog-red.jpg", "cat-chelsea.jpg") if kind == "three" else ()
    own_model(LABELS[kind], examples)
    page = browser.new_page(viewport=SIZES[size])
    page.on("dialog", lambda dialog: pytest.fail(f"a name ran a script: {dialog.message}"))
    page.goto(app_url)
    expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    page.wait_for_function(f"document.title === {json.dumps(heading)}")
    expect(page.locator(".examples button")).to_have_count(len(examples))
    assert page.get_by_text(re.compile("cat, a dog")).count() == 0
    if examples:
        page.get_by_role("button", name="Try: dog red").click()
    else:
        upload(page, "dog-red.jpg")
    expect(page.locator(".verdict .bar").first).to_be_visible(timeout=ENOUGH_TIME)
    visible = page.locator(".verdict .bar:visible")
    expect(visible).to_have_count(5 if kind == "two hundred" else len(LABELS[kind]))
    if kind == "two hundred":
        page.get_by_text("Show all").click()
        expect(visible).to_have_count(200)
    assert fits(page)
    for bar in page.locator(".verdict .bar").all()[:5]:
        box, card = bar.bounding_box(), page.locator(".block.verdict").bounding_box()
        assert card["x"] <= box["x"] and box["x"] + box["width"] <= card["x"] + card["width"]
    page.get_by_role("tab", name="About").click()
    expect(page.get_by_text(f"It answers {LABELS[kind][0]}")).to_be_visible(timeout=ENOUGH_TIME)
    page.close()
