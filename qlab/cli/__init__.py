"""The command line: a thin face over the engine. One file a family of commands."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import Any

import typer

from qlab.cli import bench, doctor, lessons, measure, plan, quantize, release, serve, sweep  # noqa: F401  (each adds its commands)
from qlab.cli.app import DEBUG, app, console, interrupt
from qlab.cli.words import readable
from qlab.support.errors import UserError

INTERRUPTED = 130


def main() -> None:
    """The console script: errors that the user can mend are one message and exit code 2, faults of qlab's one message and 1."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a file's name need not be text
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, interrupt)
    os.environ["PYTHONSAFEPATH"] = "1"  # else processes that we start import what lies in the current folder, such as a model's code
    sys.exit(call(sys.argv[1:]))


def call(arguments: list[str]) -> int:
    """Run one command line; the exit code."""
    words, debug = [word for word in arguments if word != DEBUG], DEBUG in arguments
    try:
        code = command_line().main(joined(words), prog_name="qlab", standalone_mode=False) or 0
        if code == INTERRUPTED:  # the option parser catches Ctrl-C itself
            raise KeyboardInterrupt
        return code
    except (UserError, typer.TyperException) as error:
        failure: Exception = error
        message, code = error.format_message() if isinstance(error, typer.TyperException) else str(error), 2
    except (typer.Abort, KeyboardInterrupt):
        console.print("interrupted; nothing is left running. What is finished is kept, and the same command goes on from there")
        return INTERRUPTED
    except Exception as error:
        failure = error
        message, code = unforeseen(error)
    if debug:
        traceback.print_exception(failure)
    console.print("[red]error:[/red] ", end="")
    console.print(readable(message), markup=False, highlight=False)
    return code


@cache  # typer reads the types of every command's parameters for it
def command_line() -> Any:
    """All commands, as the option parser takes them."""
    return typer.main.get_command(app)


def unforeseen(error: Exception) -> tuple[str, int]:
    """What to say of an error that nothing below has put into words, and the exit code."""
    from qlab.support.disk.room import full, no_room
    from qlab.support.memory import no_memory

    file = error.filename if isinstance(error, OSError) else None
    if number := full(error):
        return no_room(number, Path(os.fsdecode(file)) if isinstance(file, (str, bytes)) else None), 2
    if lacking := no_memory(error):
        return lacking, 2
    if isinstance(error, OSError) and error.strerror and file is not None:
        return f"cannot read or write {file}: {error.strerror}. Choose another file or folder", 2
    return fault(error), 1


def fault(error: Exception) -> str:
    """What to say of a failure that is none of the user's: never more than a line of it."""
    happened = (str(error).splitlines() or [""])[0][:300]
    return (
        f"qlab failed, and should have said why ({type(error).__name__}: {happened}). This is a fault of qlab's, or an input that it does "
        f"not know. To see where: the same command with {DEBUG}; please report it"
    )


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
