"""Stage 1 of 5: collect the source files of one or more code bases.

Reads   --repo_url                                git repositories (URL, file:// URL, local) or plain folders
Writes  data/kotlin_code_raw.jsonl                {"file_text": str}, one line per file
        data/kotlin_code_raw.provenance.jsonl     where each line came from, line by line
        data/kotlin_code_raw.manifest.json        settings, what was kept, what was skipped and why

Of a remote repository, only the newest tree and the wanted files are transferred: a shallow fetch without
file contents, then one batch of the wanted contents.  A repository on this disk is read in place.  Both are
read from git's object store: nothing is checked out, so no symbolic link is followed, no filter or hook runs,
and line ends are those of the commit.  The clone is in a folder that this script makes, and removes in any
case.

Memory: one file at a time, and about 200 bytes per path.  Time: about 0.1 ms per file after the fetch.

Run:    python parse_data.py
Quick:  python parse_data.py --repo_url path/to/repository --output_file data/own_raw.jsonl
"""
import argparse
import contextlib
import itertools
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from pipeline.run.errors import PipelineError, shown_path
from pipeline.run.hashes import sha256_file
from pipeline.run.manifests import manifest_path, write_manifest
from pipeline.run.outputs import atomic_file, output_lock, sweep_leftovers
from pipeline.run.progress import progress
from pipeline.run.stage import duration, positive_int, run_stage
from pipeline.sources.clone import clone_folder
from pipeline.sources.source import Request, Source, blob_id, decode_source


def write_source(source: Source, files: Iterator[tuple[str, str, bytes]], args: argparse.Namespace,
                 seen: set[bytes], raw: IO, provenance: IO) -> None:
    """Write a line to `raw` and to `provenance` for each usable file; count the others in `source`."""
    first = list(itertools.islice(files, 1))  # then the source knows how many there are
    for path, blob, data in progress(itertools.chain(first, files), desc=source.repository.rsplit("/", 1)[-1],
                                     total=source.files, unit=" files"):
        text, reason = decode_source(data, args.max_file_bytes)
        if reason:
            source.skip(reason, shown_path(path))
            continue
        name = bytes.fromhex(blob if len(blob) == 40 else blob_id(data))  # SHA-256 names are longer
        if name in seen:
            source.duplicates.append(shown_path(path))
        seen.add(name)
        source.kept += 1
        license_file, license_name = source.license_of(path)
        json.dump({"file_text": text}, raw, ensure_ascii=False)
        json.dump({"repository": source.repository, "commit": source.commit, "path": shown_path(path),
                   "blob": blob, "license_file": license_file, "license": license_name}, provenance,
                  ensure_ascii=False)
        raw.write("\n")
        provenance.write("\n")


def write_with_parts(request: Request, args: argparse.Namespace, open_one: Callable, clone: Path,
                     sources: list[Source], seen: set[bytes], raw: IO, provenance: IO) -> None:
    """Write the code base of a --repo_url, then the clones or submodules in it; add each to `sources`."""
    waiting, first = deque([request]), len(sources)
    requested = set()
    while waiting:
        request = waiting.popleft()
        if (request.location, request.revision, request.folder) in requested:
            continue  # a submodule of two others
        requested.add((request.location, request.revision, request.folder))
        source, files = open_one(request, clone / str(len(sources)))
        with contextlib.closing(files):
            write_source(source, files, args, seen, raw, provenance)
        sources.append(source)
        waiting.extendleft(reversed(source.parts))
    if not sum(source.kept for source in sources[first:]):
        left_out = Counter({reason: len(paths) for source in sources[first:]
                            for reason, paths in source.skipped.items() if paths})
        raise PipelineError(f"--repo_url {sources[first].repository}: no usable file ending in "
                            f"{' or '.join(args.extensions)} (found {sum(s.files for s in sources[first:])}"
                            + "".join(f", {number} {reason}" for reason, number in left_out.items())
                            + "); check --extensions, --include and --exclude")


def parse_data(args: argparse.Namespace) -> None:
    """Collect the files of every --repo_url into --output_file, its provenance and its manifest."""
    started = time.time()
    program = os.environ.get("GIT_PYTHON_GIT_EXECUTABLE")
    if program and os.path.dirname(program):  # git is started in other folders than this one
        os.environ["GIT_PYTHON_GIT_EXECUTABLE"] = os.path.abspath(program)
    try:
        import git  # noqa: F401  # GitPython fails at its import where the git program is missing
    except ImportError as error:
        advice = f"GIT_PYTHON_GIT_EXECUTABLE={program}: correct or unset it" if program else "install git"
        raise PipelineError(f"git cannot be used ({str(error).splitlines()[0]}); {advice}") from None
    # They import GitPython, so only after it is known to work.
    from pipeline.sources.git import GIT_BINDINGS
    from pipeline.sources.locations import open_source, requests_for
    from pipeline.sources.selection import Selection

    for name in GIT_BINDINGS:
        os.environ.pop(name, None)

    output = args.output_file
    if output.is_dir():
        raise PipelineError(f"--output_file {output}: is a folder; name a file")
    provenance_file = output.with_name(f"{output.stem}.provenance.jsonl")
    sources: list[Source] = []
    seen: set[bytes] = set()
    selection = Selection(args)
    with output_lock(output), clone_folder(args.clone_path) as clone:
        for path in (provenance_file, manifest_path(output)):  # the lock on the raw file is on all three
            sweep_leftovers(path)
        with atomic_file(output) as raw, atomic_file(provenance_file) as provenance:
            for request in requests_for(args.repo_url, args.revision):
                write_with_parts(request, args, lambda part, folder: open_source(part, selection, folder),
                                 clone, sources, seen, raw, provenance)
            outputs = {}
            for path, file in ((output, raw), (provenance_file, provenance)):
                file.flush()
                outputs[path.name] = sha256_file(Path(file.name))
            # The manifest goes into place first: it describes neither what was there before nor a mixture of
            # two runs, so that a run that is killed before the other two follow is noticed by the next stage.
            write_manifest(manifest_path(output), args, outputs, started,
                           sources=[source.as_json() for source in sources], counts=count(sources))
    report(sources, output, started, selection.unmatched())


def count(sources: list[Source]) -> dict[str, int]:
    """Return {kept, duplicates (kept too), skipped: REASON} summed over the sources."""
    total = Counter({"kept": 0, "kept, duplicate of an earlier file": 0})
    for source in sources:
        total["kept"] += source.kept
        total["kept, duplicate of an earlier file"] += len(source.duplicates)
        total.update({f"skipped, {reason}": len(paths) for reason, paths in source.skipped.items() if paths})
    return dict(total)


def report(sources: list[Source], output: Path, started: float, unmatched: list[str]) -> None:
    """Print what was found, skipped and written; `unmatched`: patterns that no file matched."""
    for source in sources:
        place = f"{source.repository}{f', folder {source.folder}' if source.folder else ''}"
        print(f"{place}: commit {source.commit or '(plain folder)'}, {source.kept:,} files, "
              f"{source.received_bytes / 1e6:.1f} MB received, licence "
              + (f"{source.license} ({source.license_file})" if source.license_file
                 else "NOT FOUND: check that you may use this code"))
        others = Counter(source.nested_licenses.values())
        if others:
            listed = ", ".join(f"{name} {number}" for name, number in sorted(others.items()))
            print(f"  other licences in its folders: {listed} (nested_licenses in the manifest)")
        if left_out := source.skipped.get("submodule"):
            print(f"  submodules left out: {', '.join(left_out)} (--submodules reads those with an address)")
    for pattern in unmatched:
        print(f"WARNING: {pattern} matched no file")
    for name, number in count(sources).items():
        print(f"  {number:>8,} {name}")
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB) in {duration(time.time() - started)}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo_url", nargs="+", default=["https://github.com/JetBrains/kotlin.git"],
                        help="one or more code bases: a URL, a file:// URL, a local git repository (its last "
                             "commit is read, not its working tree), a plain folder, or one that holds "
                             "clones; each may be followed by @REVISION and #FOLDER (default: "
                             "%(default)s)")
    parser.add_argument("--revision", help="branch, tag or commit to read, where --repo_url names none "
                                           "(default: the repository's HEAD)")
    # the interface's path; made with mode 0700, and refused where it exists
    parser.add_argument("--clone_path", type=Path, default=Path("/tmp/kotlin_repo"),  # noqa: S108
                        help="folder for the clone; must not exist, is removed at the end "
                             "(default: %(default)s)")
    parser.add_argument("--extensions", nargs="+", default=[".kt"],
                        help="endings of the wanted files (default: %(default)s)")
    parser.add_argument("--include", nargs="+", metavar="PATTERN",
                        help="read only paths that match one of these, in .gitignore's syntax, from the root "
                             "of the repository (default: all)")
    parser.add_argument("--exclude", nargs="+", metavar="PATTERN",
                        help="leave out paths that match one of these, e.g. 'testData/' '**/golden/**' "
                             "(default: none)")
    parser.add_argument("--submodules", action="store_true",
                        help="read submodules too, each as a repository of its own (default: name them)")
    parser.add_argument("--licenses", nargs="+", metavar="SPDX",
                        help="refuse code bases, and leave out folders, whose licence is none of these, e.g. "
                             "MIT Apache-2.0 (default: any)")
    parser.add_argument("--max_file_bytes", type=positive_int, default=1_000_000,
                        help="skip larger files, in bytes (default: %(default)s)")
    parser.add_argument("--output_file", type=Path, default=Path("data/kotlin_code_raw.jsonl"),
                        help="the raw file (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(parse_data, build_parser().parse_args(argv),
              any_bytes=("repo_url", "clone_path", "output_file"))


if __name__ == "__main__":
    main()
