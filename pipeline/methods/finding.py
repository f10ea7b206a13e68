"""Methods: the functions of a file that have a block as their body, found by the language's grammar."""
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tree_sitter

from pipeline.data.near_duplicates import shingles_of
from pipeline.data.syntax import Grammar, characters_of

MIN_BODY_TOKENS, MAX_BODY_TOKENS = 3, 256  # of the model whose tokenizer counts, the closing brace included
PARSED, ERRORS, TOO_MUCH = "files parsed", "files parsed with errors", "files not parsed, too much work"
NO_GRAMMAR = "files not parsed for methods"
# By language: the function, its body and the comments.  Those of JavaDoc's kind are documentation.  Behind a
# statement, an annotation reads like the beginning of another: `@Name (arguments)`, `@qualified .Name`.
QUERIES = {
    "kotlin": """(function_declaration (function_body (block) @body)) @method
                 (annotated_expression) @annotation
                 (block_comment) @comment""",
    "java": """(method_declaration body: (block) @body) @method
               (block_comment) @comment""",
}
_ANNOTATIONS = re.compile(rb"(?:@[\w.]++(?:\s*+\((?:[^()]|\([^()]*+\))*+\))?\s*+)++")
MAX_ANNOTATION_BYTES = 2000
_queries: dict[str, tree_sitter.Query] = {}  # made once a process, which takes a millisecond


class FoundMethods(NamedTuple):
    """The methods of one file, in the order in which they begin."""
    fate: str  # how the file was parsed: PARSED, ERRORS, TOO_MUCH or NO_GRAMMAR
    # (methods, 4), in characters: where the documentation begins (where there is none, the signature), where
    # the signature begins, where it ends, behind the opening brace, and where the body ends, behind the
    # closing one
    places: np.ndarray = np.zeros((0, 4), dtype=np.int64)
    shingles: tuple[np.ndarray, ...] = ()  # of each, sorted uint32, of signature and body


def find_methods(text: str, grammar: Grammar | None, offsets: np.ndarray,
                 token_ids: np.ndarray) -> FoundMethods:
    """Return the methods of a file whose body has MIN_BODY_TOKENS to MAX_BODY_TOKENS tokens.

    `offsets`: (tokens, 2), where its `token_ids` stand in it.
    Functions within functions are methods too; what did not parse is left out.
    """
    if grammar is None or grammar.name not in QUERIES:
        return FoundMethods(NO_GRAMMAR)
    source = text.encode()
    tree = grammar.parse(source)
    if tree is None:
        return FoundMethods(TOO_MUCH)
    places = np.array(list(method_places(source, tree.root_node, grammar)), dtype=np.int64).reshape(-1, 4)
    places = characters_of(source, places)
    # tokens by where they begin: white space that begins one belongs to it
    first, opened, ended = (np.searchsorted(offsets[:, 0], places[:, column]) for column in (1, 2, 3))
    fits = (ended - opened >= MIN_BODY_TOKENS) & (ended - opened <= MAX_BODY_TOKENS)
    shingles = tuple(shingles_of(token_ids[begin:end])
                     for begin, end in zip(first[fits].tolist(), ended[fits].tolist(), strict=True))
    return FoundMethods(ERRORS if tree.root_node.has_error else PARSED, places[fits], shingles)


def method_places(source: bytes, root: tree_sitter.Node, grammar: Grammar) -> Iterator[tuple[int, ...]]:
    """Yield the rows of `FoundMethods.places` in bytes, of whatever length the body is."""
    if grammar.name not in _queries:
        _queries[grammar.name] = tree_sitter.Query(grammar.language, QUERIES[grammar.name])
    # by the place of the first character behind them that is no white space
    documentation: dict[int, int] = {}
    annotations: dict[int, int] = {}
    found: list[tuple[int, int, int]] = []
    for _, captures in tree_sitter.QueryCursor(_queries[grammar.name]).matches(root):
        if "comment" in captures:
            begin, end = captures["comment"][0].byte_range
            if source.startswith(b"/**", begin) and end - begin > len(b"/**/"):
                documentation[first_behind(source, end)] = begin
            continue
        if "annotation" in captures:
            begin, end = captures["annotation"][0].byte_range
            if _ANNOTATIONS.fullmatch(source[begin:min(end, begin + MAX_ANNOTATION_BYTES)]):
                behind = first_behind(source, end)  # that of the outermost, where one holds another
                annotations[behind] = min(begin, annotations.get(behind, begin))
            continue
        method, body = captures["method"][0], captures["body"][0]
        if method.has_error or source[body.start_byte:body.start_byte + 1] != b"{":
            continue
        found.append((method.start_byte, body.start_byte + 1, body.end_byte))
    for begin, opened, end in sorted(found):
        while begin in annotations:
            begin = annotations[begin]
        yield documentation.get(begin, begin), begin, opened, end


def first_behind(source: bytes, place: int) -> int:
    """Return the place of the first byte from `place` on that is no white space."""
    while source[place:place + 1].isspace():
        place += 1
    return place
