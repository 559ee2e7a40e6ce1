"""`harvest completions SHELL`: a script that lets a shell complete commands, their options and the recipes."""

import contextlib
import io
import re
from typing import Annotated, Literal

import tyro


def completions_command(shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional], /) -> None:
    """Print a script that lets a shell complete commands, options and recipes.

    $ harvest completions bash > ~/.local/share/bash-completion/completions/harvest
    $ harvest completions zsh > "${fpath[1]}/_harvest"
    $ harvest completions fish > ~/.config/fish/completions/harvest.fish
    """
    write = {"bash": bash, "zsh": zsh, "fish": fish}[shell]
    print(write(words_of_commands()), end="")


def words_of_commands() -> dict[str, list[str]]:
    """What may follow each command: its options, and the recipes or benchmarks where it takes one."""
    from harvest.cli import COMMANDS
    from harvest.cli.bench import BENCHES
    from harvest.recipes import RECIPES

    found = {}
    for name in COMMANDS:
        asked = {"recipes": [], "train": [[name], [name, "harvest-b16"]]}.get(name, [[name]])
        text = "\n".join(_help_of(words) for words in asked)
        shown = re.sub(r"^\s*(\$|harvest) .*|torchrun .*", "", text, flags=re.M)  # not the examples
        options = dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z0-9]", shown))
        first = {"train": list(RECIPES), "plan": list(RECIPES), "bench": list(BENCHES)}.get(name, [])
        found[name] = [*first, *options]
    return found


def _help_of(words: list[str]) -> str:
    """The help of a command, with every option where the first page has the basic ones alone."""
    from harvest.cli import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*words, "--help"])
        if "--help-all" in text.getvalue():
            main([*words, "--help-all"])
    return text.getvalue()


def bash(words: dict[str, list[str]]) -> str:
    cases = "\n".join(f'    {name}) words="{" ".join(follow)}" ;;' for name, follow in words.items())
    return f"""# completions of harvest for bash
_harvest() {{
  local words="{" ".join(words)}"
  (( COMP_CWORD > 1 )) && case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _harvest harvest
"""


def zsh(words: dict[str, list[str]]) -> str:
    cases = "\n".join(
        f"    {name}) compadd -- {' '.join(follow)}; _files ;;" for name, follow in words.items()
    )
    return f"""#compdef harvest
# completions of harvest for zsh
if (( CURRENT == 2 )); then
  compadd -- {" ".join(words)}
else
  case "$words[2]" in
{cases}
  esac
fi
"""


def fish(words: dict[str, list[str]]) -> str:
    lines = [f"complete -c harvest -n __fish_use_subcommand -a '{' '.join(words)}'"]
    for name, follow in words.items():
        seen = f"complete -c harvest -n '__fish_seen_subcommand_from {name}'"
        if first := [word for word in follow if not word.startswith("--")]:
            lines.append(f"{seen} -a '{' '.join(first)}'")
        lines += [f"{seen} -l {word.removeprefix('--')}" for word in follow if word.startswith("--")]
    return "# completions of harvest for fish\n" + "\n".join(lines) + "\n"
