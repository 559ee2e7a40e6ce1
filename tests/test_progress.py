import pytest

from harvest.progress import bar, say


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
