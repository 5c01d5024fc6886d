"""What will be, what came out, and what changed between two runs."""

import argparse
from pathlib import Path

from pipeline.cli.command import FILE, FOLDER, Commands, command, completed
from pipeline.errors import ParamsError


def add(commands: Commands) -> None:
    """Add plan, ranking, compare and overview."""
    about = "size every artifact before it is built, from config.json and the weights' headers alone"
    parser = command(commands, "plan", about, _plan)
    about = "hf://org/name, a folder or config.json; default: params.yaml's"
    completed(parser.add_argument("checkpoint", nargs="?", help=about), FILE)
    parser.add_argument("--hardware", default="detect", metavar="NAME", help="in pipeline/hardware.toml, or detect")
    parser.add_argument("--context", type=int, metavar="N", help="tokens of one stream; default: 4096, or the model's")
    parser.add_argument("--concurrency", type=int, metavar="N", help="streams; default: serving.concurrency's largest")
    parser.add_argument("--matrix", action="store_true", help="name the smallest hardware for 1B to 1T models instead")
    about = "default: params.yaml here, else the one that `assay init` writes"
    completed(parser.add_argument("--params", type=Path, metavar="FILE", help=about), FILE)
    parser.add_argument("--json", action="store_true", help="print JSON")
    command(commands, "ranking", "print the ranking of the last run", _ranking)
    about = "tell what changed between two runs: git revisions, DVC experiments or folders with their records"
    parser = command(commands, "compare", about, _compare)
    parser.add_argument("before", nargs="?", default="HEAD", metavar="REV", help="default: HEAD")
    parser.add_argument("after", nargs="?", default=".", metavar="REV", help="default: the workspace")
    completed(parser.add_argument("--html", type=Path, metavar="FILE", help="write a page as well"), FILE)
    parser.add_argument("--all", action="store_true", help="every metric, not the ranking's and selection's alone")
    about = "exit with 13 when something got worse, or also when the figures cannot tell"
    parser.add_argument("--fail-on", choices=("worse", "unclear"), help=about)
    about = "tell of many projects on one page: winners, what they cost, what changed since their last release"
    parser = command(commands, "overview", about, _overview)
    about = "a project, in its workspace or at a revision"
    completed(parser.add_argument("places", nargs="+", metavar="FOLDER[@REV]", help=about), FOLDER)
    about = "write a page, whose table can be sorted, as well"
    completed(parser.add_argument("--html", type=Path, metavar="FILE", help=about), FILE)


def _plan(options: argparse.Namespace) -> None:
    """Run plan."""
    from pipeline.commands import plan, plan_table, project

    for name in ("context", "concurrency"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ParamsError(f"--{name}: {getattr(options, name)} is not positive")
    if options.matrix:
        tiers = plan.matrix(options.context, options.concurrency)
        print(tiers.model_dump_json(indent=2)) if options.json else plan_table.print_matrix(tiers)
        return
    found = plan.plan(
        options.checkpoint,
        on=options.hardware,
        context_tokens=options.context,
        concurrency=options.concurrency,
        path=project.params_path(options.params, options.checkpoint),
    )
    print(found.model_dump_json(indent=2)) if options.json else plan_table.print_plan(found)


def _ranking(_: argparse.Namespace) -> None:
    """Run ranking."""
    from pipeline.report import terminal

    terminal.print_ranking()


def _compare(options: argparse.Namespace) -> None:
    """Run compare: the text to stdout, so that CI may post it; the page to its file."""
    from pipeline.commands import compare

    found = compare.compare(options.before, options.after, everything=options.all)
    print(compare.text(found), end="")
    if options.html is not None:
        compare.write_page(found, options.html)
    if options.fail_on is not None:
        compare.require(found, options.fail_on)


def _overview(options: argparse.Namespace) -> None:
    """Run overview: the text to stdout, the page to its file."""
    from pipeline.commands import overview

    found = overview.overview(options.places)
    print(overview.text(found), end="")
    if options.html is not None:
        overview.write_page(found, options.html)
    overview.require(found)
