"""Declarations: the lines at which a function, a class or another named part of a file begins."""
import re
from typing import Any

from pipeline.syntax import extension_of, find_grammar

# Kinds of nodes as the grammars name them, in all languages: `function_declaration`, `class_definition`,
# `impl_item`, `secondary_constructor` ...
DECLARATION = re.compile(r"(?:declaration|definition|_item|_alias|constructor|_object|^method|^class|^mod)$")
# Not entered: a declaration within code is a part of that code, and these hold no others.
CODE = re.compile(r"function|method|constructor|property|field|statement|expression|lambda|comment|import|"
                  r"package|parameter|type")
MOST_DEPTH = 12  # of nodes within nodes; classes within classes rarely go beyond six


def declaration_lines(text: str, path: str | None) -> list[int]:
    """Return the lines, from 0, at which a declaration outside of code begins, sorted; the comments directly
    above it belong to it.  None where its language has no grammar, or it cannot be parsed."""
    grammar = find_grammar(extension_of(path))
    source = text.encode()
    tree = grammar and grammar.parse(source)
    if not tree:
        return []
    lines: set[int] = set()
    _visit(tree.root_node, source, lines, MOST_DEPTH)
    return sorted(lines)


def _visit(node: Any, source: bytes, lines: set[int], depth: int) -> None:
    """Add the lines of the declarations within a node."""
    first, behind = -1, -1  # lines of the comments directly above: the first, and the one below the last
    for child in node.named_children:
        line, begins = child.start_point[0], _begins_line(child, source)
        above = first if line in (behind, behind - 1) else -1
        if "comment" in child.type:
            if begins or above >= 0:
                first, behind = above if above >= 0 else line, child.end_point[0] + 1
            continue
        if DECLARATION.search(child.type) and (begins or above >= 0):
            lines.add(above if above >= 0 else line)
        if depth and not CODE.search(child.type):
            _visit(child, source, lines, depth - 1)
        first, behind = -1, -1


def _begins_line(node: Any, source: bytes) -> bool:
    """Return whether only white space stands before a node on its line."""
    return not source[source.rfind(b"\n", 0, node.start_byte) + 1:node.start_byte].strip()
