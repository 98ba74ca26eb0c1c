"""Applies deliberate faults to the three scripts, one at a time, and prints which test catches each. By hand.

    python tests/mutate.py
    python tests/mutate.py exif

The faults whose names hold the word, or all, are tried in copies of this folder, as many at a time as there are cores.
The tests concerned must pass without the fault. The exit code is the number of faults that no test caught.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Fault(NamedTuple):
    """A piece of code that stands once in a script, what takes its place, and the tests that should notice."""

    name: str
    script: str
    code: str
    instead: str
    tests: str  # a test file and words for pytest's -k


FAULTS = [
    Fault(
        "prep: wrong label order",
        "prep.py",
        'names = sorted(set(usable["label"]))',
        'names = sorted(set(usable["label"]), reverse=True)',
        "prep stratified or tables or case_or_spaces",
    ),
    Fault(
        "prep: labels on the wrong photos",
        "prep.py",
        "labels[chosen], names)",
        "labels[np.sort(chosen)], names)",
        "prep stratified or tables or class_folders",
    ),
    Fault(
        "prep: no EXIF turn",
        "prep.py",
        "image = ImageOps.exif_transpose(image) if image.getexif()",
        "image = image.copy() if image.getexif()",
        "prep upright or iphones or byte_for_byte",
    ),
    Fault(
        "prep: split not by group",
        "prep.py",
        "links = np.hstack([pairs, [range(count), first]])",
        "links = np.array([range(count), first])",
        "prep near_duplicate or stratified",
    ),
    Fault(
        "prep: near duplicates need equal hashes",
        "prep.py",
        "pair[:, differing <= NEAR_BITS]",
        "pair[:, differing <= 0]",
        "prep near_duplicate",
    ),
    Fault(
        "prep: links not confined",
        "prep.py",
        "if not real.is_relative_to(within):",
        "if False:",
        "prep cannot_be_used",
    ),
    Fault(
        "prep: row numbers off by one",
        "prep.py",
        "rows.append((lines[read][0], row))",
        "rows.append((lines[read][0] - 1, row))",
        "prep cannot_be_used or copies",
    ),
    Fault(
        "prep: copies of a photo stay",
        "prep.py",
        'False: "duplicate: "})',
        'False: ""}).where(False, "")',
        "prep copies or cannot_be_used",
    ),
    Fault(
        "prep: a photo with two labels stays",
        "prep.py",
        'same["label"].transform("nunique") > 1]',
        'same["label"].transform("nunique") > 9]',
        "prep copies",
    ),
    Fault(
        "prep: cut photos are taken",
        "prep.py",
        "image.load()  # verify() would accept a JPEG that is cut off in the middle",
        "from PIL import ImageFile\n            ImageFile.LOAD_TRUNCATED_IMAGES = True\n            image.load()",
        "prep cannot_be_used",
    ),
    Fault(
        "prep: semicolons not seen",
        "prep.py",
        'max(",;\\t| ", key=agreement)',
        'max(",\\t| ", key=agreement)',
        "prep tables",
    ),
    Fault(
        "prep: --overwrite replaces any folder",
        "prep.py",
        'if dst_path.exists() and not (dst_path / "dataset_dict.json").is_file():',
        "if False:",
        "prep exists_is_replaced",
    ),
    Fault(
        "prep: half-written output stays",
        "prep.py",
        "    finally:\n        shutil.rmtree(unfinished, ignore_errors=True)",
        "    finally:\n        pass",
        "prep bad_input",
    ),
    Fault(
        "prep: no retry of a push",
        "prep.py",
        "stop_after_attempt(5)",
        "stop_after_attempt(1)",
        "prep push or refusal",
    ),
    Fault(
        "prep: archives are not confined",
        "prep.py",
        "if link or LEADS_OUT.search(name):",
        "if False:",
        "prep_kinds elsewhere",
    ),
    Fault(
        "prep: a name takes the file of another row",
        "prep.py",
        "if plain(files.names[place]) != plain(name):",
        "if False:",
        "prep_kinds resembles",
    ),
    Fault(
        "prep: numberings count as names",
        "prep.py",
        "words = [column for column in table if not are_numbers(table[column])]",
        "words = list(table)",
        "prep_kinds numbering",
    ),
    Fault(
        "prep: split folders are classes",
        "prep.py",
        "if known and (known == below.keys() or len(known) > 1 and set.intersection(*(below[name] for name in known))):",
        "if False:",
        "prep_kinds splits_are_kept",
    ),
    Fault(
        "prep: cells are lost",
        "prep.py",
        "if any(cells[width:]):",
        "if False:",
        "prep_kinds with_its_line",
    ),
    Fault(
        "prep: text is garbled",
        "prep.py",
        "if encoding:\n            return content.decode(encoding), encoding",
        'encoding = encoding or "latin-1"\n        if encoding:\n            return content.decode(encoding), encoding',
        "prep_kinds encodings",
    ),
    Fault(
        "prep: rows with several ones are taken",
        "prep.py",
        "(ones.sum(axis=1) != 1)",
        "(ones.sum(axis=1) > 3)",
        "prep_kinds one_hot",
    ),
    Fault(
        "prep: deep grey is cut off",
        "prep.py",
        "/ max(high - low, 1e-12) * 255",
        "",
        "prep_kinds eight_bits",
    ),
    Fault(
        "prep: groups are torn",
        "prep.py",
        "links = np.hstack([pairs, [range(count), first]])",
        "links = pairs",
        "prep_kinds groups_stay",
    ),
    Fault(
        "prep: given splits are cut again",
        "prep.py",
        "given = given if len(given) > 1 else []",
        "given = []",
        "prep_kinds column_of_splits",
    ),
    Fault(
        "prep: a script without a main guard deletes what it is writing",
        "prep.py",
        'if "_inheriting" in vars(multiprocessing.current_process()):',
        "if False:",
        "prep main_guard",
    ),
    Fault(
        "prep: suspects in any order",
        "prep.py",
        "worst = other[chances[other, labels[other]] < UNLIKELY * chances[other].max(1)]",
        "worst = other[chances[other, labels[other]] < UNLIKELY * chances[other].max(1)][::-1]",
        "prep_kinds suspects",
    ),
    Fault(
        "finetune: test photos in training",
        "finetune.py",
        "make_trainer(student, train, validation,",
        "make_trainer(student, test, validation,",
        "finetune test_split or card_holds",
    ),
    Fault(
        "finetune: the best epoch chosen by the test split",
        "finetune.py",
        "make_trainer(student, train, validation,",
        "make_trainer(student, train, test,",
        "finetune test_split or best_epoch",
    ),
    Fault(
        "finetune: the card measures the validation split",
        "finetune.py",
        "trainer.predict(validation), trainer.predict(test)",
        "trainer.predict(validation), trainer.predict(validation)",
        "finetune card_holds or two_processes",
    ),
    Fault(
        "finetune: the last epoch is kept",
        "finetune.py",
        "load_best_model_at_end=True",
        "load_best_model_at_end=False",
        "finetune best_epoch",
    ),
    Fault(
        "finetune: the epoch with the largest loss is kept",
        "finetune.py",
        "metric_for_best_model=asked.monitor_metric_name,",
        "metric_for_best_model=asked.monitor_metric_name, greater_is_better=True,",
        "finetune best_epoch",
    ),
    Fault(
        "finetune: labels reversed in the checkpoint",
        "finetune.py",
        '"id2label": dict(enumerate(names)),',
        '"id2label": dict(enumerate(names[::-1])),',
        "finetune measures_the_accuracy or hub",
    ),
    Fault(
        "finetune: training sees other pixels than the app",
        "finetune.py",
        ".sub_(mean / std)",
        "",
        "finetune same_numbers or best_epoch",
    ),
    Fault(
        "finetune: transparent parts black",
        "finetune.py",
        'Image.new("RGBA", image.size, "white")',
        'Image.new("RGBA", image.size, "black")',
        "finetune same_pixels",
    ),
    Fault(
        "finetune: no temperature",
        "finetune.py",
        "            parameter /= temperature",
        "            parameter /= 1",
        "finetune temperature",
    ),
    Fault(
        "finetune: the teacher has no weight",
        "finetune.py",
        "loss = LABELS * loss + OUR_CLASSES * divergence(logits, teacher.read(theirs))",
        "loss = LABELS * loss",
        "finetune three_parts",
    ),
    Fault(
        "finetune: each process takes the whole batch",
        "finetune.py",
        "per_device_train_batch_size=asked.batch_size // processes.num_processes",
        "per_device_train_batch_size=asked.batch_size",
        "finetune two_processes",
    ),
    Fault(
        "finetune: the seed is not set",
        "finetune.py",
        "    transformers.set_seed(seed)  # before",
        "    # before",
        "finetune same_seed or resumes",
    ),
    Fault(
        "finetune: the Hub is asked once",
        "finetune.py",
        "stop_after_attempt(5)",
        "stop_after_attempt(1)",
        "finetune gets_over or over_a_fault",
    ),
    Fault(
        "finetune: one machine alone saves epochs",
        "finetune.py",
        "save_on_each_node=True",
        "save_on_each_node=False",
        "finetune two_machines",
    ),
    Fault(
        "finetune: nobody waits for a slow teacher",
        "finetune.py",
        ", timeout=timedelta(days=30)",
        "",
        "finetune teacher_is_slow",
    ),
    Fault(
        "finetune: views differ from run to run",
        "finetune.py",
        'random.Random(f"{self.seed} {self.epoch} {index}")',
        "random.Random()",
        "finetune depends_on_seed or same_seed",
    ),
    Fault(
        "finetune: the stress table blurs less than it says",
        "finetune.py",
        "GaussianBlur(4 * side / 224))",
        "GaussianBlur(side / 224))",
        "finetune stress_table_counts",
    ),
    Fault(
        "finetune: the baseline's mistakes are counted as its own",
        "finetune.py",
        "int((right & ~theirs).sum()), int((theirs & ~right).sum())",
        "int((theirs & ~right).sum()), int((right & ~theirs).sum())",
        "finetune baseline",
    ),
    Fault(
        "app: channels in the wrong order",
        "app.py",
        'return photo.convert("RGB").reduce(',
        'return Image.merge("RGB", photo.convert("RGB").split()[::-1]).reduce(',
        "finetune same_pixels",
    ),
    Fault(
        "app: no EXIF turn",
        "app.py",
        "photo = ImageOps.exif_transpose(image)",
        "photo = image.copy()",
        "app however_a_photo",
    ),
    Fault(
        "app: 16 bits cut off at 255",
        "app.py",
        "photo.point(lambda grey: grey / 256)",
        "photo.point(lambda grey: grey / 1)",
        "app however_a_photo",
    ),
    Fault(
        "app: temperature twice",
        "app.py",
        "else ready.logits(pixels)",
        "else ready.logits(pixels) / 0.8",
        "finetune shipped_model or temperature",
    ),
    Fault(
        "app: cache by name only",
        "app.py",
        '(classifier(asked["model"]).revision, asked["photo"])',
        'classifier(asked["model"]).revision',
        "app every_example",
    ),
    Fault(
        "app: cache without the name",
        "app.py",
        '(classifier(asked["model"]).revision, asked["photo"])',
        'asked["photo"]',
        "app from_memory",
    ),
    Fault(
        "app: batch answers shuffled",
        "app.py",
        "found, results = iter(answers(photos, model) if photos else []), []",
        "found, results = iter(answers(photos, model)[::-1] if photos else []), []",
        "app batch",
    ),
    Fault(
        "app: ImageNet's cats off by one",
        "app.py",
        "slice(281, 286)",
        "slice(280, 285)",
        "app by_index or imagenet",
    ),
    Fault(
        "app: a missing head is filled at random",
        "app.py",
        'if wrong := {*found["missing_keys"], *found["unexpected_keys"]}:',
        "if wrong := False:",
        "app with_a_fault",
    ),
    Fault(
        "app: weights that are not finite",
        "app.py",
        "if not np.isfinite(found).all():",
        "if False:",
        "app with_a_fault or onnx_file",
    ),
    Fault(
        "app: any path on the server is opened",
        "app.py",
        "if path.is_relative_to(UPLOADS) or path in example_files():",
        "if path.is_file():",
        "app path_on_the_server",
    ),
    Fault(
        "app: work goes on for nobody",
        "app.py",
        "        yield gr.skip()  # here gradio stops it if the client has left\n    yield rows",
        "        pass\n    yield rows",
        "nothing_hurts leaves_frees",
    ),
    Fault(
        "app: a refused call is not read to its end",
        "app.py",
        """                while unread > 0:
                    await read()
""",
        "",
        "nothing_hurts uploads_are_limited",
    ),
    Fault(
        "app: no limit on pixels",
        "app.py",
        "if image.width * image.height > MAX_PIXELS:",
        "if False:",
        "nothing_hurts odd_file",
    ),
    Fault(
        "app: a stop cuts what is being answered",
        "app.py",
        "LAST_SECONDS = 6 ",
        "LAST_SECONDS = 0 ",
        "nothing_hurts a_stop",
    ),
    Fault(
        "finetune: the last layer is not new",
        "finetune.py",
        "model.get_submodule(head_name(model)).reset_parameters()",
        "pass",
        "finetune of_the_hub or test_split",
    ),
    Fault(
        "finetune: torchvision's weights are not taken",
        "finetune.py",
        "        own[name].copy_(given[name].reshape(own[name].shape))",
        "        pass",
        "finetune same_function or new_head",
    ),
    Fault(
        "finetune: timm's names with transformers' prefix",
        "finetune.py",
        "save_model(model.timm_model, ",
        "save_model(model, ",
        "finetune each_family or shipped_model",
    ),
    Fault(
        "app: ImageNet's priors stay",
        "app.py",
        "adjusted = shares * np.asarray(PET_SHARES) / np.bincount(groups)",
        "adjusted = shares",
        "app priors",
    ),
    Fault(
        "app: the small model borrows a GPU",
        "app.py",
        'return not (folder / "onnx" / "model.onnx").is_file()',
        "return True",
        "app zerogpu",
    ),
    Fault(
        "app: on ZeroGPU models are loaded behind the page",
        "app.py",
        "    if ZERO_GPU:\n        load_models()",
        "    if not ZERO_GPU:\n        load_models()",
        "app zerogpu",
    ),
    Fault(
        "app: a doubtful answer looks like any other",
        "app.py",
        "if share < unsure_below and label != UNSURE:",
        "if False:",
        "page doubtful",
    ),
    Fault(
        "app: a photo pasted while another is answered is passed over",
        "app.py",
        '"trigger_mode": "multiple"',
        '"trigger_mode": "once"',
        "page quick_second",
    ),
    Fault(
        "app: softmax over one number",
        "app.py",
        "independent = len(labels) == 1 or",
        "independent =",
        "app single_labels",
    ),
    Fault(
        "app: ONNX with data in other files",
        "app.py",
        "onnx.load_external_data_for_model(model, os.devnull)",
        "pass",
        "app onnx_file",
    ),
    Fault(
        "app: torch is imported",
        "app.py",
        "import numpy as np\n",
        "import numpy as np\nimport torch\n",
        "app without_torch or importing",
    ),
    Fault(
        "app: addresses inside a network are fetched",
        "app.py",
        "transport = AsyncSecureTransport(await async_validate_url(httpx.URL(address).host))",
        "transport = None",
        "http no_address_inside or public",
    ),
    Fault(
        "app: addresses are fetched without a limit",
        "app.py",
        "if len(content) > MAX_FILE:",
        "if False:",
        "http public",
    ),
    Fault(
        "app: gradio fetches addresses itself",
        "app.py",
        'path = path if path.startswith(str(UPLOADS)) else ADDRESS + quote(path, safe="")',
        "pass",
        "http no_address_inside",
    ),
    Fault(
        "app: everybody may wait",
        "app.py",
        "if len(IN_LANE) >= MAX_WAITING + CORES or demo",
        "if demo",
        "http so_many",
    ),
    Fault(
        "app: who has left is answered",
        "app.py",
        "            answered.cancel()\n",
        "",
        "http leaves_frees",
    ),
    Fault(
        "app: a malformed form is a fault of the server",
        "app.py",
        "isinstance(error, RequestValidationError) else 400",
        "isinstance(error, RequestValidationError) else 500",
        "http malformed",
    ),
    Fault(
        "app: headers of the request come back",
        "app.py",
        'if header[0] != b"range"]',
        "if True]",
        "http range",
    ),
    Fault(
        "app: the surest photos first",
        "app.py",
        "in sorted(figures))",
        "in sorted(figures, reverse=True))",
        "page many_photos",
    ),
    Fault(
        "app: photos that browsers cannot show are not shown",
        "app.py",
        "preview = gr.skip() if browsers_show else opened",
        "preview = gr.skip()",
        "page browsers_do_not_know",
    ),
    Fault(
        "app: files without a type are not taken",
        "app.py",
        'if (event.target.type === "file" && odd(event.target.files))',
        "if (false)",
        "page browsers_do_not_know",
    ),
    Fault(
        "app: copies of one name replace each other",
        "app.py",
        "if number > 1 else",
        "if False else",
        "command_line sorted",
    ),
]


def run_tests(folder: Path, file: str, words: str) -> tuple[str, str]:
    """Return the first test in a folder that fails, "" if all pass, and what pytest printed."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "--tb=short", "-rfE", f"tests/test_{file}.py"]
    run = subprocess.run([*command, "-k", words], cwd=folder, capture_output=True, text=True)
    if run.returncode not in (0, 1):
        sys.exit(f"tests/test_{file}.py -k {words!r} cannot be run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    found = re.search(r"(?m)^(?:FAILED|ERROR) \S+?::(.*?)(?: - .*)?$", run.stdout)
    return found[1] if found else "", run.stdout


def copy_scripts(scratch: str) -> Path:
    """Return a new folder with all that the tests need."""
    folder = Path(tempfile.mkdtemp(dir=scratch)) / "kit"
    folder.mkdir()
    for name in ("app.py", "prep.py", "finetune.py", "requirements.txt", "README.md", ".pytest.ini"):
        shutil.copy(ROOT / name, folder)
    for name in ("examples", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def try_fault(fault: Fault, scratch: str) -> str:
    """Return the test that catches a fault, "" if none does."""
    folder = copy_scripts(scratch)
    code = (folder / fault.script).read_text()
    if code.count(fault.code) != 1:
        sys.exit(f"{fault.name}: this stands {code.count(fault.code)} times in {fault.script}, not once: {fault.code}")
    (folder / fault.script).write_text(code.replace(fault.code, fault.instead))
    caught, _ = run_tests(folder, *fault.tests.split(" ", 1))
    shutil.rmtree(folder)
    return caught


def main() -> None:
    """Try the faults, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="try the faults whose names hold this")
    word = parser.parse_args().word
    faults = [fault for fault in FAULTS if word in fault.name]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        words: dict[str, list[str]] = {}
        for fault in faults:
            file, own = fault.tests.split(" ", 1)
            words.setdefault(file, []).append(own)
        folder = copy_scripts(scratch)
        for failed, printed in pool.map(lambda file: run_tests(folder, file, " or ".join(words[file])), words):
            if failed:
                sys.exit(f"{printed}\nWithout any fault, {failed} fails. Mend that first.")
        missed = 0
        for fault, caught in zip(faults, pool.map(lambda fault: try_fault(fault, scratch), faults), strict=True):
            print(f"{fault.name:<55} {caught or 'NOT CAUGHT'}", flush=True)
            missed += not caught
    print(f"{len(faults) - missed} of {len(faults)} faults caught")
    sys.exit(missed)


if __name__ == "__main__":
    main()
