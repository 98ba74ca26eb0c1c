"""The page in a real browser."""

import base64
import csv
import re
import socket
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import HUB_ADDRESS
from gradio_client import Client, handle_file
from huggingface_hub import ModelCard
from PIL import Image
from playwright.sync_api import expect

import app

PERMISSIONS = ["clipboard-read", "clipboard-write", "camera"]
# The phone in the dark.
SIZES = {"desktop": {"width": 1200, "height": 900}, "phone": {"width": 360, "height": 800}}


both_sizes = pytest.mark.parametrize("page", SIZES, indirect=True)


@pytest.fixture
def page(browser, app_url, request):
    size = getattr(request, "param", "desktop")
    dark = "dark" if size == "phone" else "light"
    page = browser.new_page(viewport=SIZES[size], color_scheme=dark, permissions=PERMISSIONS)
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(app_url)
    expect(page.get_by_role("heading", name="Cat, dog or neither?")).to_be_visible()
    yield page
    page.close()
    assert not complaints


def answer(page):
    return page.get_by_test_id("label-output-value").first


def upload(page, name):
    page.locator("input[type=file]").first.set_input_files(app.EXAMPLES / name)


def choose(page, model):
    page.get_by_label("Model").click()
    page.get_by_role("option", name=model).click()


def classify_many(page, files):
    page.get_by_role("tab", name="Many photos").click()
    page.locator("input[type=file]:not([accept*=image])").first.set_input_files(files)
    expect(page.get_by_text(str(files[-1].stem)).first).to_be_attached(timeout=60_000)
    page.get_by_role("button", name="Classify").click()


def downloaded_rows(page):
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the answers as CSV").click()
    return list(csv.reader(download.value.path().open(encoding="utf-8")))


@both_sizes
def test_an_uploaded_photo_is_answered_without_a_button_and_fits_the_screen(page):
    place = page.get_by_text("Photos to try").bounding_box()
    for name, label in (("cat-profile.jpg", "Cat"), ("dog-porch.jpg", "Dog"), ("neither-coffee.jpg", "Neither")):
        upload(page, name)
        expect(answer(page)).to_have_text(label, timeout=60_000)
        assert page.get_by_text("Photos to try").bounding_box() == place  # nothing jumps
        page.get_by_role("button", name="Remove Image").first.click()
        expect(answer(page)).to_have_text("No photo yet")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_page_says_which_model_answers(page):
    upload(page, "cat-profile.jpg")
    expect(page.get_by_text(re.compile(r"^mobilenet_v3_small, \d+ ms\.$"))).to_be_visible(timeout=60_000)
    page.get_by_role("tab", name="About").click()
    card = ModelCard.load(app.EXAMPLES / "mobilenet_v3_small" / "README.md")
    accuracy = next(result.metric_value for result in card.data.eval_results if result.metric_type == "accuracy")
    expect(page.get_by_text(f"mobilenet is mobilenet_v3_small. By its card it answers {accuracy:.1%}")).to_be_visible()
    expect(page.get_by_text("vit is vit-base-patch16-224, which is not loaded yet.")).to_be_visible()


def test_the_page_says_what_an_imagenet_model_sees(page, put_behind, tiny_vit):
    put_behind(vit=tiny_vit)
    choose(page, "vit")
    upload(page, "cat-profile.jpg")
    expect(page.get_by_text("Of ImageNet's 1000 classes it looks most like")).to_be_visible(timeout=60_000)


def test_a_visitor_is_told_that_the_model_is_being_loaded(page, put_behind):
    put_behind(vit="you/pets")
    with socket.create_server(HUB_ADDRESS):  # a Hub that is never done
        choose(page, "vit")
        upload(page, "cat-profile.jpg")
        expect(page.get_by_text("The model vit is being loaded.")).to_be_visible(timeout=60_000)


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
    expect(answer(page)).to_have_text("Dog", timeout=60_000)
    page.get_by_role("button", name="Remove Image").first.click()
    expect(answer(page)).to_have_text("No photo yet")
    page.get_by_role("button", name="Capture from camera").first.click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('video').readyState > 2")
    page.get_by_role("button", name="capture photo").click()
    expect(answer(page)).to_have_text(re.compile("Cat|Dog|Neither"), timeout=60_000)  # the camera shows a test pattern


@both_sizes
def test_why_shows_the_photo_and_its_heatmap(page):
    upload(page, "dog-porch.jpg")
    expect(answer(page)).to_have_text("Dog", timeout=60_000)
    page.get_by_role("button", name="Why?").click()
    expect(page.get_by_text("The brighter a part, the more Dog depends on it.")).to_be_visible(timeout=60_000)
    expect(page.locator(".heatmap img[src]")).to_have_count(2)
    page.get_by_role("button", name="Remove Image").first.click()
    expect(page.get_by_text("The brighter a part")).to_have_count(0)


def test_both_models_are_compared_in_words(page, put_behind, tiny_vit):
    put_behind(vit=tiny_vit)
    page.get_by_role("tab", name="Compare").click()
    page.locator("input[type=file]").nth(1).set_input_files(app.EXAMPLES / "dog-red.jpg")
    words = re.compile(r"They disagree: mobilenet says Dog \(\d+%\) and vit says Neither \(\d+%\)\.")
    expect(page.get_by_text(words)).to_be_visible(timeout=60_000)
    page.get_by_role("tab", name="About").click()
    expect(page.get_by_text(f"vit is {tiny_vit.name}.")).to_be_visible()  # and no more "not loaded yet"


@both_sizes
def test_no_tab_shuts_anybody_out(page):
    """axe-core's rules on contrast, names, roles and focus, before and after the answers are there."""

    def check(state: str) -> None:
        for tab in ("Classify", "Compare", "Many photos", "About"):
            page.get_by_role("tab", name=tab).click()
            expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
            expect(page.get_by_text("is being loaded")).to_have_count(0, timeout=30_000)
            found = Axe().run(page).response["violations"]
            serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
            assert not [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in serious], (tab, state)
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (tab, state)

    check("empty")
    page.get_by_role("tab", name="Classify").click()
    upload(page, "dog-porch.jpg")
    expect(answer(page)).to_have_text("Dog", timeout=60_000)
    page.get_by_role("button", name="Why?").click()
    expect(page.get_by_text("The brighter a part")).to_be_visible(timeout=60_000)
    classify_many(page, [*app.EXAMPLES.glob("*.jpg"), Path(__file__)])
    expect(page.locator(".thumbnails img").first).to_be_visible(timeout=60_000)
    check("answered")


def test_a_dropped_photo_is_answered(page):
    content = (app.EXAMPLES / "dog-red.jpg").read_bytes()
    script = """bytes => {
        const dropped = new DataTransfer();
        dropped.items.add(new File([new Uint8Array(bytes)], "dog.jpg", {type: "image/jpeg"}));
        return dropped;
    }"""
    data = page.evaluate_handle(script, list(content))
    page.get_by_role("button", name="Drop an image file here").dispatch_event("drop", {"dataTransfer": data})
    expect(answer(page)).to_have_text("Dog", timeout=60_000)


@both_sizes
def test_a_click_on_an_example_answers_it(page):
    page.get_by_test_id("image").locator("visible=true").first.wait_for()
    page.get_by_role("row", name="A cat, close up").click()
    expect(answer(page)).to_have_text("Cat", timeout=60_000)


def test_a_model_that_cannot_be_had_says_so_and_the_other_still_answers(page):
    upload(page, "dog-grey.jpg")
    expect(answer(page)).to_have_text("Dog", timeout=60_000)
    choose(page, "vit")
    expect(page.get_by_text("cannot be loaded: the Hub cannot be reached").first).to_be_visible(timeout=60_000)
    choose(page, "mobilenet")
    expect(answer(page)).to_have_text("Dog", timeout=60_000)


def test_many_photos_come_back_as_a_table_thumbnails_and_a_csv_file(page, tmp_path):
    (tmp_path / "broken.jpg").write_text("no photo")
    files = [app.EXAMPLES / "cat-chelsea.jpg", app.EXAMPLES / "neither-coffee.jpg", tmp_path / "broken.jpg"]
    classify_many(page, files)
    expect(page.get_by_text("cat-chelsea").first).to_be_visible()
    expect(page.get_by_text("cannot be read as a photo").first).to_be_attached(timeout=60_000)
    expect(page.locator(".thumbnails img")).to_have_count(2)
    expect(page.get_by_text(re.compile(r"^Cat \d+%: cat-chelsea.jpg$"))).to_be_attached()
    rows = downloaded_rows(page)
    assert [row[:2] for row in rows] == [
        ["file", "label"],
        ["cat-chelsea.jpg", "Cat"],
        ["neither-coffee.jpg", "Neither"],
        ["broken.jpg", ""],
    ]
    assert "cannot be read" in rows[3][3]


def test_a_program_is_answered_while_the_page_looks_at_300_photos(page, app_url, tmp_path):
    shown = [(app.EXAMPLES / name, name.split("-")[0].title()) for name in app.SHOWN]
    for index in range(300):
        with Image.open(shown[index % len(shown)][0]) as photo:
            photo.resize((300 + index, 300)).save(tmp_path / f"{index:03}.jpg")
    classify_many(page, sorted(tmp_path.iterdir()))
    expect(page.get_by_text(re.compile(r"\d+/19 batches")).first).to_be_visible(timeout=60_000)
    photo = handle_file(shown[0][0])
    assert Client(app_url, verbose=False).predict(photo, "mobilenet", api_name="/predict")["label"] == shown[0][1]
    assert page.locator(".thumbnails img").count() == 0  # the page is not done yet
    expect(page.locator(".thumbnails img").first).to_be_visible(timeout=60_000)
    rows = downloaded_rows(page)[1:]
    assert [row[0] for row in rows] == [f"{index:03}.jpg" for index in range(300)]
    right = [row[1] == shown[index % len(shown)][1] for index, row in enumerate(rows)]
    assert sum(right) > 0.9 * len(rows)
