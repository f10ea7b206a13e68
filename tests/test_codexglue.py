"""pipeline/evaluation/codexglue.py: CodeXGLUE's text format, its literals, and where a method ends."""
import ast
import random
import sys
import textwrap
import tokenize
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.codexglue import (
    codexglue_prompt,
    codexglue_reference,
    method_end,
    normalize_python,
    plain_body,
    plain_python,
)
from pipeline.evaluation.tasks import fold_white_space

ROOT = Path(__file__).resolve().parents[1]
COMMON = {("STR", "name"), ("STR", "U+002CU+0020"), ("NUM", "0"), ("NUM", "1"), ("STR", "\\n")}
FOLLOWING = ("def next(): pass", "class Next:", "@decorator", "x = 1", '"""text"""',
             "if __name__ == '__main__':", ")", "'open")
Method = tuple[str, str, set[tuple[str, str]]]  # its body, its body as CodeXGLUE writes it, common literals


@pytest.mark.parametrize(("body", "expected"), [
    ("return <NUM_LIT:1>", "return 1"), ("return <NUM_LIT>", "return 0"),
    ("x = '<STR_LIT:name>'", "x = 'name'"), ("x = '<STR_LIT>'", "x = ''"),
    ("x = '<STR_LIT:U+002CU+0020>'", "x = 'U+002CU+0020'"), ("a<EOL>b", "a b"),
    ("if a:<EOL><INDENT>b<EOL><DEDENT>c", "if a: b c"), ("x = '<STR_LIT:a\\n>'", "x = 'a\\n'"),
    ("  a   b\t", "a b"), ("", "")])
def test_reference_is_what_the_evaluator_scores(body: str, expected: str) -> None:
    """References are scored in another form than the published scores were."""
    assert codexglue_reference(body) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("def f(a='<STR_LIT:U+002CU+0020>', b=<NUM_LIT:2>):", "def f(a=', ', b=2):"),
    ("def f(a=<NUM_LIT>):", "def f(a=0):"), ("def f(a,<EOL>b):", "def f(a,\nb):"),
    ("def f(a='<STR_LIT>'):", "def f(a=''):")])
def test_signatures_become_ordinary_python(text: str, expected: str) -> None:
    """The model is asked to go on from text that is not Python."""
    assert plain_python(text) == expected
    ast.parse(plain_python(text) + " pass")


@pytest.mark.parametrize(("body", "expected"), [
    ("return <NUM_LIT:1>", "\n    return 1"),
    ("if a:<EOL><INDENT>b = '<STR_LIT:xU+0020y>'<EOL><DEDENT>c", "\n    if a:\n        b = 'x y'\n    c"),
    ("if a:<EOL><INDENT>if b:<EOL><INDENT>c<EOL><DEDENT><DEDENT>d<EOL>",
     "\n    if a:\n        if b:\n            c\n    d"),
    ("if a:<INDENT>b<DEDENT>c", "\n    if a:\n        b\n    c"), ("f(a,<EOL>b)", "\n    f(a,\n    b)"),
    ("<DEDENT>a", "\n    a"), ("", "")])
def test_body_stands_on_indented_lines(body: str, expected: str) -> None:
    """The loss is taken on text that is not Python, where it says nothing about the model."""
    assert plain_body(body) == expected


@pytest.mark.parametrize("docstring", [
    "Return it.", "", "   ", 'It is "quoted"', 'ends with a quote "', '"', '""', '"""', 'a """ b', '""""',
    "back\\slash", "ends with \\", "\\", "\\\"\"\"", "\\N{nothing} \\x \\u12", "it's", "'''",
    "first\nsecond", "first\n    indented\n  less",
    "first\n\n    third\n", "first\n\ttab", 'a\n"', "a\n\\", "a<EOL>b", "é ☃", "# no comment", "%s {x} $"])
def test_prompt_is_a_well_formed_function(docstring: str) -> None:
    """An odd docstring breaks the prompt, and the model is judged on what follows a syntax error."""
    prompt = codexglue_prompt("def f(self, x=<NUM_LIT:1>):", docstring)
    function = ast.parse(prompt + "\n    pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert (ast.get_docstring(function) or "").split() == plain_python(docstring).split()
    assert len(function.body) == (2 if docstring.strip() else 1)
    assert not prompt.endswith(("\n", " "))


@settings(max_examples=200, deadline=None)
@given(st.text(st.one_of(st.sampled_from('"\\\n \t\'#{'),
                         st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=40))
def test_any_docstring_gives_a_well_formed_prompt(docstring: str) -> None:
    """A docstring that nobody thought of breaks the prompt."""
    function = ast.parse(codexglue_prompt("def f(x)", docstring) + "\n    pass").body[0]
    assert (ast.get_docstring(function) or "").split() == plain_python(docstring).split()


@pytest.mark.parametrize(("code", "expected"), [
    ("x = 1  # why", "x = 1"), ("# only", ""), ("x = '# no comment'", "x = ''"), ("x = 'name'", "x = 'name'"),
    ('x = "name"', 'x = "name"'), ("x = 'other'", "x = ''"), ("x = ', '", "x = 'U+002CU+0020'"),
    ("x = r'other'", "x = r''"), ("x = B'name'", "x = B'name'"), ("x = f'name {y}'", "x = f''"),
    ("'''name'''", "'''name'''"), ("'''a\nb'''", "''''''"), ('"""a "quoted" b"""', '""""""'),
    ("x = 'open", "x = '"),
    ("x = 'open\ny = 1", "x = ' y = 1"), ("x = '''open\ny = 1", "x = '''"), ("x = 'it\\'s'", "x = ''"),
    ("x = '\\n'", "x = '\\n'"), ("x = ''", "x = ''"), ("a + \\\n    b", "a + b"), ("a = 17", "a = 0"),
    ("a = 1 + 0 + 2", "a = 1 + 0 + 0"), ("a1 = b2", "a1 = b2"), ("x = 0xFF", "x = 0"),
    ("x = 1.5e-3", "x = 0"), ("x = .5", "x = 0"), ("x = 1_000", "x = 0"), ("x = 3j", "x = 0"),
    ("x[1:20]", "x[1:0]"), ("x.a1.b", "x.a1.b"), ("f (x)\n\n\n    y", "f (x) y"), ("", ""), ("   \n", ""),
    ("naïve = 'other'", "naïve = ''"), ("x = 'a' 'name'", "x = '' 'name'"), ("xr'name'", "xr'name'")])
def test_predictions_are_normalized_as_references(code: str, expected: str) -> None:
    """A right prediction loses points for a comment or a literal that the references cannot hold."""
    assert normalize_python(code, COMMON) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(st.one_of(st.sampled_from("'\"\\\n #1a.rbf("), st.characters(exclude_categories=["Cs"])),
               max_size=60))
def test_normalization_takes_any_text(code: str) -> None:
    """What a model writes need not be Python: the benchmark crashes, or leaves white space or comments."""
    found = normalize_python(code, COMMON)
    assert found == fold_white_space(found)
    method_end(code)


@pytest.mark.parametrize(("body", "end"), [
    ("\n    return 1\ndef g(): pass", "def"), ("\n    return 1\n\n\nx", "x"),
    ("\n    x = '''\na\n'''\n    y\nz", "z"), ("\n    f(\n1,\n2)\nz", "z"),
    ("\n    x = 1 + \\\n2\nz", "z"), ("\n# comment\n    return\nz", "z"), ("\n    x = ')'\nz", "z"),
    ("\n    x = 'open\nz", "z"), ("\n    x)\nz", "z"), ("\n    # it's (\nz", "z"),
    ("\n    x = '\\''\nz", "z"), ("\n    return 1", None), ("\n    return 1\n", None),
    ("\n    return 1\n\n    ", None), ("\n    x = '''\nz", None), ("\n    f(\nz", None),
    ("\n    x = 1 + \\\nz", None), ("\n# comment", None), ("", None), ("\n", None), (" return 1", None),
    ("return 1", None)])
def test_end_of_a_method(body: str, end: str | None) -> None:
    """Generation stops inside a method (a bracket, a string, a comment at column 0), or never."""
    assert method_end(body) == (None if end is None else body.rindex(end))


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """demo/make_python_benchmark.py, which writes the standard library in CodeXGLUE's form."""
    sys.path.insert(0, str(ROOT / "demo"))
    try:
        import make_python_benchmark
    finally:
        sys.path.remove(str(ROOT / "demo"))
    return make_python_benchmark


@pytest.fixture(scope="module")
def methods(maker: ModuleType) -> list[Method]:
    """Some 600 methods of the standard library."""
    found, counts = [], Counter()
    files = list(maker.source_files())
    random.Random(0).shuffle(files)
    for module, file in files:
        for _, _, _, body in maker.documented_functions(module, file.read_text(encoding="utf-8")):
            try:
                marked, literals = maker.to_codexglue(body)
            except (tokenize.TokenError, IndentationError):
                continue
            if any(kind == "STR" and (">" in text or "\n" in text) for kind, text in literals):
                continue
            counts.update(literals)
            found.append((body, marked))
        if len(found) > 600:
            break
    common = {literal for literal, _ in counts.most_common(80) if literal[1]}
    return [(body, maker.empty_uncommon(marked, common), common) for body, marked in found]


def test_the_same_method_is_scored_100(methods: list[Method]) -> None:
    """A model that writes exactly the reference does not get 100: the two are normalized differently."""
    assert len(methods) > 500
    assert sum("<STR_LIT:" in marked for _, marked, _ in methods) > 30
    assert sum("<STR_LIT>" in marked for _, marked, _ in methods) > 30
    assert sum("#" in body for body, _, _ in methods) > 30
    for body, marked, common in methods:
        assert normalize_python(body, common) == codexglue_reference(marked)


def test_a_method_ends_where_the_next_code_begins(methods: list[Method]) -> None:
    """The prediction loses its own end, or is judged with the function behind it."""
    for number, (code, _, _) in enumerate(methods):
        body = "\n" + textwrap.indent(code.rstrip("\n"), "    ", lambda line: True)
        following = FOLLOWING[number % len(FOLLOWING)]
        assert method_end(f"{body}\n{following}") == len(body) + 1, body
        assert method_end(f"{body}\n\n\n# comment\n{following}") == len(body) + 13, body
        for cut in {random.Random(number).randrange(len(body) + 1) for _ in range(20)} | {len(body)}:
            assert method_end(body[:cut]) is None, body[:cut]


def test_prompt_and_body_are_the_method_of_the_standard_library(maker: ModuleType) -> None:
    """Prompt and reference are no function together, or the reference is scored otherwise than it reads."""
    seen, modules = 0, ("argparse", "calendar", "shlex", "textwrap", "queue")
    for module, file in [pair for pair in maker.source_files() if pair[0] in modules]:
        for _, head, docstring, body in maker.documented_functions(module, file.read_text(encoding="utf-8")):
            marked, literals = maker.to_codexglue(body)
            if any(kind == "STR" and (">" in text or "\n" in text) for kind, text in literals):
                continue
            signature = maker.to_codexglue(head + " pass\n")[0].removesuffix(" pass")
            ast.parse(codexglue_prompt(signature, docstring) + plain_body(marked))
            assert normalize_python(plain_body(marked), set(literals)) == codexglue_reference(marked)
            seen += 1
    assert seen > 40
