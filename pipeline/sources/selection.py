"""Which files of a code base are wanted: by folder, extensions, --include and --exclude."""
import argparse
from typing import NamedTuple

import pathspec

from pipeline.run.errors import PipelineError, shown_path
from pipeline.sources.source import Source

REGULAR_FILE_MODES = ("100644", "100755")  # not 120000, a symbolic link
SUBMODULE_MODE = "160000"


class Entry(NamedTuple):
    """An entry of a git tree; a path that is not UTF-8 has its bytes as surrogate escapes."""
    mode: str
    blob: str  # identifier; of a submodule the commit's
    path: str


class Selection:
    """The paths that the flags select."""

    def __init__(self, args: argparse.Namespace):
        self.extensions = tuple(e if e.startswith(".") else f".{e}" for e in args.extensions)
        self.include = self.patterns("--include", args.include)
        self.exclude = self.patterns("--exclude", args.exclude)
        self.licenses = args.licenses and {name.casefold() for name in args.licenses}
        self.submodules = args.submodules
        self.matched: set[int] = set()  # places in args.exclude

    @staticmethod
    def patterns(flag: str, lines: list[str] | None) -> pathspec.GitIgnoreSpec | None:
        """Return the patterns of a flag, in the syntax of .gitignore; None where there are none."""
        for line in lines or []:
            try:
                pathspec.GitIgnoreSpec.from_lines([line])
            except ValueError as error:
                raise PipelineError(f"{flag} {line}: is no pattern of .gitignore's syntax ({error}); correct "
                                    "it") from None
        return pathspec.GitIgnoreSpec.from_lines(lines) if lines else None

    def refusal(self, path: str) -> str | None:
        """Return why --include and --exclude leave a path out, None where they do not.  As in .gitignore, the
        last pattern that matches decides, and a leading `!` negates it."""
        if self.exclude and (match := self.exclude.check_file(path)).include:
            self.matched.add(match.index)
            return f"--exclude {self.exclude.patterns[match.index].pattern}"
        if self.include and not self.include.match_file(path):
            return "not in --include"
        return None

    def unmatched(self) -> list[str]:
        """Return the patterns of --exclude that no path matched so far, as they would be written."""
        patterns = self.exclude.patterns if self.exclude else []
        return [f"--exclude {pattern.pattern}" for place, pattern in enumerate(patterns)
                if pattern.include and place not in self.matched]

    def choose(self, entries: list[Entry], folder: str, source: Source) -> list[Entry]:
        """Return the entries of wanted files; the others of the wanted extensions are noted in `source`, and
        so are submodules, all of them."""
        prefix, wanted = f"{folder}/" if folder else "", []
        for entry in entries:
            if not entry.path.startswith(prefix):
                continue
            if entry.mode == SUBMODULE_MODE:
                if self.refusal(f"{entry.path}/") in (None, "not in --include"):
                    source.skip("submodule", shown_path(entry.path))
            elif entry.path.endswith(self.extensions):
                reason = self.refusal(entry.path)
                if not reason and entry.mode not in REGULAR_FILE_MODES:
                    reason = "not a regular file"
                if reason:
                    source.skip(reason, shown_path(entry.path))
                else:
                    wanted.append(entry)
        source.folder = shown_path(folder) or None
        return wanted
