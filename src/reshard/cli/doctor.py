"""reshard doctor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from reshard.cli.output import say, say_json
from reshard.cli.params import Json
from reshard.cli.text import shown_nbytes
from reshard.errors import counted

if TYPE_CHECKING:
    from reshard.ops.checkup import Checkup
    from reshard.ops.doctor import FolderFacts, Health, Machine


def doctor(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="A checkpoint, or where one shall go. Default: the machine alone."),
    ] = None,
    json: Json = False,
) -> None:
    """Say what this machine and its file systems offer, what is wrong with the checkpoints that lie there, and what
    to do. Exit code 1 where something is wrong.

    \b
    reshard doctor
    reshard doctor /data/ckpt s3://bucket/model
    """
    from reshard.ops.doctor import examine

    found = examine(paths or ())
    if json:
        say_json(found)
    else:
        say("\n".join(lines(found)))
    if found.problems:
        raise typer.Exit(1)


def lines(found: Health) -> list[str]:
    from reshard.ops.doctor import extra_of

    packages = ", ".join(f"{name} {version or 'ABSENT'}" for name, version in found.packages.items())
    extras = (
        f"{name} {v}" if v else f"{name} absent (pip install '{extra_of(name)}')" for name, v in found.extras.items()
    )
    out = [
        f"reshard   {found.reshard}",
        f"python    {found.python}",
        f"packages  {packages or 'not installed: run from a tree'}",
        f"extras    {', '.join(extras)}",
        *_machine(found.machine),
    ]
    for folder in found.folders:
        out += ["", *_folder(folder)]
    for store in found.stores:
        out += ["", store.path, f"  object store, {'does not answer' if store.fault else 'answers'}"]
    for checkpoint in found.checkpoints:
        out += ["", *_checkpoint(checkpoint)]
    return [*out, "", *([f"problem: {problem}" for problem in found.problems] or ["no problem found"])]


def _checkpoint(found: Checkup) -> list[str]:
    notes = [f"  note: {note}" for note in found.notes]
    if not found.family:
        return [f"{found.path}: {'broken' if found.faults else 'nothing to examine'}", *notes]
    files = f"{counted(found.files, 'file')}, {shown_nbytes(found.nbytes)}, {counted(found.tensors, 'tensor')}"
    whole = "not whole" if found.faults else "whole by its headers; values were not read"
    if found.untold and not found.faults:
        whole = "nothing wrong is seen; whether it is whole, cannot tell"
    untold = [f"  cannot tell: {reason}" for reason in found.untold]
    return [f"{found.path}: {found.family}; {files}", f"  {whole}", *untold, *notes]


def _machine(machine: Machine) -> list[str]:
    available, limit = machine.memory_available_nbytes, machine.memory_limit_nbytes
    memory = [shown_nbytes(machine.memory_nbytes)]
    memory += [f"{shown_nbytes(available)} available"] if available is not None else []
    memory += [f"limited to {shown_nbytes(limit)}"] if limit is not None else ["no limit"]
    most = "any number" if machine.most_open_files < 0 else f"{machine.most_open_files:,}"
    return [
        f"system    {machine.system}",
        f"cores     {machine.cores}; {counted(machine.workers, 'worker')} unless --workers says otherwise",
        f"memory    {', '.join(memory)}; pages of {shown_nbytes(machine.page_nbytes)}",
        f"files     {machine.open_files:,} open at once, raised to {most} when needed",
    ]


def _folder(folder: FolderFacts) -> list[str]:
    there = folder.looked_at == os.path.abspath(folder.path) or os.path.lexists(folder.path)
    here = "" if os.path.abspath(folder.path) == folder.looked_at else f" (looked at {folder.looked_at})"
    here = here if there else f"{here}: nothing lies there yet"
    kind = f"{folder.filesystem or 'unknown file system'}, {'network' if folder.network else 'local'}"
    space = f"{shown_nbytes(folder.free_nbytes)} free of {shown_nbytes(folder.nbytes)}"
    if not folder.writable:
        return [f"{folder.path}{here}", f"  {kind}; {space}; not writable: good for a source only"]
    links = {"reflink": "reflinks", "hardlink": "hard links, no reflinks"}.get(folder.links or "", "no links")
    swap = "names change places in one step" if folder.exchanges else "names do not change places in one step"
    return [f"{folder.path}{here}", f"  {kind}; {space}; writable", f"  {links}; {swap}"]
