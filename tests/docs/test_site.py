"""The site's navigation has every page once, and both languages have the same pages."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import ROOT, pages, text_of
from test_docs import ERRORS, chinese

sys.path.append(str(ROOT / "docsite"))
from generated import pages as generated
from punctuation import halved

PAGES = tuple(page for page in pages() if page.startswith("docs/"))


class Loader(yaml.SafeLoader):
    """Takes tags that call Python as they stand."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def named(nav: Any) -> Iterator[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav if isinstance(nav, list) else nav.values():
            yield from named(item)


NAV = tuple(named(yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)["nav"]))


def test_the_search_parts_chinese_words() -> None:
    """The index has them apart by spaces of no width; what is typed of several words is found by that alone."""
    site = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)
    (search,) = (plugin["search"] for plugin in site["plugins"] if "search" in plugin and not isinstance(plugin, str))
    words = re.split(search["separator"], "优化\u200b器\u200b状态，重切 dp-2")
    assert words == ["优化", "器", "状态", "重切", "dp", "2"]


def test_every_page_is_in_the_navigation() -> None:
    missing = {page.removeprefix("docs/") for page in PAGES} - set(NAV)
    assert not missing, f"enter in nav of mkdocs.yml: {sorted(missing)}"


def test_the_navigation_has_only_pages_that_exist_and_each_once() -> None:
    assert len(set(NAV)) == len(NAV)
    made = generated()
    assert [name for name in NAV if name not in made and not (ROOT / "docs" / name).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if "/zh/" not in page])
def test_every_page_has_its_chinese_twin(page: str) -> None:
    assert (ROOT / chinese(page)).exists()


def test_every_chinese_page_has_its_english_twin() -> None:
    twins = {chinese(page) for page in PAGES}
    assert [page for page in PAGES if "/zh/" in page and page not in twins] == []


@pytest.mark.parametrize("page", [page for page in pages() if "zh" in Path(page).parts or page == "README.zh.md"])
def test_chinese_has_chinese_punctuation(page: str) -> None:
    assert halved(text_of(page)) == [], f"python docsite/punctuation.py {page}"


@pytest.mark.parametrize("page", ["docs/reference/errors.md", "docs/zh/reference/errors.md"])
def test_every_error_has_its_section(page: str) -> None:
    headings = {line.removeprefix("## ").lower() for line in text_of(page).splitlines() if line.startswith("## ")}
    assert headings == set(ERRORS)


def test_pages_made_from_the_program_tell_of_every_command_and_name() -> None:
    made = generated()
    assert "## reshard strategy make" in made["reference/help.md"]
    assert "--dst-strategy P" in made["reference/help.md"]
    assert "## reshard.open" in made["reference/api.md"]
    assert "- `UsageError`: the target is not empty" in made["reference/api.md"]
