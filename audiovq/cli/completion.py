"""`audiovq completion`: completion of words in a shell."""

import os
from pathlib import Path

from click import Choice, Context, argument, command, echo, pass_context
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@command()
@argument("name", metavar="[bash|zsh|fish]", required=False, type=Choice(SHELLS))
@pass_context
def completion(context: Context, name: str | None) -> None:
    """Print a script that lets a shell complete words. Default: the current shell.

    \b
    bash:  mkdir -p ~/.local/share/bash-completion/completions
           audiovq completion bash > ~/.local/share/bash-completion/completions/audiovq
    zsh:   audiovq completion zsh > "${fpath[1]}/_audiovq"    (or another folder of $fpath)
    fish:  audiovq completion fish > ~/.config/fish/completions/audiovq.fish

    Then open a new shell.
    """
    shell = name or Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(shell) if shell in SHELLS else None
    if kind is None:
        raise ValueError(f"completion: expected one of {', '.join(SHELLS)}, found {shell or 'no $SHELL'}")
    echo(kind(context.find_root().command, {}, "audiovq", "_AUDIOVQ_COMPLETE").source())
