"""The command line: a thin face over the engine. One file a family of commands."""

from __future__ import annotations

import errno
import sys

import typer

from qlab.cli import bench, doctor, fetch, lessons, load, measure, plan, quantize, release, serve  # noqa: F401  (each adds its commands)
from qlab.cli.app import app, console
from qlab.support.errors import UserError

INTERRUPTED = 130


def main() -> None:
    """The console script: errors that the user can mend are one message and exit code 2."""
    sys.exit(call(sys.argv[1:]))


def call(arguments: list[str]) -> int:
    """Run one command line; the exit code."""
    try:
        code = typer.main.get_command(app).main(joined(arguments), prog_name="qlab", standalone_mode=False) or 0
        if code == INTERRUPTED:  # the option parser catches Ctrl-C itself
            raise KeyboardInterrupt
        return code
    except (UserError, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        console.print("[red]error:[/red] ", end="")
        console.print(message, markup=False, highlight=False)
        return 2
    except (typer.Abort, KeyboardInterrupt):
        console.print("interrupted; nothing is left running. What is finished is kept, and the same command goes on from there")
        return INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EEXIST, errno.ENOTDIR):
            raise
        console.print("[red]error:[/red] ", end="")
        console.print(f"cannot write: {error.strerror} ({error.filename}). Make room, or choose another folder", markup=False)
        return 2


def joined(arguments: list[str]) -> list[str]:
    """papermill's `-p name value` as one word, `name=value`, which is what the option parser takes."""
    done, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if word in ("-p", "--parameter") and len(rest) > 1 and "=" not in rest[0]:
            done += [word, f"{rest.pop(0)}={rest.pop(0)}"]
        else:
            done.append(word)
    return done
