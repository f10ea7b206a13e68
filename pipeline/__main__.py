"""Show where an output comes from, or publish a folder, such as one whose push failed.

Run:    python -m pipeline lineage results
        python -m pipeline push models/merged OWNER/NAME
"""
import argparse
import re
from pathlib import Path

from pipeline.run.errors import PipelineError
from pipeline.run.lineage import lineage
from pipeline.run.manifests import check_manifest
from pipeline.run.stage import run_stage


def show_lineage(args: argparse.Namespace) -> None:
    """Print where an output comes from, one line per stage; PipelineError if anything has changed since."""
    changes = 0
    for line, change in lineage(args.path):
        print(line, flush=True)
        changes += change
    if changes:
        raise PipelineError(f"{args.path}: {changes} of its stages no longer match what was used; write "
                            "them again, or mention it where you report the result")


def push(args: argparse.Namespace) -> None:
    """Publish a folder in one commit, after comparing it with its manifest."""
    from pipeline.hub.client import check_hub_write, push_folder  # takes 0.25 s, for this command alone

    try:
        pattern = re.compile(args.delete) if args.delete else None
    except re.error as error:
        raise PipelineError(f"--delete {args.delete}: not a regular expression ({error})") from None
    if not args.folder.is_dir():
        raise PipelineError(f"push {args.folder}: no such folder; name what a stage wrote")
    check_hub_write(args.repository, args.repo_type)
    check_manifest(args.folder)
    commit = push_folder(args.folder, args.repository, args.message, args.repo_type, pattern,
                         args.keep_branch, args.public, args.allow_secrets)
    print(f"published {args.repo_type} {args.repository} (commit {commit})")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of both commands."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shown = commands.add_parser("lineage", help="show where a model, data set or table comes from",
                                allow_abbrev=False)
    shown.add_argument("path", type=Path, help="an output of one of the five stages")
    shown.set_defaults(command=show_lineage)
    pushed = commands.add_parser("push", help="publish a folder in one commit", allow_abbrev=False)
    pushed.add_argument("folder", type=Path, help="output folder of a stage")
    pushed.add_argument("repository", help="hub name, OWNER/NAME")
    pushed.add_argument("--repo_type", choices=("model", "dataset"), default="model",
                        help="(default: %(default)s)")
    pushed.add_argument("--message", default="Publish", help="of the commit (default: %(default)s)")
    pushed.add_argument("--delete", metavar="PATTERN", help="also delete the repository's other files whose "
                                                            "name matches this regular expression (default: "
                                                            "none)")
    pushed.add_argument("--keep_branch", help="branch that keeps what is deleted (default: none)")
    pushed.add_argument("--public", action="store_true",
                        help="make a new repository public (default: private)")
    pushed.add_argument("--allow_secrets", action="store_true",
                        help="publish although a text holds private keys or tokens (default: refuse)")
    pushed.set_defaults(command=push)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    command = args.command
    del args.command  # not a setting to be shown
    run_stage(command, args, any_bytes=("path",), prints=command is show_lineage)


if __name__ == "__main__":
    main()
