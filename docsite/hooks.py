"""What the site does beyond MkDocs: pages made from the program, and two languages that do not see each other."""

from __future__ import annotations

import importlib.util
import re
from copy import copy
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

_CHINESE = "中文"
_HAN = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"
_WORKER = "assets/javascripts/worker.js"
_FETCHED = "https://unpkg.com/iframe-worker/shim"
_NAMES = {"en": "English", "zh": _CHINESE}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    spec = importlib.util.spec_from_file_location("generated", Path(__file__).with_name("generated.py"))
    assert spec is not None
    assert spec.loader is not None
    generated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generated)
    for path, text in generated.pages().items():
        files.append(File.generated(config, path, content=text))
    files.append(File.generated(config, _WORKER, content=Path(__file__).with_name("worker.js").read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Chinese has no spaces: a line that goes on in the next does so without one."""
    return re.sub(rf"(?<=[{_HAN}])\n *(?=[{_HAN}])", "", markdown) if _language(page) == "zh" else markdown


def on_page_context(context: dict[str, Any], page: Page, config: Any, nav: Navigation) -> dict[str, Any]:
    """Give a page the words of its language, the navigation of its language, and the way to its twin."""
    language = _language(page)
    config.theme["language"] = language
    config.extra["alternate"] = [{"name": _NAMES[to], "lang": to, "link": _twin(page, to, nav)} for to in _NAMES]
    chinese = next(item for item in nav.items if isinstance(item, Section) and item.title == _CHINESE)
    own = copy(nav)
    own.items = chinese.children if language == "zh" else [item for item in nav.items if item is not chinese]
    own.homepage = next(p for p in nav.pages if p.file.src_uri == ("zh/index.md" if language == "zh" else "index.md"))
    for side in ("previous_page", "next_page"):
        beside = getattr(page, side)
        if beside and _language(beside) != language:
            setattr(page, side, None)
    return {**context, "nav": own}


def on_post_page(output: str, page: Page, config: Any) -> str:
    """The theme would fetch a script from another server. Raises PluginError for whatever else comes from one."""
    output = output.replace(_FETCHED, get_relative_url(_WORKER, page.url))
    if found := re.search(
        r"""(?:src|href)="(https?://[^"]*\.(?:js|css|woff2?|png|svg)|https?://fonts[^"]*)\"""", output
    ):
        raise PluginError(f"{page.file.src_uri} fetches {found[1]}")
    return output


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    return output_content.replace(_FETCHED, f"/{_WORKER}")


def _language(page: Page) -> str:
    return "zh" if page.file.src_uri.startswith("zh/") else "en"


def _twin(page: Page, language: str, nav: Navigation) -> str:
    """Where the page is in a language; the first page where it is not."""
    plain = page.file.src_uri.removeprefix("zh/")
    english = {plain, f"explanation/{plain}"}
    wanted = {f"zh/{plain}", f"zh/{plain.removeprefix('explanation/')}"} if language == "zh" else english
    found = [p.url for p in nav.pages if p.file.src_uri in wanted]
    return found[0] if found else ("zh/index.html" if language == "zh" else "index.html")
