"""README.md: every command on it works as printed, and its front matter is what a Space needs."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from conftest import ROOT, TOKEN, call, call_tools, running_app, write_photos
from gradio_client import Client, handle_file
from packaging.requirements import Requirement

README = (ROOT / "README.md").read_text()
BLOCKS = [
    (language, re.sub(r"(?m)^   ", "", code)) for language, code in re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
]
COMMANDS = [line.strip() for language, code in BLOCKS if language == "bash" for line in code.splitlines()]


def shell(command: str, folder: Path, **environment) -> subprocess.CompletedProcess:
    """Run a command of the README in a folder, with this Python as `python`."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    home = {"PATH": path, "HOME": str(folder), "HF_ENDPOINT": "http://127.0.0.1:9", "GRADIO_ANALYTICS_ENABLED": "False"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**home, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_prep_finetune_and_the_page_work_as_pasted(scripts, tiny_vit, monkeypatch):
    """The same folder, one command after the other; pretrained weights and teacher wait there, at random.

    The first prep.py, finetune.py, torchrun and accelerate are programs, the others are called in this process.
    """
    write_photos(scripts, each=20)
    shutil.copytree(tiny_vit, scripts / "efficientnet_lite0")
    monkeypatch.chdir(scripts)
    monkeypatch.setenv("TORCH_HOME", str(scripts / ".cache" / "torch"))
    cache = scripts / ".cache/torch/hub/checkpoints"
    cache.mkdir(parents=True)
    for name in ("mobilenet_v3_small", "resnet18"):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        torch.save(torchvision.models.get_model(name).state_dict(), cache / weights.url.rsplit("/", 1)[1])
    commands = [
        command
        for command in COMMANDS
        if re.match(r"(python|torchrun|accelerate) .*(prep|finetune)\.py ", f"{command} ")
    ]
    assert len(commands) >= 5
    colab = next(line for _, code in BLOCKS for line in code.splitlines() if line.startswith("!python kit/"))
    places = {"!python kit/": "python ", "YOU/YOUR-DATASET": "dataset", "/content/drive/MyDrive/": "drive/"}
    for printed, here in places.items():
        assert printed in colab
        colab = colab.replace(printed, here)
    started = set()
    for command in [*commands, colab]:
        if "checkpoints_path" not in command:  # it goes to where the one before went
            shutil.rmtree(scripts / "checkpoints", ignore_errors=True)
        if command.startswith("python prep.py"):
            shutil.rmtree(scripts / "dataset", ignore_errors=True)
        command = re.sub(r"--epochs \d+", "--epochs 1", command)  # the rest as printed
        program, script, arguments = re.match(r"(\w+).*?(\w+\.py) (.*)", command).groups()
        if (program, script) in started:
            result = call(script, *shlex.split(arguments))
        else:
            started.add((program, script))
            result = shell(command, scripts)
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    assert len(started) == 4
    variable, checkpoint = next(c for c in COMMANDS if c.endswith("python app.py") and "=" in c).split()[0].split("=")
    two = "\ntorchrun --nproc_per_node 2 finetune.py"  # which the card says of accelerate, the last one there, too
    assert two in (scripts / checkpoint / "README.md").read_text()
    with running_app(scripts, **{variable: checkpoint}) as url:
        curl = next(code for language, code in BLOCKS if language == "bash" and "curl" in code)
        assert '"label"' in shell(curl.replace("http://127.0.0.1:7860", url), scripts).stdout


@pytest.mark.parametrize(
    ("language", "words", "expected"),
    [
        ("python", "InferenceClient(", "label='Dog', score=0.9"),
        ("python", "Client(", "{'label': 'Cat'"),
        ("bash", "curl", '[{"label":"Neither"'),
    ],
)
def test_the_client_calls_work_as_pasted(app_url, scripts, language, words, expected):
    code = next(code for kind, code in BLOCKS if kind == language and re.search(rf"\b{re.escape(words)}", code))
    code = code.replace("http://127.0.0.1:7860", app_url)
    if language == "python":
        (scripts / "call.py").write_text(code)
        code = "python call.py"
    result = shell(code, scripts)
    assert result.returncode == 0 and expected in result.stdout, result.stderr


def test_agents_find_the_tools_where_it_says(app_url):
    config = json.loads(next(code for language, code in BLOCKS if language == "json"))
    tools, _ = call_tools(config["mcpServers"]["pets"]["url"].replace("http://127.0.0.1:7860", app_url), [])
    assert [tool.name for tool in tools] == ["predict", "predict_batch", "compare", "explain", "models"]


def test_the_page_is_copied_with_another_model(hub, scripts):
    command = next(command for command in COMMANDS if command.startswith("hf repos duplicate"))
    result = shell(command, scripts, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert result.returncode == 0, result.stderr
    assert hub.copies == {"you/your-page": {"MOBILENET_MODEL": "you/your-model"}}


def test_the_page_less_command_works_as_pasted(scripts):
    command = next(command for command in COMMANDS if command.startswith("python app.py "))
    result = shell(command, scripts)
    assert result.returncode == 0 and (scripts / "sorted" / "Dog" / "dog-red.jpg").is_file(), result.stderr
    assert "dog-red.jpg,Dog" in (scripts / "answers.csv").read_text()


def test_the_docstrings_commands_name_flags_that_exist():
    for script in ("prep.py", "finetune.py"):
        text = call(script, "--help").stdout
        commands = re.findall(rf"(?m)^.*python {script} (.*)$", (ROOT / script).read_text() + README)
        assert commands
        for flag in re.findall(r"--\w+", " ".join(commands)):
            assert flag in text, f"{script} {flag}"


def test_the_two_set_up_commands_stand_as_ci_runs_them():
    assert "pip install -r requirements.txt && python app.py" in COMMANDS
    assert "pip install -r requirements.txt -r tests/requirements.txt && pytest" in COMMANDS


def test_the_weekly_look_for_known_flaws_sees_what_is_installed(scripts):
    command = next(command for command in COMMANDS if command.endswith("pip-audit"))
    result = shell(f"{command} --dry-run", scripts)  # it has everything but the answers of the network
    assert result.returncode == 0, result.stderr
    installed = {item.metadata["Name"] for item in distributions()}
    assert int(re.search(r"would have audited (\d+) packages", result.stderr)[1]) >= 0.9 * len(installed)


def test_the_front_matter_suits_a_space_and_the_requirements():
    card = yaml.safe_load(README.split("---")[1])
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    assert len(card["short_description"]) <= 60
    assert (card["python_version"], card["suggested_hardware"], card["license"]) == ("3.12", "cpu-basic", "apache-2.0")
    assert (ROOT / card["thumbnail"]).is_file()
    second, _, files = card["preload_from_hub"][0].partition(" ")
    assert second in card["models"] and f'or "{second}"' in (ROOT / "app.py").read_text()
    assert {"config.json", "model.safetensors"} < set(files.split(","))
    gradio = Requirement(
        next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("gradio"))
    )
    assert card["sdk_version"] in gradio.specifier


def test_it_starts_as_a_space_does(tmp_path):
    """The files of a Space in a folder that may not be written, nothing in the cache, the variables that Spaces set."""
    folder = tmp_path / "app"
    for name in ("app.py", "requirements.txt", "README.md", "examples"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        folder.mkdir(exist_ok=True)
        copy(ROOT / name, folder / name)
    before = {file: file.stat().st_mtime for file in folder.rglob("*")}
    for file in (folder, *before):
        file.chmod(0o555 if file.is_dir() else 0o444)
    home = tmp_path / "home"
    home.mkdir()
    space = {"SPACE_ID": "you/pets", "SPACE_HOST": "you-pets.hf.space", "SYSTEM": "spaces", "HOME": str(home)}
    with running_app(folder, HF_HOME=str(home / ".cache"), PYTHONDONTWRITEBYTECODE="1", **space) as url:
        photo = handle_file(folder / "examples" / "dog-red.jpg")
        assert Client(url, verbose=False).predict(photo, "mobilenet", api_name="/predict")["label"] == "Dog"
    assert {file: file.stat().st_mtime for file in folder.rglob("*")} == before
    for file in (folder, *before):
        file.chmod(0o755)


def test_links_and_pictures_exist_and_nothing_is_too_large_for_a_space():
    for page in (ROOT / "README.md", ROOT / "examples" / "README.md"):
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), link
    for file in [*ROOT.glob("*.*"), *(ROOT / "examples").rglob("*")]:
        assert file.is_dir() or file.stat().st_size < 10_000_000, file


def test_every_shipped_photo_has_its_source_and_licence():
    text = (ROOT / "examples" / "README.md").read_text()
    for file in (ROOT / "examples").glob("*.jpg"):
        row = next(line for line in text.splitlines() if file.name in line)
        assert len([cell for cell in row.strip("|").split("|") if cell.strip()]) == 4
