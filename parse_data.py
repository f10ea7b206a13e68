"""Stage 1 of 5: collect the source files of one or more code bases.

Reads   --repo_url                                git repositories (URL, file:// URL, local) or plain folders
Writes  data/kotlin_code_raw.jsonl                {"file_text": str}, one line a file
        data/kotlin_code_raw.provenance.jsonl     where each line came from, line by line
        data/kotlin_code_raw.manifest.json        what was asked for, found, skipped and why

Only the newest tree and only the wanted files cross the wire: a shallow fetch without file contents, then
one batch of the contents that are wanted.  They are read from git's object store: nothing is checked out, so
no symbolic link is followed, no filter or hook runs and line ends are those of the commit.  The clone lives
in a folder that this script makes and removes, whatever happens.

Memory: one file at a time, and about 200 bytes for each path.  Time: about 0.1 ms a file after the fetch.

Run:    python parse_data.py
Quick:  python parse_data.py --repo_url path/to/repository --output_file data/own_raw.jsonl
"""
import argparse
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.errors import PipelineError, shown_path
from pipeline.files import atomic_file, output_lock, sha256_file, sweep_leftovers
from pipeline.manifests import manifest_path, write_manifest
from pipeline.progress import progress
from pipeline.sources.clone import clone_folder
from pipeline.sources.source import Source, decode_source
from pipeline.stage import duration, positive_int, run_stage


def write_source(source: Source, files: Iterator[tuple[str, str, bytes]], args: argparse.Namespace,
                 seen: set[bytes], raw: IO, provenance: IO) -> None:
    """Write a line to `raw` and to `provenance` for each file that can serve; count others in `source`."""
    for path, blob, data in progress(files, desc=source.repository.rsplit("/", 1)[-1], unit=" files"):
        text, reason = decode_source(data, args.max_file_bytes)
        if reason:
            source.skipped.setdefault(reason, []).append(shown_path(path))
            continue
        if bytes.fromhex(blob) in seen:
            source.duplicates.append(shown_path(path))
        seen.add(bytes.fromhex(blob))
        source.kept += 1
        json.dump({"file_text": text}, raw, ensure_ascii=False)
        json.dump({"repository": source.repository, "commit": source.commit, "path": shown_path(path),
                   "blob": blob, "license_file": source.license_file}, provenance, ensure_ascii=False)
        raw.write("\n")
        provenance.write("\n")


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
    # They stand on GitPython: not before it is known to work.
    from pipeline.sources.git import GIT_BINDINGS
    from pipeline.sources.locations import open_source

    for name in GIT_BINDINGS:
        os.environ.pop(name, None)

    output = args.output_file
    if output.is_dir():
        raise PipelineError(f"--output_file {output}: is a folder; name a file")
    provenance_file = output.with_name(f"{output.stem}.provenance.jsonl")
    sources: list[Source] = []
    seen: set[bytes] = set()
    with output_lock(output), clone_folder(args.clone_path) as clone:
        for path in (provenance_file, manifest_path(output)):  # the lock on the raw file is on all three
            sweep_leftovers(path)
        with atomic_file(output) as raw, atomic_file(provenance_file) as provenance:
            for number, location in enumerate(args.repo_url):
                source, files = open_source(location, args, clone / str(number))
                with contextlib.closing(files):
                    write_source(source, files, args, seen, raw, provenance)
                sources.append(source)
                if source.kept == 0:
                    raise PipelineError(f"--repo_url {source.repository}: no usable file ending in "
                                        f"{' or '.join(args.extensions)} (found {source.files}); check "
                                        "--extensions")
            outputs = {}
            for path, file in ((output, raw), (provenance_file, provenance)):
                file.flush()
                outputs[path.name] = sha256_file(Path(file.name))
            # The manifest goes into place first: it describes neither what was there before nor a mixture of
            # two runs, so that a run that is killed before the other two follow is noticed by the next stage.
            write_manifest(manifest_path(output), args, outputs, started,
                           sources=[vars(source) for source in sources], counts=count(sources))
    report(sources, output, started)


def count(sources: list[Source]) -> dict[str, int]:
    """Return {kept, duplicates (kept all the same), skipped: REASON} summed over the sources."""
    total = Counter({"kept": 0, "kept, duplicate of an earlier file": 0})
    for source in sources:
        total["kept"] += source.kept
        total["kept, duplicate of an earlier file"] += len(source.duplicates)
        total.update({f"skipped, {reason}": len(paths) for reason, paths in source.skipped.items() if paths})
    return dict(total)


def report(sources: list[Source], output: Path, started: float) -> None:
    """Print what was found, skipped and written."""
    for source in sources:
        print(f"{source.repository}: commit {source.commit or '(plain folder)'}, "
              f"{source.received_bytes / 1e6:.1f} MB received, licence "
              f"{source.license_file or 'NOT FOUND: check that you may use this code'}")
    for name, number in count(sources).items():
        print(f"  {number:>8,} {name}")
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB) in {duration(time.time() - started)}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo_url", nargs="+", default=["https://github.com/JetBrains/kotlin.git"],
                        help="one or more code bases: a URL, a file:// URL, a local git repository (its last "
                             "commit is read, not its working tree) or a plain folder (default: %(default)s)")
    parser.add_argument("--revision", help="branch, tag or commit to read (default: the repository's HEAD)")
    # the interface's path; made with mode 0700, and refused where it exists
    parser.add_argument("--clone_path", type=Path, default=Path("/tmp/kotlin_repo"),  # noqa: S108
                        help="folder for the clone; must not exist, is removed at the end "
                             "(default: %(default)s)")
    parser.add_argument("--extensions", nargs="+", default=[".kt"],
                        help="endings of the wanted files (default: %(default)s)")
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
