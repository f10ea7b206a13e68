"""Pieces of a folder's files before a place of another: complete.py --repository."""
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.hub.client import find_manifest
from pipeline.prompts.repository_form import Prefix, Prefixes, SourcePiece, form_of_manifest, prompt_form
from pipeline.retrieval.index import Index, query_of
from pipeline.retrieval.snippet_cache import pieces_needed
from pipeline.run.errors import PipelineError
from pipeline.sources.source import decode_source

LARGEST_FILE = 1_000_000  # bytes
MOST_FILES = 20_000


def read_folder(folder: Path, extension: str) -> list[tuple[str, str]]:
    """Return (path within the folder, text) of its files of an extension, in the order of their paths.

    Hidden folders and links are passed over.  PipelineError where there are none, or more than MOST_FILES.
    """
    if not folder.is_dir():
        raise PipelineError(f"--repository {folder}: no such folder; check the path")
    paths = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [Path(place) / name for name in sorted(names) if Path(name).suffix == extension]
    paths = [path for path in paths if path.is_file() and not path.is_symlink()]
    if len(paths) > MOST_FILES:
        raise PipelineError(f"--repository {folder}: holds {len(paths):,} files of "
                            f"{extension or 'no ending'}; name a part of it")
    texts = ((path, decode_source(path.read_bytes(), LARGEST_FILE)[0]) for path in paths)
    found = [(path.relative_to(folder).as_posix(), text) for path, text in texts if text is not None]
    if not found:
        raise PipelineError(f"--repository {folder}: holds no text file of {extension or 'no ending'}; name "
                            "the folder of the project")
    return found


class Project:
    """A folder whose files are shown before a place in one of them."""

    def __init__(self, folder: Path, file: Path, before: str, behind: str, tokens: int):
        """Find the pieces for the place between `before` and `behind` of `file`, once for all models."""
        self.name, self.tokens = folder.resolve().name, tokens
        files = read_folder(folder, file.suffix)
        index, whole = Index(text for _, text in files), before + behind
        inside = file.resolve().is_relative_to(folder.resolve())
        self.path = file.resolve().relative_to(folder.resolve()).as_posix() if inside else file.name
        own = [i for i, (path, _) in enumerate(files) if inside and path == self.path]
        without = {*own, *index.kin_of_text(whole), *(kin for i in own for kin in index.kin(i))}
        self.pieces = [SourcePiece(files[place.file][0], files[place.file][1][place.begin:place.end])
                       for place in index.best(query_of(before), pieces_needed(tokens), without)]
        print(f"{len(files):,} files of {folder}; pieces of "
              f"{', '.join(dict.fromkeys(piece.path for piece in self.pieces)) or 'none of them'}",
              file=sys.stderr)

    def prompt(self, tokenizer: Any, model: str, ids: list[int]) -> tuple[list[int], Prefix]:
        """Return the prompt `ids` behind as many pieces as have room, in the form that the model was taught
        in, or its tokenizer's, and what stands before it."""
        form = form_of_manifest(find_manifest(model), tokenizer, f"model {model}") or prompt_form(tokenizer)
        prefixes = Prefixes(tokenizer, form)
        prefix = prefixes.before(self.name, self.path, self.pieces, self.tokens)
        return prefixes.prompt(prefix, ids), prefix
