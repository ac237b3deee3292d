"""--report and --html: the page that a command leaves behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from reshard.errors import StorageError, UsageError, reported

if TYPE_CHECKING:
    from reshard.ops.convert import Conversion
    from reshard.ops.observer import Observer
    from reshard.ops.options import Options
    from reshard.planning.bill import Bill
    from reshard.planning.catalog import Catalog
    from reshard.planning.plan import Plan
    from reshard.report.values import Report, ToldRun

_HEAD_NBYTES = 1024


def page_path(name: str) -> Path:
    """Where a page goes, told before the work begins.

    Raises:
        UsageError: no page by its name, or none of ours there; what was named by mistake is not to be overwritten.
        StorageError: it cannot be written there.
    """
    path = Path(name)
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise UsageError(f"{name!r} does not name a page", hint="a file name ending in .html")
    if path.exists() and not _is_report(path):
        raise UsageError("it is there, and no report of reshard's", name, "choose another name for the page")
    folder = next(up for up in path.absolute().parents if up.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError("no report can be written here", str(folder), "choose another folder for it")
    return path


def _is_report(path: Path) -> bool:
    if not path.is_file():  # a pipe would wait for a writer
        return False
    with reported(path), open(path, "rb") as file:
        return b"<title>reshard: " in file.read(_HEAD_NBYTES)


def write_page(path: Path, report: Report) -> None:
    """Write the page, over an older one of the same name."""
    from reshard.report.html import page

    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(report), encoding="utf-8")


def planned(src: str, dst: str | None, options: Options, page: str) -> tuple[Plan, Reporting | None]:
    """The plan of a conversion, and the report of it where a page is asked for."""
    from reshard.ops.convert import opened, plan, plan_from

    if not page:
        return plan(src, dst, options), None
    path = page_path(page)
    source, options = opened(src, options)
    return plan_from(source, dst, options), Reporting(path, source, (src, dst or ""))


class Reporting:
    """The report of one conversion: hears of its progress, and is written at its end. ``paths`` are those of source and
    target, "" for one that has no place yet.
    """

    def __init__(self, page: Path, source: Catalog, paths: tuple[str, str]) -> None:
        self._page = page
        self._source = source
        self._paths = paths

    def listening(self, observer: Observer) -> Observer:
        from reshard.ops.timeline import Timeline

        self._timeline = Timeline(observer)
        return self._timeline

    def write(self, plan: Plan, options: Options, bill: Bill, done: Conversion | None = None) -> None:
        """The page of the plan, and where it was carried out of what was done."""
        from msgspec.structs import replace

        from reshard.report.make import plan_report

        if done:
            plan = replace(plan, warnings=(*plan.warnings, *done.warnings))
        runs = (self._run(done, options),) if done else ()
        write_page(self._page, plan_report(self._source, plan, self._paths, bill, runs))

    def _run(self, done: Conversion, options: Options) -> ToldRun:
        from reshard.report.values import Phase, ToldRun

        phases = (Phase(s.what, s.start_s, s.stop_s, s.slice_s, s.rows()) for s in self._timeline.stretches)
        return ToldRun(
            done.seconds,
            done.read_nbytes,
            done.written_nbytes,
            done.skipped_files,
            done.verified_nbytes,
            options.checksum,
            tuple(phases),
            done.shared_nbytes,
        )
