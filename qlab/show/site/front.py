"""What `qlab lab` opens: JupyterLab with pages of qlab's own before it, the contents with the reader's progress, glossary and report.

Jupyter's server loads this module as an extension. Its pages ask for the same token as JupyterLab.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jupyter_server.base.handlers import JupyterHandler
from tornado import web

from qlab import ROOT
from qlab.show.site.own_model import OwnModelHandler
from qlab.show.site.pages import MARK, Link, glossary_page, page
from qlab.support.errors import UserError
from qlab.workbook.language.spoken import ENGLISH, gettext, say, spoken
from qlab.workbook.reader.about import every_lesson
from qlab.workbook.reader.progress import read_progress
from qlab.workbook.reader.workspace import CONTENTS, GLOSSARY, OWN_MODEL, WORKSPACE, copies, open_workspace

REPORT = ROOT / "build" / "report"


def links() -> list[Link]:
    """At the top of every page."""
    return [
        Link(f"{CONTENTS}#lessons", gettext("Lessons")),
        Link(OWN_MODEL, gettext("Your own model")),
        Link(f"{CONTENTS}#report", gettext("Report")),
        Link(GLOSSARY, gettext("Glossary")),
        Link("/lab", "JupyterLab"),
    ]


def options(port: int, browser: bool) -> list[str]:
    """How JupyterLab is started: on this machine alone, at the contents page, asking nothing of the network."""
    settings = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.base_url": "/",  # the copies' links lead to it
        "ServerApp.open_browser": browser,
        "ServerApp.allow_root": os.geteuid() == 0,  # root is the usual user of a container
        "ServerApp.root_dir": ROOT,  # the lessons name modules, and the report lies beside them
        "FileContentsManager.preferred_dir": copies(WORKSPACE, spoken()),
        "ServerApp.jpserver_extensions": {__name__: True},
        "LabApp.default_url": CONTENTS,
        "LabApp.app_settings_dir": Path(__file__).parent / "lab",  # no question about news
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def start_page() -> str:
    """The contents: what each lesson shows, how long it takes, what it needs, how far the reader is."""
    changed = "Lesson {number} has changed since your copy was made: '{command}' brings the new one and sets yours aside."
    messages = [say(changed, number=lesson[:2], command=f"{afresh_command()} {lesson[:2]}") for lesson in open_workspace()]
    try:
        progress = read_progress()
    except UserError as error:
        progress, messages = {}, [*messages, str(error)]
    lessons = []
    place = copies(WORKSPACE, spoken()).relative_to(ROOT)
    for lesson in every_lesson():
        kept = progress.get(lesson.lesson, {"right": [], "finished": False})
        right = sum(name in kept["right"] for name in lesson.exercises)
        shown = {
            "lesson": lesson.lesson,
            "number": lesson.number,
            "title": lesson.title,
            "aim": plain(lesson.aim),
            "time": plain(lesson.time),
        }
        state = {"need": plain(lesson.need), "exercises": len(lesson.exercises), "right": right, "finished": kept["finished"]}
        lessons.append(shown | state | {"href": f"/lab/tree/{place}/{lesson.lesson}.ipynb"})
    report = (REPORT / "index.html").exists()
    content: dict[str, Any] = {
        "lessons": lessons, "messages": messages, "report": report, "place": f"{place}/", "afresh": afresh_command(),
        "own_model": OWN_MODEL,
    }  # fmt: skip
    return page("start.html.jinja", f"{gettext('Contents')}{MARK}", links(), **content)


def afresh_command() -> str:
    """The command that brings lessons back in the language that is spoken."""
    return "qlab afresh" if spoken() == ENGLISH else f"qlab afresh --language {spoken()}"


def plain(markdown: str) -> str:
    """A sentence without the signs of Markdown that lessons use in their first lines."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown).replace("`", "").replace("*", "")


class StartHandler(JupyterHandler):
    """The contents page."""

    @web.authenticated
    def get(self) -> None:
        self.finish(start_page())


class GlossaryHandler(JupyterHandler):
    """The glossary."""

    @web.authenticated
    def get(self) -> None:
        self.finish(glossary_page(links()))


class ReportHandler(JupyterHandler, web.StaticFileHandler):
    """The files of the report. Their scripts have an origin of their own and cannot speak to the server, as Jupyter does it with files."""

    @property
    def content_security_policy(self) -> str:
        return f"{super().content_security_policy}; sandbox allow-scripts allow-modals"

    @web.authenticated
    async def get(self, path: str, include_body: bool = True) -> None:  # type: ignore[override]  # the decorator forgets the types
        await web.StaticFileHandler.get(self, path, include_body)


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    return [{"module": __name__}]


def _load_jupyter_server_extension(server: Any) -> None:
    report = {"path": str(REPORT), "default_filename": "index.html"}
    handlers = [
        (CONTENTS, StartHandler), (GLOSSARY, GlossaryHandler), (OWN_MODEL, OwnModelHandler, {"links": links()}),
        (rf"{CONTENTS}report/(.*)", ReportHandler, report),
    ]  # fmt: skip
    server.web_app.add_handlers(".*$", handlers)
