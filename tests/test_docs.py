"""What README and docs say to type can be typed: every command exists and takes the options it is given.

Commands are read out of the files, parsed by the parser that runs them, and stopped there.
"""

from __future__ import annotations

import functools
import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro

from harvest.cli import COMMANDS as HARVEST
from harvest.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
STARTS = ("harvest", "make", "pytest", "python -m experiments.", "python examples/")
EXPERIMENTS = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if p.stem != "__init__")


def commands_of(text: str) -> list[str]:
    """The commands in the code of a page, one a line, without what a shell does around them."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.M | re.S)
    inline = re.findall(r"(?<!`)`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = [line for block in blocks for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()] + inline
    found = []
    for line in lines:
        line = re.sub(r"\s#\s.*", "", line.strip().removeprefix("$ "))
        for part in re.split(r"\s(?:&&|\|)\s", line):
            part = re.sub(r"^([A-Z_]+=\S+ )+", "", part.strip())
            part = re.sub(r"^torchrun .*? -m harvest", "harvest", part)
            if (
                part.startswith(STARTS)
                and " " in part
                and not re.search(r"[…\[\]]|\bNAME\b|\bRECIPE\b|COMMAND", part)
            ):
                found.append(part)
    return found


COMMANDS = sorted(
    {(command, page.name) for page in PAGES if page.is_file() for command in commands_of(page.read_text())}
)


class Parsed(Exception):
    """A command line was understood; what it asks for is not done."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = tyro.cli

    def parse_and_stop(function: Callable[..., object], **settings: object) -> None:
        if not isinstance(function, type):
            given = function
            function = functools.wraps(given)(lambda *_, **__: None)
        parse(function, **settings)  # type: ignore[call-overload]
        raise Parsed

    monkeypatch.setattr(tyro, "cli", parse_and_stop)


@pytest.mark.parametrize(
    ("command", "page"), COMMANDS, ids=[f"{page}: {command}" for command, page in COMMANDS]
)
def test_a_command_can_be_typed(
    command: str,
    page: str,
    parse_only: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = shlex.split(command)
    if words[0] == "harvest":
        if len(words) == 2 and words[1] in HARVEST:  # a name in a sentence
            words.append("--help")
        try:
            code = main(words[1:])
        except Parsed:
            return
        except SystemExit as end:
            code = int(end.code or 0)
        assert code == 0, capsys.readouterr()
    elif words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= targets(), "no such target in the Makefile"
    elif words[0] == "pytest":
        paths = [word.split("::")[0] for word in words[1:] if word.startswith("tests")]
        assert paths and all((ROOT / path).exists() for path in paths)
    elif words[1] == "-m":
        monkeypatch.setattr(sys, "argv", [words[2], *words[3:]])
        monkeypatch.delitem(sys.modules, words[2], raising=False)  # runpy warns of what is imported already
        with pytest.raises((Parsed, SystemExit)) as end:
            runpy.run_module(words[2], run_name="__main__", alter_sys=False)
        assert end.type is Parsed or not end.value.code, capsys.readouterr()
    else:
        assert (ROOT / words[1]).is_file()


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 60 and {page for _, page in COMMANDS} >= {"README.md", "results.md", "search.md"}
    text = "```\nharvest a b   # says\nA=1 torchrun -n 2 -m harvest c \\\n  --d\n```\n and `make test`, `x`"
    assert commands_of(text) == ["harvest a b", "harvest c --d", "make test"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_a_command_that_explains_itself(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"experiments.{name}")
    assert callable(getattr(module, name)), "its command is the function of its name"
    with pytest.raises(SystemExit) as end:
        tyro.cli(getattr(module, name), args=["--help"], config=(tyro.conf.OmitArgPrefixes,))
    assert end.value.code == 0 and len(capsys.readouterr().out.splitlines()) > 5
    pages = " ".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert f"python -m experiments.{name}" in pages, "its command stands beside its figures in docs/"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text() if page.is_file() else ""
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            assert link.startswith(("http", "mailto:")) or (page.parent / link).exists(), (
                f"{page.name}: {link}"
            )


def test_the_map_has_every_room_and_a_reading_path_of_an_hour() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "src" / "harvest"
    listed = set(re.findall(r"^  ([a-z_]+(?:/|\.py)) ", page, flags=re.M)) | set(
        re.findall(r"\b[a-z_]+\.py\b", page)
    )
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    files = {path.name for path in package.glob("[a-z]*.py")}
    assert rooms | files <= listed, "not on the map"
    inner = {path.parent.relative_to(package) for path in package.glob("*/*/__init__.py")}
    assert all(f"{path.name}/" in page for path in inner)
    path = re.findall(r"^\d\. `([\w/.]+)`: ", page, flags=re.M)
    assert len(path) == 8 and sum(len((package / name).read_text().splitlines()) for name in path) <= 1700
    named = re.findall(
        r"`((?:data|model|tokens|objectives|training|evaluation|search|cli)/[a-z_/]+\.py)`", page
    )
    assert named and all((package / name).is_file() for name in named)
