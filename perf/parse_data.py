"""Stage 1 compared with `git clone`: bytes received and seconds, on a repository with a history.

Builds a repository of --commits commits with the files of a real corpus, each commit changing some of them,
and other files (which the stage does not want), then collects its .kt files from a git server on this
machine, and from the disk.

--repository measures the stage on your own local repository instead; with --before FOLDER, a checkout of an
earlier version of this project, alternately with that version.

Run:    python perf/parse_data.py
"""
import argparse
import contextlib
import functools
import random
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measure import ROOT, SHARED, Run, alternate, machine, median, run, skip

CORPUS = SHARED / "corpus" / "kotlin_1.3.31+ds1.orig.tar.xz"
FILES = 1500


def git(folder: Path, *arguments: str, stdin: bytes | None = None) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, input=stdin, stdout=subprocess.DEVNULL)


def build_repository(folder: Path, commits: int) -> None:
    """Commit FILES source files and other files beside, then `commits` changes of 5 source files each."""
    generator = random.Random(0)
    with tarfile.open(CORPUS) as archive:
        members = [m for m in archive if m.isfile() and m.name.endswith(".kt")][:FILES]
        contents = [archive.extractfile(member).read() for member in members]
    stream, mark = [b"reset refs/heads/main\n"], 0

    def commit(changes: dict[str, bytes]) -> None:
        nonlocal mark
        mark += 1
        stream.append(b"commit refs/heads/main\nmark :%d\n" % mark)
        stream.append(b"committer t <t@example.invalid> %d +0000\ndata 1\nc\n" % (1e9 + mark))
        for name, data in changes.items():
            stream.append(b"M 100644 inline %s\ndata %d\n%s\n" % (name.encode(), len(data), data))

    names = [f"src/{i % 40}/File{i}.kt" for i in range(len(contents))]
    others = {f"assets/{i}.bin": generator.randbytes(20_000) for i in range(FILES // 3)}
    commit(dict(zip(names, contents, strict=True)) | others)
    for number in range(commits - 1):
        changed = generator.sample(range(len(names)), 5)
        for i in changed:
            contents[i] += b"// change %d\n" % number
        commit({names[i]: contents[i] for i in changed}
               | {f"assets/{number % len(others)}.bin": generator.randbytes(20_000)})
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main", "--bare")
    git(folder, "fast-import", "--quiet", stdin=b"".join(stream))
    git(folder, "config", "uploadpack.allowFilter", "true")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(folder, "repack", "-adq")


def folder_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and "objects" in p.parts)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the repositories below `folder` on loopback; yield the address that their names follow."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    daemon = subprocess.Popen(["git", "daemon", "--export-all", "--listen=127.0.0.1", f"--port={port}",
                               f"--base-path={folder}", str(folder)], start_new_session=True)
    try:
        for _ in range(100):
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield f"git://127.0.0.1:{port}"
    finally:
        daemon.terminate()
        daemon.wait()


def stage(place: str | Path, scratch: Path, project: Path = ROOT) -> Run:
    """Run the stage of a version of this project."""
    return run([sys.executable, project / "parse_data.py", "--repo_url", place, "--clone_path",
                scratch / "clone", "--output_file", scratch / "raw.jsonl"])


def compare_with_clones(args: argparse.Namespace, root: Path) -> None:
    """Print bytes and seconds, compared with those of git clone."""
    build_repository(root / "repository", args.commits)
    received: dict[str, int] = {}

    def counted() -> Run:
        result = stage(url, root)
        received["stage"] = round(1e6 * float(result.output.split(" MB received")[0].rsplit(" ", 1)[1]))
        return result

    def clone(name: str, *options: str) -> Run:
        result = run(["git", "clone", "-q", *options, url, root / "plain"])
        received[name] = folder_bytes(root / "plain")
        shutil.rmtree(root / "plain")
        return result

    with served(root) as address:
        url = f"{address}/repository"
        results = alternate(args.runs, stage=counted, full=lambda: clone("full"),
                            shallow=lambda: clone("shallow", "--depth", "1"),
                            disk=lambda: stage(root / "repository", root))
    seconds = {name: median([r.seconds for r in runs]) for name, runs in results.items()}
    print(machine())
    for other, label in (("full", "git clone"), ("shallow", "git clone --depth 1")):
        print(f"parse_data.py / {label}, {args.commits} commits: "
              f"bytes {received['stage'] / 1e6:.1f} MB / {received[other] / 1e6:.1f} MB = "
              f"{received['stage'] / received[other]:.2f}; seconds {seconds['stage']:.2f} / "
              f"{seconds[other]:.2f} = {seconds['stage'] / seconds[other]:.2f} (whole process, reading "
              "and writing the files included)")
    print(f"parse_data.py of the repository on the disk: {seconds['disk']:.2f} s")


def compare_with_before(args: argparse.Namespace, root: Path) -> None:
    """Print the stage's seconds on --repository, and those of the version before; CPU seconds, including
    git's, are the better measure on a busy machine."""
    versions = {"now": ROOT} | ({"before": args.before} if args.before else {})
    cpu: dict[str, list[float]] = {name: [] for name in versions}

    def measured(name: str) -> Run:
        begun = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = stage(args.repository, root, versions[name])
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu[name].append(ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime)
        return result

    results = alternate(args.runs, **{name: functools.partial(measured, name) for name in versions})
    print(machine())
    for name, runs in results.items():
        print(f"parse_data.py, {name}: {median([r.seconds for r in runs]):.2f} s "
              f"({min(r.seconds for r in runs):.2f} to {max(r.seconds for r in runs):.2f}), "
              f"{median(cpu[name]):.2f} CPU s ({min(cpu[name]):.2f} to {max(cpu[name]):.2f}), peak memory of "
              f"all processes {max(r.peak_bytes for r in runs) / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=400)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repository", type=Path, help="your own, on the disk, instead of the built one")
    parser.add_argument("--before", type=Path, help="checkout of an earlier version, for --repository")
    args = parser.parse_args()
    if not args.repository and not CORPUS.is_file():
        skip(f"{CORPUS.name} is not there; name a --repository")
    with tempfile.TemporaryDirectory() as temporary:
        (compare_with_before if args.repository else compare_with_clones)(args, Path(temporary))


if __name__ == "__main__":
    main()
