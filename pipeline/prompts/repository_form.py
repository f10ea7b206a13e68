"""Repository context, snippets of other files before a file: one form for training, benchmark and demo.

Qwen2.5-Coder (arXiv 2409.12186) and StarCoder2 (arXiv 2402.19173) were trained on whole repositories with
tokens of their own: `<|repo_name|>NAME`, a line end, and for each file `<|file_sep|>PATH`, a line end and its
text; in StarCoder2 `<repo_name>NAME<file_sep>PATH` and so on, without the first line end.  Other models get
each path as a comment of its language.
"""
import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.prompts.fim_formats import beginning_of, encode_within
from pipeline.run.errors import PipelineError
from pipeline.run.manifests import taught

MANIFEST_ENTRY = "repository_prompt"  # of an adapter's or a merged model's manifest: the form, as JSON
FEWEST_LINES = 5  # of a snippet that is cut to the tokens that are left; shorter ones are left out
COMMENTS = {("# ", ""): "py pyi rb sh bash zsh r jl pl pm yml yaml toml cmake nim ex exs tcl ps1 mk",
            ("-- ", ""): "lua sql hs elm adb ads vhd vhdl",
            ("; ", ""): "lisp lsp clj cljs cljc el asm s scm rkt", ("% ", ""): "tex erl hrl",
            ("! ", ""): "f f90 f95 f03 f08 for", ("(* ", " *)"): "ml mli", ("/* ", " */"): "c h css",
            ("<!-- ", " -->"): "html xml xhtml vue svg md"}
COMMENT_OF = {extension: marks for marks, extensions in COMMENTS.items() for extension in extensions.split()}
USUAL_COMMENT = ("// ", "")


class Snippet(NamedTuple):
    """A snippet of another file, as it is shown."""
    path: str
    text: str


class RepositoryPrompt(NamedTuple):
    """How snippets and paths are written: the tokens before a repository's name, after it, and before a
    path; all empty: each path as a comment."""
    repository: str = ""
    name_end: str = ""
    file: str = ""

    def describe(self) -> str:
        """Return it in a few words, for reports and settings."""
        return f"tokens {self.repository} {self.file}" if self.file else "paths as comments"


COMMENTED = RepositoryPrompt()
FAMILIES = {"Qwen2.5-Coder": RepositoryPrompt("<|repo_name|>", "\n", "<|file_sep|>"),
            "StarCoder2": RepositoryPrompt("<repo_name>", "", "<file_sep>")}


# Other models have these tokens too, but were never trained with them (SmolLM2 has StarCoder2's); the
# tokenizers of the two families also have FIM tokens.
INFILLING_MARKS = {"Qwen2.5-Coder": "<|fim_prefix|>", "StarCoder2": "<fim_prefix>"}


def prompt_form(tokenizer: Any) -> RepositoryPrompt:
    """Return the form for a model's tokenizer: that of the family whose tokens it has, else COMMENTED."""
    added = tokenizer.get_added_vocab()
    return next((form for family, form in FAMILIES.items()
                 if {form.repository, form.file, INFILLING_MARKS[family]} <= set(added)), COMMENTED)


def form_for(tokenizer: Any, form: RepositoryPrompt) -> RepositoryPrompt:
    """Return `form` if the tokenizer has its tokens, else `prompt_form`, that of the tokenizer's family."""
    known = set(tokenizer.get_added_vocab())
    return form if {form.repository, form.file} - {""} <= known else prompt_form(tokenizer)


def form_of_manifest(manifest: dict[str, Any] | None, tokenizer: Any, where: str) -> RepositoryPrompt | None:
    """Return the form that a model was trained with, from its manifest or its adapter's; None if there is no
    such entry.

    Raises PipelineError if the entry is malformed, or names tokens that the tokenizer does not have.
    """
    entry = taught(manifest, MANIFEST_ENTRY)
    if entry is None:
        return None
    names = RepositoryPrompt._fields
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in names):
        raise PipelineError(f"{where}: the entry {MANIFEST_ENTRY} of its manifest is not one that train.py "
                            "writes; train it again, or delete that entry's manifest")
    form = RepositoryPrompt(*(entry[name] for name in names))
    missing = {form.repository, form.file} - {""} - set(tokenizer.get_added_vocab())
    if missing:
        raise PipelineError(f"{where}: was trained with the tokens {' '.join(sorted(missing))} before "
                            "snippets of a repository, which its tokenizer does not have; name its own "
                            "tokenizer")
    return form


def name_of_repository(source: str | None) -> str:
    """Return a repository's name in a prompt: the last parts of its address, OWNER/NAME of a URL."""
    parts = [part for part in re.split(r"[/:]", re.sub(r"\.git/*$", "", (source or "").strip())) if part]
    return "/".join(parts[-2:] if source and "://" in source and len(parts) > 3 else parts[-1:])


class Prefix(NamedTuple):
    """The repository context of a file, without the tokens that a tokenizer puts before every text."""
    ids: list[int]
    shown: list[Snippet]  # the snippets in it, the best first, as far as there was room


class Prefixes:
    """Composes the repository context of files with a tokenizer: snippets of other files, each after its
    path, and then the file's own path.

    It is composed of token ids, because a form's tokens are never read from text.
    """

    def __init__(self, tokenizer: Any, form: RepositoryPrompt):
        self.tokenizer, self.form = tokenizer, form
        self.beginning = list(beginning_of(tokenizer))
        known = tokenizer.get_added_vocab()
        self.repository_mark, self.file_mark = ([known[token]] if token else []
                                                for token in (form.repository, form.file))

    def before(self, repository: str, path: str | None, snippets: Sequence[Snippet],
               tokens: int) -> Prefix:
        """Return at most `tokens` tokens: as many of the `snippets` (the best first) as fit, the best last,
        and then `path`, that of the file that follows.

        The last snippet that fits may lose lines at its end, and is left out if fewer than FEWEST_LINES
        remain.  Empty if not even the path fits.
        """
        head = [*self.repository_mark, *self._encode([repository + self.form.name_end])[0]] \
            if self.repository_mark else []
        marks = self._encode([self._heading(name) for name in (path, *(each.path for each in snippets))])
        marks = [[*self.file_mark, *ids] for ids in marks]
        texts = self._encode([f"{snippet.text}\n" for snippet in snippets])
        room, parts, shown = tokens - len(head) - len(marks[0]), [], []
        if room < 0:
            return Prefix([], [])
        for snippet, mark, ids in zip(snippets, marks[1:], texts, strict=True):
            if len(mark) + len(ids) > room:
                snippet, ids = self._shortened(snippet, ids, room - len(mark))
            if not ids:
                break
            parts.insert(0, [*mark, *ids])
            shown.append(snippet)
            room -= len(parts[0])
        return Prefix([*head, *itertools.chain(*parts), *marks[0]], shown)

    def prompt(self, prefix: Prefix, ids: Sequence[int]) -> list[int]:
        """Return the token ids of the prefix followed by `ids`, those of a file or its context; the tokens
        that the tokenizer puts before every text come first, once."""
        begins = len(self.beginning)
        ids = ids[begins:] if begins and list(ids[:begins]) == self.beginning else ids
        return [*self.beginning, *prefix.ids, *ids]

    def _heading(self, path: str | None) -> str:
        """Return the line before a file's text, which follows the form's own token."""
        if self.form.file or not path:
            return f"{path or ''}\n"
        begin, end = COMMENT_OF.get(path.rpartition(".")[2].lower(), USUAL_COMMENT)
        return f"{begin}{path}{end}\n"

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return encode_within(self.tokenizer, texts)

    def _shortened(self, snippet: Snippet, ids: list[int], room: int) -> tuple[Snippet, list[int]]:
        """Return the first whole lines of a snippet that fit, and their ids; no ids if too few lines fit."""
        lines = snippet.text.split("\n")
        # about as many as there is room for, and from there down one by one
        number = min(len(lines) - 1, 1 + len(lines) * max(0, room) // len(ids))
        while number >= FEWEST_LINES:
            shorter = Snippet(snippet.path, "\n".join(lines[:number]))
            [ids] = self._encode([f"{shorter.text}\n"])
            if len(ids) <= room:
                return shorter, ids
            number -= 1
        return snippet, []
