"""The page of `qlab lab` on a reader's own model: what the lessons will take on it, and what can go wrong."""

from __future__ import annotations

import asyncio
import shlex
from typing import Any

from jupyter_server.base.handlers import JupyterHandler
from markupsafe import Markup
from tornado import web

from qlab.show.site.pages import MARK, Link, page
from qlab.support.errors import UserError
from qlab.support.processes.process import run_isolated
from qlab.workbook.language.spoken import ENGLISH, gettext, spoken
from qlab.workbook.reader.about import lesson_names
from qlab.workbook.reader.workspace import OWN_MODEL

PATIENCE = 600.0  # seconds for a forecast, most of them for the hub


def own_model_page(links: list[Link], asked: str = "", found: dict[str, Any] | None = None, error: str = "", xsrf: str = "") -> str:
    """The page, with the forecast `found` for the model that was `asked` for (qlab.workbook.batch.forecast), or the `error` in its place;
    `xsrf`: the field of its form by which the server knows its own page."""
    content: dict[str, Any] = {"asked": asked, "error": error, "found": found, "action": OWN_MODEL, "wrong": what_can_go_wrong()}
    content |= {"command": command(asked), "assignment": f"model = {asked!r}", "xsrf": Markup(xsrf)}
    return page("model.html.jinja", f"{gettext('Your own model')}{MARK}", links, **content)


def command(model: str) -> str:
    """The command that runs all lessons on a model, in the language that is spoken."""
    language = "" if spoken() == ENGLISH else f" --language {spoken()}"
    return f".venv/bin/qlab run --model {shlex.quote(model)}{language}"


def what_can_go_wrong() -> list[tuple[str, str, str]]:
    """What happens, why, and what to do."""
    return [
        (
            gettext("The hub gives the model only to those who have accepted its licence."),
            gettext("Its owner asks for that: Llama and Gemma, for example."),
            gettext("Accept it on the model's page in a browser, then log in with 'hf auth login'."),
        ),
        (
            gettext("The hub cannot be reached."),
            gettext("There is no network, or a proxy is in the way. Lessons need none: only a model that is not here yet does."),
            gettext("Give a folder or a .gguf file. On another computer 'hf download' fetches a model; copy its folder here."),
        ),
        (
            gettext("The model is too large for the lessons."),
            gettext("They hold it whole, in FP32 or as it is stored, and beside it what a method computes."),
            gettext("Take a smaller model of the same family. 'qlab quantize', which holds one block at a time, can still take this one."),
        ),
        (
            gettext("There are no safetensors files."),
            gettext("The model lies there as pickles, which can run code, or as GGUF alone."),
            gettext("Take another copy of it on the hub, or download the .gguf file and give its path."),
        ),
        (
            gettext("transformers cannot open the model."),
            gettext("Its kind is newer than the library, or its code lies with the model; qlab runs no such code."),
            gettext("Take a model of a kind that the library knows."),
        ),
        (
            gettext("A lesson or a library is left out."),
            gettext("GGUF, AutoAWQ and AutoGPTQ know fewer kinds of models than qlab does."),
            gettext("Nothing: the other lessons and recipes run."),
        ),
        (
            gettext("Groups of 128 do not divide the rows."),
            gettext("The width of the model is no multiple of 128."),
            gettext("Nothing: 64 or 32 are taken, and the lessons say so. Rows that 32 does not divide stay in half precision."),
        ),
        (
            gettext("There is no chat template."),
            gettext("It is a base model, which continues texts."),
            gettext("Nothing, unless you calibrate with conversations: these need a template. Give the variant for instructions then."),
        ),
        (
            gettext("There is no GPU."),
            gettext("None is needed; all lessons run without one."),
            gettext("Take a model of a few hundred million weights. With a GPU, larger ones are quick too."),
        ),
    ]


class OwnModelHandler(JupyterHandler):
    """The page; a form on it asks for a forecast."""

    def initialize(self, links: list[Link]) -> None:
        self.links = links

    @web.authenticated
    def get(self) -> None:
        self.finish(own_model_page(self.links, xsrf=self.xsrf_form_html()))

    @web.authenticated
    async def post(self) -> None:
        asked = self.get_body_argument("model", "").strip()
        found, error = None, ""
        try:
            # In a process of its own: the server keeps none of the libraries that open models.
            found = (await asyncio.to_thread(run_isolated, told, asked, limit=PATIENCE)).value
        except UserError as failure:
            error = str(failure)
        except (OSError, RuntimeError) as failure:  # its process died, or took too long
            error = f"{gettext('There is no forecast:')} {str(failure).splitlines()[0]}"
        self.finish(own_model_page(self.links, asked, found, error, self.xsrf_form_html()))


def told(model: str) -> dict[str, Any]:
    """The forecast for all lessons on a model, as data.

    Raises:
        UserError: a model that cannot be used.
    """
    from qlab.workbook.batch.costs import COSTS
    from qlab.workbook.batch.forecast import forecast
    from qlab.workbook.lesson import quiet

    quiet()
    return forecast([lesson for lesson in lesson_names() if lesson in COSTS], model, {}).as_dict()
