"""Sequences that begin with pieces of the repository's other files: --repository_tokens."""
import argparse
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.data.encoded_examples import EncodedExamples
from pipeline.prompts.contexts import FileTexts, find_cuts
from pipeline.prompts.prompter import Place, Prompter, PromptForms, PromptTokens
from pipeline.prompts.repository_form import (
    MANIFEST_ENTRY,
    Prefix,
    RepositoryPrompt,
    name_of_repository,
    prompt_form,
)
from pipeline.retrieval.index import query_of
from pipeline.retrieval.snippet_cache import RepositoryFiles, Request, cache_of, pieces_needed
from pipeline.run.errors import PipelineError

STREAM = 23  # keeps the choice of sequences apart from other random numbers of the same seed
QUERY_TOKENS = 600  # of a file, decoded to find the lines before a sequence's labels
# Of a file's first sequence, nothing stands before the labels: pieces are looked for with these first tokens,
# as many as other sequences repeat of the one before them.
FIRST_TOKENS = 64


@dataclass
class PieceQueries:
    """Which sequences begin with pieces, and with what these are looked for: filled while files are cut."""
    tokenizer: Any
    fraction: float
    seed: int
    found: dict[int, tuple[int, str]] = field(default_factory=dict)  # by sequence: number of the text, query

    def take(self, sequence: int, text: int, ids: np.ndarray, begin: int, label: int) -> None:
        """Note the query of `sequence`, which are the tokens of `ids` (those of the whole `text`) from
        `begin` and whose labels begin at `label`, where it is chosen."""
        if np.random.default_rng([self.seed, STREAM, sequence]).random() >= self.fraction:
            return
        cut = max(label, begin + FIRST_TOKENS)
        before = self.tokenizer.decode(ids[max(0, cut - QUERY_TOKENS):cut].tolist(), skip_special_tokens=True,
                                       clean_up_tokenization_spaces=False)
        self.found[sequence] = text, query_of(before)


class Pieces:
    """Puts pieces of train before sequences and before validation's contexts."""

    def __init__(self, args: argparse.Namespace, tokenizer: Any, files: Any):
        self.tokens, self.files = args.repository_tokens, files
        self.form: RepositoryPrompt = prompt_form(tokenizer)
        self.prompter = Prompter(tokenizer, PromptTokens(repository=self.tokens),
                                 PromptForms(repository=self.form))
        self.queries = PieceQueries(tokenizer, args.repository_fraction, args.seed)
        self.source = RepositoryFiles(files["train"], args.dataset)
        # a dry run leaves nothing behind
        self.cache = None if args.dry_run else cache_of(args.dataset, args.output_dir)

    def before(self, requests: list[Request], paths: list[str | None]) -> list[Prefix]:
        """Return what stands before each file of `paths`, for a place in it."""
        found = self.source.find(requests, pieces_needed(self.tokens), self.cache)
        return [self.prompter.prefix(Place("", path=path, repository=name_of_repository(request.repository),
                                           snippets=[self.source.piece(place) for place in places]))
                for request, path, places in zip(requests, paths, found, strict=True)]

    def added_to_sequences(self, examples: EncodedExamples,
                           order: np.ndarray) -> tuple[EncodedExamples, int]:
        """Return the sequences with pieces before those that `queries` took, and how many of these have any;
        `order`: the row in train of each text."""
        queries = self.queries.found
        numbers = [number for number in queries if number < len(examples)]
        rows = [int(order[queries[number][0]]) for number in numbers]
        repositories = self.files["train"]["repository"][:]
        prefixes = self.before([Request(repositories[row], queries[number][1], row)
                                for number, row in zip(numbers, rows, strict=True)],
                               [self.source.paths[row] for row in rows])
        with_pieces = sum(bool(prefix.shown) for prefix in prefixes)
        if numbers and not with_pieces:
            raise PipelineError(f"--repository_tokens {self.tokens}: no piece of another file has been found "
                                "for any sequence; give a data set with several files a repository, or more "
                                "tokens, or leave it out")
        return self._prefixed(examples, dict(zip(numbers, prefixes, strict=True))), with_pieces

    def added_to_validation(self, examples: EncodedExamples, rows: dict[str, list]) -> EncodedExamples:
        """Return validation's examples with pieces before their contexts; `rows`: their pairs, as columns,
        which lie in the files."""
        files = self.files["validation"]
        numbers = {line: number for number, line in enumerate(files["source_line"][:])}
        own = [files[numbers[line]] for line in rows["source_line"]]
        cuts = find_cuts(rows, FileTexts(files))
        prefixes = self.before([Request(file["repository"], query_of(cut.before), text=file["text"])
                                for file, cut in zip(own, cuts, strict=True)], [file["path"] for file in own])
        return self._prefixed(examples, dict(enumerate(prefixes)))

    def _prefixed(self, examples: EncodedExamples, prefixes: dict[int, Prefix]) -> EncodedExamples:
        """Return the examples, some with a prefix, which holds no labels."""
        rows, starts = [], []
        for i in range(len(examples)):
            ids = examples.ids[examples.ends[i] - examples.lengths[i]:examples.ends[i]]
            start = int(examples.prompt_lengths[i])
            if i in prefixes and prefixes[i].ids:
                longer = self.prompter.after_prefix(prefixes[i], ids.tolist())
                start += len(longer) - len(ids)
                ids = np.array(longer, dtype=np.int32)
            rows.append(ids)
            starts.append(start)
        return examples.with_rows(rows, starts)

    def described(self) -> dict[str, Any]:
        """Return what a manifest says of the form."""
        return {MANIFEST_ENTRY: self.form._asdict()}
