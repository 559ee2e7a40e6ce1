import io

import pytest
from rich.console import Console

from harvest.bars import columns
from harvest.progress import bar, say, set_quiet


def test_a_bar_shows_itself_for_work_that_takes_long(capfd: pytest.CaptureFixture[str]) -> None:
    with bar("short work") as progress:
        progress(1, 4)
    assert capfd.readouterr() == ("", "")
    with bar("long work", delay_s=0) as progress:
        progress(3, 4)
    captured = capfd.readouterr()
    assert captured.out == "" and "long work" in captured.err and "3/4" in captured.err
    with bar("work of another rank", quiet=True, delay_s=0) as progress:
        progress(3, 4)
    assert capfd.readouterr() == ("", "")


def test_what_is_said_is_not_markup(capfd: pytest.CaptureFixture[str]) -> None:
    say("[red]as it is[/red]")
    assert capfd.readouterr().err == "[red]as it is[/red]\n"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_counts_and_etas_are_never_cut(width: int) -> None:
    progress = columns()
    progress.add_task(
        "scoring the video model", total=1_400_000, completed=1_200_000, says="loss 1.234 · 1234 clips/s"
    )
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(progress.get_renderable())
    [line] = [line for line in console.export_text().splitlines() if line.strip()]
    assert len(line) <= width and "1200000/1400000" in line and "--:--" in line


def test_a_narrow_bar_as_it_looks() -> None:
    progress = columns()
    progress.add_task(
        "training", total=5220, completed=1400, says="loss 1.234 · 567 clips/s · 12 % waiting for data"
    )
    console = Console(width=80, record=True, file=io.StringIO(), color_system=None)
    console.print(progress.get_renderable())
    assert console.export_text().strip() == (
        "training ━━       1400/5220 --:-- loss 1.234 · 567 clips/s · 12 % waiting for d…"
    )


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harvest.progress._quiet", False)
    set_quiet(True)
    say("a note")
    with bar("work", delay_s=0) as progress:
        progress(1, 2)
    assert capfd.readouterr() == ("", "")
