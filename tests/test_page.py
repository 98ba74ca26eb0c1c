"""The page in a real browser."""

import socket

import pytest
from conftest import running_app
from playwright.sync_api import expect

import app

SIZES = {"desktop": {"width": 1200, "height": 900}, "phone": {"width": 360, "height": 800}}


@pytest.fixture(params=SIZES)
def page(browser, app_url, request):
    page = browser.new_page(viewport=SIZES[request.param])
    page.goto(app_url)
    expect(page.get_by_role("heading", name="Cat, dog or neither?")).to_be_visible()
    yield page
    page.close()


def answer(page):
    return page.get_by_test_id("label-output-value")


def test_an_uploaded_photo_is_answered_without_a_button_and_fits_the_screen(page):
    for name, label in (("cat-profile.jpg", "Cat"), ("dog-porch.jpg", "Dog"), ("neither-coffee.jpg", "Neither")):
        page.locator("input[type=file]").first.set_input_files(app.EXAMPLES / name)
        expect(answer(page)).to_have_text(label, timeout=60_000)
        page.get_by_role("button", name="Remove Image").first.click()
        expect(answer(page)).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_page_says_which_model_answers(page):
    page.locator("input[type=file]").first.set_input_files(app.EXAMPLES / "cat-profile.jpg")
    expect(page.get_by_text("mobilenet is mobilenet_v3_small.")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("vit is vit-base-patch16-224, which is not loaded yet.")).to_be_visible()


def test_the_page_says_what_an_imagenet_model_sees(browser, tiny_vit):
    with running_app(VIT_MODEL=str(tiny_vit)) as url:
        page = browser.new_page()
        page.goto(url)
        page.get_by_label("Model").click()
        page.get_by_role("option", name="vit").click()
        page.locator("input[type=file]").first.set_input_files(app.EXAMPLES / "cat-profile.jpg")
        expect(page.get_by_text("Of ImageNet's 1000 classes it looks most like")).to_be_visible(timeout=60_000)
        page.close()


def test_a_visitor_is_told_that_the_model_is_being_loaded(browser):
    with socket.create_server(("127.0.0.1", 0)) as slow:  # a Hub that is never done
        hub = f"http://127.0.0.1:{slow.getsockname()[1]}"
        with running_app(VIT_MODEL="you/pets", HF_ENDPOINT=hub) as url:
            page = browser.new_page()
            page.goto(url)
            page.get_by_label("Model").click()
            page.get_by_role("option", name="vit").click()
            page.locator("input[type=file]").first.set_input_files(app.EXAMPLES / "cat-profile.jpg")
            expect(page.get_by_text("The model vit is being loaded.")).to_be_visible(timeout=60_000)
            page.close()


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


def test_a_click_on_an_example_answers_it(page):
    page.get_by_test_id("image").locator("visible=true").first.wait_for()
    page.locator(".gallery-item, .gallery > button").first.click()
    expect(answer(page)).to_have_text("Cat", timeout=60_000)


def test_a_model_that_cannot_be_had_says_so_and_the_other_still_answers(page):
    page.locator("input[type=file]").first.set_input_files(app.EXAMPLES / "dog-grey.jpg")
    expect(answer(page)).to_have_text("Dog", timeout=60_000)
    page.get_by_label("Model").click()
    page.get_by_role("option", name="vit").click()
    expect(page.get_by_text("cannot be had: the Hub cannot be reached").first).to_be_visible(timeout=60_000)
    page.get_by_label("Model").click()
    page.get_by_role("option", name="mobilenet").click()
    expect(answer(page)).to_have_text("Dog", timeout=60_000)


def test_many_photos_come_back_as_a_table(page, tmp_path):
    (tmp_path / "broken.jpg").write_text("no photo")
    page.get_by_role("tab", name="Many photos").click()
    files = [app.EXAMPLES / "cat-chelsea.jpg", app.EXAMPLES / "neither-coffee.jpg", tmp_path / "broken.jpg"]
    page.locator("input[type=file]:not([accept*=image])").first.set_input_files(files)
    expect(page.get_by_text("cat-chelsea").first).to_be_visible()
    page.get_by_role("button", name="Classify").click()
    for words in (
        "cat-chelsea.jpg",
        "Neither",
        "cannot be read as a photo",
    ):  # the upload box splits cat-chelsea from .jpg
        expect(page.get_by_text(words, exact=words.endswith("jpg")).first).to_be_attached(timeout=60_000)
