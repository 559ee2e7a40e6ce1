"""What stands around the package: Dockerfiles, the release workflow, the site's pages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from harvest.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, *map(str, DOCKERFILES)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "path", [*DOCKERFILES, ROOT / ".github/workflows/release.yml"], ids=lambda path: path.name
)
def test_extras_and_commands_that_are_named_exist(path: Path) -> None:
    text = path.read_text()
    extras = re.findall(r"\.whl\)\[([a-z,]+)\]", text)
    assert extras
    for names in extras:
        assert set(names.split(",")) <= PROJECT["optional-dependencies"].keys()
    entry = re.search(r'ENTRYPOINT \["harvest", "([a-z-]+)"', text)
    assert entry is None or entry[1] in COMMANDS


def test_what_the_package_needs_brings_no_torch() -> None:
    light = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["onnx"]
    assert not [need for need in light if re.match(r"(torch|harvest)", need)]


def test_the_workflow_calls_targets_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = {word for command in commands if command.startswith("make ") for word in command.split()[1:]}
    assert targets and targets <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))


def test_every_page_is_on_the_site() -> None:
    site = (ROOT / "zensical.toml").read_text()
    assert {page.name for page in (ROOT / "docs").glob("*.md")} == set(re.findall(r"[a-z_]+\.md", site))
