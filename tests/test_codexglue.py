"""pipeline/tasks/codexglue.py: CodeXGLUE's text format, its literals, and where a method ends."""
import ast
import json
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

from pipeline.tasks.codexglue import (
    codexglue_prompt,
    codexglue_reference,
    codexglue_task,
    common_literals,
    logical_lines,
    method_end,
    normalize_python,
    plain_body,
    plain_python,
)
from pipeline.tasks.task import first_line, fold_white_space

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
    """The prompt is text that is not Python."""
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


@pytest.mark.parametrize(("body", "literals"), [
    ("x = '<STR_LIT:>>'", {("STR", ">")}), ("x = '<STR_LIT:->>', y", {("STR", "->")}),
    ("x = '<STR_LIT:>>' + '<STR_LIT:>'", {("STR", ">"), ("STR", "")}),
    ('x = "<STR_LIT:\\">"', {("STR", '\\"')}), ('x = "<STR_LIT:\'>"', {("STR", "'")}),
    ('"""<STR_LIT:name>"""', {("STR", "name")}), ("'<STR_LIT>' + <NUM_LIT:1>", {("NUM", "1")}),
    ("x = '<STR_LIT>', '<STR_LIT:>'", {("STR", "")}), ("'<STR_LIT:a b>'", {("STR", "a b")}),
    ("x = '<STR_LIT:a><STR_LIT:>>'", {("STR", "a"), ("STR", "")})])
def test_literals_that_the_data_set_kept(body: str, literals: set[tuple[str, str]]) -> None:
    """A literal that the references hold (">" is one) is emptied in a right prediction."""
    assert common_literals([body]) == literals


def test_a_literal_that_is_a_mark_s_end_reads_as_itself() -> None:
    """Reference and prompt lose a ">", or get one more."""
    body = "x = '<STR_LIT:>>' + '<STR_LIT:->>'"
    assert codexglue_reference(body) == plain_python(body) == "x = '>' + '->'"
    assert normalize_python("x = '>' + '->'", common_literals([body])) == codexglue_reference(body)


@pytest.mark.parametrize(("code", "expected"), [
    ('return"zzz"', 'return""'), ("x = 'zzz'if a else'zzz'", "x = ''if a else''"),
    ("x = 1if a else'zzz'", "x = 1if a else''"), ('return"name"', 'return"name"'), ("f(a)or'#'", "f(a)or''"),
    ("print'# zzz'", "print''"), ("return r'zzz'", "return r''")])
def test_a_quote_after_a_word_begins_a_string(code: str, expected: str) -> None:
    """A literal is kept where nobody put a space before it, or a "#" in it ends the line."""
    assert normalize_python(code, COMMON) == expected


@pytest.mark.parametrize(("code", "expected"), [
    ("x = 10L", "x = 10L"), ("x = 0777", "x = 00"), ("x = 0b12", "x = 02"), ("x = 1_", "x = 1_"),
    ("x = 17L", "x = 0L"), ("x = 0xFFl", "x = 0l"), ("x = 1_000.5e-3j", "x = 0"), ("x = 1e5", "x = 0"),
    ("x = 1.", "x = 0"), ("x = 2.real", "x = 0real"), ("x = 0b1", "x = 0"), ("x = 0o17 + 00", "x = 0 + 0"),
    ("x = 1if a else 2", "x = 1if a else 2"), ("x = 1__0", "x = 1__0")])
def test_numbers_end_where_they_end_in_the_data_set(code: str, expected: str) -> None:
    """Python 2's numbers, which a model has seen, are other tokens than in the references."""
    assert normalize_python(code, COMMON | {("NUM", "10"), ("NUM", "2")}) == expected


def test_white_space_in_a_literal_is_folded_before_the_look_up() -> None:
    """A right prediction of a literal with two spaces, a tab or a line end is emptied; the reference's is
    not."""
    common = {("STR", "U+0020"), ("STR", "aU+0020b")}
    for literal in ("  ", " ", "\t", "\u00a0 "):
        assert normalize_python(f'x = "{literal}"', common) == 'x = "U+0020"'
    assert normalize_python("x = '''a\n    b'''", common) == "x = '''aU+0020b'''"
    assert normalize_python("x = ' a  b'", common) == "x = ''"


def test_strings_side_by_side_stay_two() -> None:
    """An emptied string and the quote of the next one become a triple quote: the reference is no Python, and
    a perfect prediction another text."""
    body = 'x = "<STR_LIT>""<STR_LIT:name>"'
    assert codexglue_reference(body) == 'x = "" "name"'
    assert plain_body(body) == '\n    x = "" "name"'
    assert plain_python("def f(a='<STR_LIT>''<STR_LIT:name>'):") == "def f(a='' 'name'):"
    assert normalize_python('x = "other""name"', COMMON) == codexglue_reference(body)
    assert normalize_python(plain_body(body), COMMON) == codexglue_reference(body)
    for right in ("'<STR_LIT>'\"<STR_LIT>\"", "'<STR_LIT:a>''<STR_LIT:b>'", "'<STR_LIT>'.f",
                  "'''<STR_LIT>'''"):
        assert " " not in codexglue_reference(right)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_other_systems(end: str) -> None:
    """A model that has learned CRLF is judged otherwise: a backslash stays, a comment swallows the method, or
    its end is not found."""
    code = end.join(["    x = a + \\", "        b  # why", "    y = 'zzz\\", "zzz'", "    return x"])
    assert normalize_python(code, COMMON) == "x = a + b y = '' return x"
    assert method_end(f"{end}{code}{end}def g(): pass") == len(end + code + end)
    lines = [line for line in logical_lines(f"a + \\{end}b{end}c") if line]
    assert lines == [f"a + \\{end}b", "c"]


@pytest.mark.parametrize(("code", "line"), [
    ("\n    x = '''a\n b'''\n    y", "x = ''''''"), ("\n    x = a + \\\n b\n    y", "x = a + b"),
    ("x = 'a\u2028b'\ny", "x = ''"), ("x = 'a\x0cb'\ny", "x = ''"), ("f(a,\n  b)\ny", "f(a, b)"),
    ("# why (\n\n    x = 1\n", "x = 1"), ("x = '('\ny", "x = ''"), ("x)\ny", "x)"), ("x = 'open\ny", "x = '"),
    ("", ""), ("\n\n", ""), ("x = (1,\n", "x = (1,"), ("x = '''open\ny", "x = '''")])
def test_first_line_is_a_logical_line(code: str, line: str) -> None:
    """The first line of a prediction is cut within a string or an expression: what was never written counts
    as right, or what is right as wrong."""
    assert first_line(code, lambda text: normalize_python(text, COMMON), logical_lines) == line


@pytest.mark.parametrize(("body", "line"), [
    ("x = '''<STR_LIT>'''<EOL>y", "x = ''''''"), ("f(a,<EOL>b)<EOL>y", "f(a, b)"),
    ("if a:<EOL><INDENT>b", "if a:"), ("<INDENT>x = \"<STR_LIT:name>\"<EOL>y", 'x = "name"'),
    ("x = '<STR_LIT:(>'<EOL>y", "x = '('")])
def test_first_line_of_a_reference(body: str, line: str, tmp_path: Path) -> None:
    """References are cut elsewhere than predictions: a perfect model's first line is wrong."""
    row = {"signature": "def f(a):", "docstring": "Do it.", "body": body}
    (tmp_path / "cg.jsonl").write_text(json.dumps(row) + "\n")
    task = codexglue_task(tmp_path / "cg.jsonl", 0, 0)
    assert task.examples[0].first_line == line
    assert first_line(task.examples[0].completion, task.normalize, task.lines) == line


@pytest.mark.parametrize(("body", "expected"), [
    ("<INDENT>a<EOL>b", "\n    a\n    b"),
    ("<INDENT>if a:<EOL><INDENT>b<EOL><DEDENT>c<DEDENT>", "\n    if a:\n        b\n    c"),
    ("<EOL><INDENT>a", "\n    a"), ("<INDENT>a<EOL><DEDENT>b", "\n    a\n    b")])
def test_a_body_that_begins_with_its_own_indentation(body: str, expected: str) -> None:
    """The body stands deeper than its docstring: no Python, and a loss that no model can lower."""
    assert plain_body(body) == expected
    ast.parse(codexglue_prompt("def f(a):", "Do it.") + plain_body(body))


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
    """The prediction loses its own end, or is scored with the function after it."""
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


@pytest.mark.parametrize(("code", "marked"), [
    ('x = """name"""\n', 'x = """<STR_LIT:name>"""'), ("x = r'''a b'''\n", "x = r'''<STR_LIT:aU+0020b>'''"),
    ("x = ''\n", "x = '<STR_LIT:>'"), ('x = """a\n  b"""\n', 'x = """<STR_LIT:aU+0020b>"""'),
    ('x = "a,  b"\n', 'x = "<STR_LIT:aU+002CU+0020b>"'), ("x = '\\''\n", "x = '<STR_LIT:\\'>'"),
    ("x = '>'\n", "x = '<STR_LIT:>>'")])
def test_the_demo_s_benchmark_marks_what_is_within_the_quotes(code: str, marked: str,
                                                              maker: ModuleType) -> None:
    """The demo's references hold a mark that includes quotes: no prediction can equal them."""
    found, literals = maker.to_codexglue(code)
    assert found == marked
    assert maker.empty_uncommon(found, set(literals)) == marked
    assert "_LIT:" not in maker.empty_uncommon(found, set())
    assert normalize_python(code, set(literals)) == codexglue_reference(marked)


def test_methods_with_any_literal_are_scored_100(maker: ModuleType) -> None:
    """Literals over lines, with white space or with ">" are written otherwise in references than in
    predictions."""
    seen = 0
    for module, file in list(maker.source_files())[::2]:
        for _, _, _, body in maker.documented_functions(module, file.read_text(encoding="utf-8")):
            try:
                marked, literals = maker.to_codexglue(body)
            except (tokenize.TokenError, IndentationError):
                continue
            if any(">" in text for _, text in literals) or maker.over_lines(body):
                seen += 1
                for common in (set(literals), set(literals[::2]), set()):
                    kept = maker.empty_uncommon(marked, common)
                    assert normalize_python(body, common) == codexglue_reference(kept)
                    assert common_literals([kept]) <= common
    assert seen > 30
