"""Repository context for a place, from the files of a folder: complete.py --repository."""
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.hub.client import find_manifest
from pipeline.prompts.prompter import Place
from pipeline.prompts.repository_form import RepositoryPrompt, Snippet, form_of_manifest, prompt_form
from pipeline.retrieval.index import Index, query_of
from pipeline.retrieval.snippet_cache import pieces_needed
from pipeline.run.errors import PipelineError
from pipeline.sources.source import decode_source

LARGEST_FILE = 1_000_000  # bytes
MOST_FILES = 20_000


def read_folder(folder: Path, extension: str) -> list[tuple[str, str]]:
    """Return (path within the folder, text) of its files of an extension, in the order of their paths.

    Hidden folders and links are skipped.  PipelineError if there are no such files, or more than MOST_FILES.
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
    files = [(path.relative_to(folder).as_posix(), text) for path, text in texts if text is not None]
    if not files:
        raise PipelineError(f"--repository {folder}: holds no text file of {extension or 'no ending'}; name "
                            "the folder of the project")
    return files


class Project:
    """A folder whose files give repository context for a place in one of them."""

    def __init__(self, folder: Path, file: Path, before: str, after: str, tokens: int):
        """Retrieve the snippets for the place between `before` and `after` of `file`, once for all models."""
        self.name, self.tokens = folder.resolve().name, tokens
        files = read_folder(folder, file.suffix)
        index, whole = Index(text for _, text in files), before + after
        inside = file.resolve().is_relative_to(folder.resolve())
        self.path = file.resolve().relative_to(folder.resolve()).as_posix() if inside else file.name
        own = [i for i, (path, _) in enumerate(files) if inside and path == self.path]
        without = {*own, *index.kin_of_text(whole), *(other for i in own for other in index.kin(i))}
        self.snippets = [Snippet(files[found.file][0], files[found.file][1][found.begin:found.end])
                         for found in index.best(query_of(before), pieces_needed(tokens), without)]
        print(f"{len(files):,} files of {folder}; snippets of "
              f"{', '.join(dict.fromkeys(snippet.path for snippet in self.snippets)) or 'none of them'}",
              file=sys.stderr)

    def place(self, before: str, after: str) -> Place:
        """Return the place between two texts of the file, with its repository context."""
        return Place(before, after, path=self.path, repository=self.name, snippets=self.snippets)

    @staticmethod
    def form(tokenizer: Any, model: str) -> RepositoryPrompt:
        """Return the form of repository context that a model was trained with, or that of its tokenizer."""
        return form_of_manifest(find_manifest(model), tokenizer, f"model {model}") or prompt_form(tokenizer)
