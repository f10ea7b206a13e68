"""pipeline/methods/block_end.py: where a block ends, however its text is split."""
import itertools
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.data.syntax import find_grammar
from pipeline.methods.block_end import BlockEnd, block_end

# what stands in a block before its closing brace
BODIES = [
    "", " return 1 ", " if (a) { b() } else { c { it } } ",
    ' "}" ', ' "\\"}" ', ' "\\\\" ', ' "" ', ' "a" + "" + "}" ', ' "{" ',
    ' "${"}"}" ', ' "${ f { "${g("}")}" } }" ', ' "$a}" ', ' "$" ', ' "\\${" ', ' "$${"}"}" ',
    ' """ } " "" } """ ', ' """${"}"}""" ', ' """""" ', ' """a"""" ', ' """"""" ', ' """\\""" ', ' """$""" ',
    ' """\n}\n""" ', ' $$"""${ } $${"}"} $""" ', ' $$"${ } $${"}"}" ',
    " '}' ", " '\\'' ", " '\"' ", " '\\u007d' ",
    " // } \n ", " // \" \n ", " /* } */ ", " /* /* } */ } */ ", " /**/ ", " /*/ } */ ", " /** } **/ ",
    " a / b ",    " /* // */ ", " // /* \n ", " `}` ", ' "//" ', ' "/*" ', " a // \n/* \n */ ",
    ' val s = """\n  /* $x */ // "\n""".trimIndent() ', " { ", "\n    \"é${\"}\"}\u2028}\"\n",
]
FOLLOWS = ["", " ", "\n\nfun g() { }\n", '"', "}", '""" }']
CLOSED = [body for body in BODIES if body != " { "]


@pytest.mark.parametrize("body", CLOSED)
@pytest.mark.parametrize("follows", FOLLOWS)
def test_a_block_ends_at_its_brace(body: str, follows: str) -> None:
    """A method is cut within a string, or runs on into what follows it in the file."""
    assert block_end(body + "}" + follows) == len(body) + 1


@pytest.mark.parametrize("body", [body for body in CLOSED if "$$" not in body])  # newer than the grammar
def test_the_grammar_agrees(body: str) -> None:
    """The table above is wrong about Kotlin."""
    if body == ' """\\""" ':
        body = ' """\\"""; '
    source = f"fun f() {{{body}}}\n\nfun g() {{ }}\n".encode()
    first = find_grammar(".kt").parse(source).root_node.children[0]
    assert first.type == "function_declaration"
    assert first.end_byte == len(f"fun f() {{{body}}}".encode())


@pytest.mark.parametrize("text", [" { ", ' "} ', ' """ }" ', " /* } ", " // }", ' "${ } ', " '}", " `}", "",
                                  '"', "$", "/"])
def test_a_block_that_is_open_goes_on(text: str) -> None:
    """A method ends at a brace that does not close it."""
    assert block_end(text) is None


@pytest.mark.parametrize(("text", "end"), [
    (' "a\n}', 5), (" 'a\n}", 5), (" `a\n}", 5), (' "a\\\n}', None), (' "${a\n}" }', 10), ("}}", 1)])
def test_what_is_broken_ends_with_its_line(text: str, end: int | None) -> None:
    """One quote too many, which models write, and the method never ends."""
    assert block_end(text) == end


PIECES = st.lists(st.sampled_from(["{", "}", '"', '""', '"""', "$", "${", "$$", "\\", "'", "`", "/", "/*",
                                   "*/", "//", "\n", "a", "é"]), max_size=30).map("".join)


@given(text=PIECES, cuts=st.lists(st.integers(0, 60), max_size=20))
@example(text='$$"""${}$${"""}"}}', cuts=list(range(20)))
@example(text='"""a""""}', cuts=list(range(20)))
def test_the_pieces_do_not_matter(text: str, cuts: list[int]) -> None:
    """Where a method ends depends on how the model's tokens cut it."""
    rule, places = BlockEnd(), sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    ends = [rule.feed(text[a:b]) for a, b in itertools.pairwise(places)]
    # an end of the text leaves undecided what one more character decides
    assert (ends[-1] if ends else None) == block_end(text)
    found = [end for end in ends if end is not None]
    assert len(set(found)) <= 1
    assert not found or text[found[0] - 1] == "}"


@pytest.mark.parametrize("part", ["{", '"', '"""', "$", '"${', "/*", "\\", "'", "/", "a", '"$'])
def test_a_text_that_is_long_takes_no_time(part: str) -> None:
    """A model that repeats itself, or a file on one line, holds up the run."""
    text, rule, begun = part * (200_000 // len(part)), BlockEnd(), time.process_time()
    block_end(text)
    for place in range(0, len(text), 10):
        rule.feed(text[place:place + 10])
    assert time.process_time() - begun < 10  # 0.5 s on an idle machine
    assert len(rule.held) < 10
