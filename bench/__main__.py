"""`python -m bench`: runs the grid, reports on it, renews the README's table, takes in rows."""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import add, cells, matrix, report, results, table
from fastsft import hardware
from fastsft.errors import FastsftError

INTERRUPTED = 130


def main() -> None:
    """The edge: every error becomes a line with its hint and exit code."""
    asked = parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's `&` lets the first be ignored
        signal.signal(number, signal.default_int_handler)
    try:
        asked.do(asked)
    except FastsftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; go on with --resume", file=sys.stderr)
        sys.exit(INTERRUPTED)


def parser() -> argparse.ArgumentParser:
    """The verbs; each knows what it does."""
    made = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    verbs = made.add_subparsers(required=True, metavar="VERB")

    run = verbs.add_parser("run", help="measure the grid of matrix.yaml")
    run.add_argument("what", choices=["matrix"])
    run.add_argument("--section", choices=["gpu", "cpu"], help="by default what is here")
    run.add_argument("--only", metavar="PATTERN", help="a set, or cells such as '*7b*none*'")
    run.add_argument("--resume", action="store_true", help="pass over what is measured")
    run.add_argument("--minutes", type=float, help="begin no cell that would end later")
    run.add_argument("--vram-cap", type=float, metavar="GIB", help="another cap; 0 for none")
    run.add_argument("--out", type=Path, default=Path("bench"), help="where results/ lies")
    run.add_argument("--list", action="store_true", help="show the cells, run none")
    run.set_defaults(do=_run)

    told = verbs.add_parser("report", help="what the result files say together")
    told.add_argument("--out", type=Path, default=Path("bench"), help="where results/ lies")
    told.set_defaults(do=_report)

    shown = verbs.add_parser("table", help="the README's table")
    shown.add_argument("--write", type=Path, metavar="FILE", help="renew FILE's block")
    shown.set_defaults(do=_table)

    added = verbs.add_parser("add", help="check a file of `fastsft bench --share`, and file it")
    added.add_argument("file", type=Path)
    added.add_argument("--out", type=Path, default=results.FOLDER, help="the results folder")
    added.set_defaults(do=_add)
    return made


def _run(asked: argparse.Namespace) -> None:
    section: cells.Section = asked.section or ("gpu" if hardware.gpu() else "cpu")
    found = cells.only(cells.read(section), asked.only)
    if asked.vram_cap is not None:
        found = [replace(cell, vram_cap_gib=asked.vram_cap or None) for cell in found]
    if asked.list:
        _list(found)
        return
    done = matrix.run(
        found,
        asked.out,
        on=matrix.device(),
        resume=asked.resume,
        minutes=asked.minutes,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    for path in done:
        print(path)


def _list(found: Sequence[cells.Cell]) -> None:
    """Cells in their order, with the minutes until each is done."""
    minutes, group = 0.0, ""
    for cell in found:
        if cell.group != group:
            group = cell.group
            print(f"{group}: {cell.question}")
        minutes += cell.processes * cell.process_s / 60
        print(f"  {minutes:6.1f} min  {cell.id}")


def _report(asked: argparse.Namespace) -> None:
    print(report.write(asked.out / "results", asked.out / "results"), end="")


def _table(asked: argparse.Namespace) -> None:
    if asked.write is None:
        print(table.markdown(), end="")
        return
    text = asked.write.read_text("utf-8")
    asked.write.write_text(table.renewed(text, asked.write.name), "utf-8")


def _add(asked: argparse.Namespace) -> None:
    print(add.add(asked.file, asked.out))


if __name__ == "__main__":
    main()
