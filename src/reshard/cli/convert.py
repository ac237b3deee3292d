"""reshard convert, merge and split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reshard.cli.output import say, say_json, warn
from reshard.cli.params import Dst, Src, conversion_options, takes_conversion_options
from reshard.cli.progress import observer, waiting
from reshard.cli.reporting import Reporting, planned
from reshard.cli.text import shown_nbytes, shown_seconds
from reshard.errors import UsageError, counted

if TYPE_CHECKING:
    from reshard.ops.convert import Conversion
    from reshard.ops.options import Options
    from reshard.planning.bill import Bill
    from reshard.planning.plan import Plan


@takes_conversion_options()
def convert(
    src: Src,
    dst: Dst,
    **options: Any,
) -> None:
    """Make any checkpoint into any other: cut, merged, re-cut and renamed in one pass.

    \b
    reshard convert ckpt out --src-strategy old/ --dst-strategy new/     N ranks to M
    reshard convert Qwen3-8B release --to megatron --tp 2 --pp 2
    reshard convert megatron served --dst-names hf --model config.json --with-files
    """
    run(src, dst, options)


@takes_conversion_options(
    "dst_strategy", "ranks", "drop_redundancy", "to", "files", "tp", "pp", "ep", "transformer_impl", "dst_iteration"
)
def merge(
    src: Src,
    dst: Dst,
    **options: Any,
) -> None:
    """Merge the slices of all ranks into one full checkpoint.

    \b
    reshard merge ckpt full.safetensors --src-strategy strategy/
    reshard merge made-by-reshard full.safetensors
    reshard merge ckpt out --src-strategy strategy/ --format safetensors --max-shard-size 5GiB
    """
    run(src, dst, options)


@takes_conversion_options(
    "src_strategy", "max_shard_size", "to", "files", "tp", "pp", "ep", "transformer_impl", "dst_iteration"
)
def split(
    src: Src,
    dst: Dst,
    **options: Any,
) -> None:
    """Cut one full checkpoint into the slices of N ranks.

    \b
    reshard split llama.safetensors out --dst-strategy strategy/
    """
    if not options["dst_strategy"]:
        raise UsageError("split needs --dst-strategy", hint="the strategy of the job that will load the slices")
    run(src, dst, options)


def run(src: str, dst: str, given: dict[str, Any]) -> None:
    options = conversion_options(given)
    with waiting("reading headers", quiet=given["quiet"] or given["json"]):
        made, reporting = planned(src, dst, options, given["report"])
    carry_out(made, dst, options, reporting, **how_told(given))


def how_told(given: dict[str, Any]) -> dict[str, bool]:
    """What ``carry_out`` says, and whether it does more than that."""
    return {name: given[name] for name in ("dry_run", "json", "quiet")}


def carry_out(
    made: Plan,
    dst: str,
    options: Options,
    reporting: Reporting | None = None,
    *,
    dry_run: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Show the bill of a plan, or execute it and say what was done; write the report of either."""
    from reshard.ops.convert import bill_of, execute

    warn(made.warnings)
    if dry_run:
        bill = bill_of(made, dst, options)
        say_json(bill) if json else say("\n".join(bill_lines(bill)))
        if reporting:
            reporting.write(made, options, bill)
        return
    shown = observer(quiet=quiet or json)
    done = execute(made, dst, options, reporting.listening(shown) if reporting else shown)
    if reporting:
        reporting.write(made, options, done.bill, done)
    warn(done.warnings)
    if json:
        say_json(done)
    elif not quiet:
        say("\n".join(summary(done)))
        if options.share and done.missing_files:
            say(f"share {options.share}: {counted(done.missing_files, 'file')} of others still to be made")


def bill_lines(bill: Bill) -> list[str]:
    amplification = bill.read_nbytes / bill.needed_nbytes if bill.needed_nbytes else 1.0
    lines = [
        f"reads    {shown_nbytes(bill.read_nbytes)} of the {shown_nbytes(bill.source_nbytes)} in "
        f"{counted(bill.source_files, 'file')}; {amplification:.2f} × what is needed",
        f"writes   {shown_nbytes(bill.written_nbytes)} to {counted(bill.target_files, 'file')}, "
        f"{shown_nbytes(bill.smallest_file_nbytes)} to {shown_nbytes(bill.largest_file_nbytes)} each",
        f"tensors  {bill.tensors:,}",
        f"memory   {shown_nbytes(bill.memory_nbytes)} at most",
        f"work     {counted(bill.workers, 'worker')}, {counted(bill.tasks, 'read group')}",
    ]
    if bill.shared_nbytes:
        lines.append(f"shares   {shown_nbytes(bill.shared_nbytes)} of them with the source: they take no space")
    if bill.linked_files:
        lines.append(f"links    {bill.linked_files:,} files share the bytes of an equal one")
    lines += [f"dropped  {n:,}: {reason}" for reason, n in bill.dropped.items()]
    lines += [f"absent   {n:,}: {reason}" for reason, n in bill.absent.items()]
    return lines


def summary(done: Conversion) -> list[str]:
    """Three lines: what there is now, what it took, and what is not in it; one more where values did not fit."""
    bill = done.bill
    rate = done.written_nbytes / done.seconds if done.seconds else 0
    shared = f" ({shown_nbytes(done.shared_nbytes)} of them shared with the source)" if done.shared_nbytes else ""
    kept = f", {done.skipped_files} were whole already" if done.skipped_files else ""
    left = [f"{n:,} dropped ({reason})" for reason, n in bill.dropped.items()]
    left += [f"{n:,} absent ({reason})" for reason, n in bill.absent.items()]
    lines = [
        f"{done.target}: {counted(bill.target_files, 'file')} of {counted(bill.tensors, 'tensor')}{kept}",
        f"{shown_nbytes(done.read_nbytes)} read, {shown_nbytes(done.written_nbytes)} written{shared} "
        f"in {shown_seconds(done.seconds)} ({shown_nbytes(rate)}/s)",
    ]
    read_again = f"; verified: {shown_nbytes(done.verified_nbytes)} read again, all as written"
    if done.misfits:
        count = sum(found.infinite + found.nan + found.largest for found in done.misfits)
        lines.append(f"out of range or no numbers: {counted(count, 'value')} of {counted(len(done.misfits), 'tensor')}")
    return [*lines, "left out: " + ("; ".join(left) or "nothing") + (read_again if done.verified_nbytes else "")]
