"""The syntactic units of a file that are taught as middles: its statements, bodies and blocks."""
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.data.syntax import characters_of, extension_of, find_grammar, missing_grammar
from pipeline.fim.spans import MIDDLE_CHARACTERS, Span

# Nodes whose children are statements, entries or members, as the grammars of many languages name them.
CONTAINER = re.compile(r".*(block|body|statements|suite|lambda_literal|"
                       r"(statement|declaration|variant|enumerator)_list)|(compound|body)_statement|when_expression|"
                       r"source_file|program|module|translation_unit|compilation_unit")
NO_UNIT = re.compile(r".*(comment|import|package|modifiers|shebang).*")  # children that are no statements
FUNCTION = re.compile(r".*(function|method).*")


class UnitFinder:
    """Finds the units of files by the grammars of their languages; remembers those that are missing."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}  # a line for the user, by extension

    def __call__(self, text: str, path: str | None) -> list[Span] | None:
        """Return where the units of a file lie, in characters; None where its language has no grammar.

        Parts that do not parse are left out.  Time: about 2 microseconds a node of the syntax tree.
        """
        extension = extension_of(path)
        grammar = find_grammar(extension)
        if grammar is None:
            left_out = "the middles of such files are whole lines and rests of lines"
            self.missing.setdefault(extension, missing_grammar(extension, left_out))
            return None
        source = text.encode(errors="replace")  # of a lone surrogate one character, as it is one
        tree = grammar.parse(source)
        if tree is None:
            return []
        return in_characters(sorted(set(_units(tree.root_node, source))), source)


def declarations_of(text: str, path: str | None) -> list[Span]:
    """Return where the bodies of a file's top-level declarations lie, in characters: from behind the opening
    brace to behind the closing one, which is their end.  Functions are left out, which are methods
    (pipeline/methods/finding.py), and what does not parse or holds nothing; without a grammar, all."""
    grammar = find_grammar(extension_of(path))
    source = text.encode(errors="replace")
    tree = grammar and grammar.parse(source)
    if tree is None:
        return []
    spans = [(body.start_byte + 1, body.end_byte) for node in tree.root_node.named_children
             if (body := _body_of(node, source)) is not None]
    return in_characters(spans, source)


def _body_of(node: Any, source: bytes) -> Any | None:
    """Return the block in braces that ends a declaration, or what stands for one in its grammar; None where
    there is none, or it does not parse."""
    if node.has_error or NO_UNIT.fullmatch(node.type) or FUNCTION.fullmatch(node.type):
        return None
    inner = node
    while inner.named_children and inner.named_children[-1].end_byte == node.end_byte:
        inner = inner.named_children[-1]
        inside = source[inner.start_byte + 1:inner.end_byte - 1]
        if CONTAINER.fullmatch(inner.type) and source[inner.start_byte:inner.start_byte + 1] == b"{":
            return inner if source[inner.end_byte - 1:inner.end_byte] == b"}" and inside.strip() else None
    return None


def in_characters(spans: list[Span], source: bytes) -> list[Span]:
    """Return spans in bytes of UTF-8 as spans in characters."""
    places = characters_of(source, np.array(spans, dtype=np.int64).reshape(-1, 2))
    return [(begin, end) for begin, end in places.tolist()]


def _units(root: Any, source: bytes) -> Iterator[Span]:
    """Yield (begin, end) in bytes of the statements, bodies and blocks below `root`, however deep."""
    most = 4 * MIDDLE_CHARACTERS  # bytes of so many characters
    nodes = [root]
    while nodes:
        node = nodes.pop()
        children = node.named_children
        nodes += children
        if not CONTAINER.fullmatch(node.type):
            continue
        begin, end = node.start_byte, node.end_byte
        if node.parent is not None and end - begin <= most and not node.has_error:
            yield begin, end
            if source[begin:begin + 1] == b"{" and source[end - 1:end] == b"}" and end - begin > 2:
                yield begin + 1, end - 1  # what stands in the braces
        yield from ((child.start_byte, child.end_byte) for child in children
                    if child.end_byte - child.start_byte <= most and not child.has_error
                    and not NO_UNIT.fullmatch(child.type))
