"""CodeXGLUE method generation: its text format as ordinary Python, and predictions in its form."""
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from huggingface_hub import hf_hub_download

from pipeline.data.datasets import draw
from pipeline.hub.client import hub_errors
from pipeline.prompts.prompter import Place
from pipeline.run.errors import PipelineError
from pipeline.run.hashes import sha256_file
from pipeline.run.jsonl import read_jsonl
from pipeline.run.outputs import atomic_file
from pipeline.tasks.task import DataSource, Example, StopRule, Task, first_line, fold_white_space

CODEXGLUE_DATASET, CODEXGLUE_FILE = "microsoft/codexglue_method_generation", "test.jsonl"
# a file of another length is a stand-in, and its scores are not published as CodeXGLUE's
CODEXGLUE_EXAMPLES = 20_000
CODEXGLUE_NAME, STAND_IN_NAME = "CodeXGLUE (Python)", "Python stand-in"
PYTHON_SETS = (CODEXGLUE_NAME, STAND_IN_NAME)
CODEXGLUE_FIELDS = {"signature": str, "docstring": str, "body": str}
CODEXGLUE_MAX_NEW_TOKENS = 256  # the budget of the benchmark's own run
# of prompts, references and the stop rule: predictions made under another one are not reused
TEXT_FORMAT = "2"
INDENT = "    "
# The text of a string may hold ">": its mark ends where the string's own quotes follow.
_LITERAL = re.compile(r"""
    (?P<quote>\"\"\"|'''|["'])<STR_LIT(?::(?P<string>(?:(?!<(?:STR|NUM|CHAR)_LIT)\S)*?))?>(?P=quote)
  | <(?P<kind>STR|NUM|CHAR)_LIT(?::(?P<text>.*?))?>
""", re.VERBOSE | re.DOTALL)
_LAYOUT = re.compile(r"<(EOL|INDENT|DEDENT)>")
_UNPRINTABLE = {"U+0020": " ", "U+002C": ","}  # how the data set writes a space and a comma inside a literal


def codexglue_reference(body: str) -> str:
    """Return a body of the data set as its evaluator scores it: literals filled in, white space folded."""
    body = body.replace("<EOL>", "\n").replace("<INDENT>", " ").replace("<DEDENT>", " ")
    return fold_white_space(_LITERAL.sub(_literal_text, body))


def _literal_text(match: re.Match, spell: Callable[[str], str] = str) -> str:
    """Return the text that a mark stands for, with the quotes around it; `spell` writes its content."""
    if match["quote"] is None:
        return spell({"STR": "", "NUM": "0", "CHAR": ""}[match["kind"]]
                     if match["text"] is None else match["text"])
    return _quoted(match["quote"], spell(match["string"] or ""), match["quote"], match)


def _quoted(quote: str, text: str, end: str, match: re.Match) -> str:
    """Return the string that replaces `match`, and a space after it if it is empty and followed at once by
    the same quote: the three would be a triple quote."""
    parts = match.string.startswith(quote, match.end()) and not text and quote == end and len(quote) == 1
    return f"{quote}{text}{end}{' ' if parts else ''}"


def _unescaped(text: str) -> str:
    for code, character in _UNPRINTABLE.items():
        text = text.replace(code, character)
    return text


def plain_python(text: str) -> str:
    """Return a signature or docstring of the data set as ordinary Python text."""
    text = _LITERAL.sub(lambda match: _literal_text(match, _unescaped), text)
    return _LAYOUT.sub(lambda m: "\n" if m[1] == "EOL" else "", text)


def plain_body(body: str) -> str:
    """Return a body of the data set as it would follow its prompt: on lines, four spaces per level."""
    lines, depth = [], 1
    for place, part in enumerate(_LAYOUT.split(body)):  # text and layout marks in turn
        if place % 2:
            depth += {"INDENT": 1, "DEDENT": -1}.get(part, 0)
        elif part.strip():
            # the mark before the first line is that of the method's own body, which is at level 1 already
            depth = depth if lines else 1
            lines.append(INDENT * max(1, depth) + plain_python(part).strip())
    return "".join(f"\n{line}" for line in lines)


def codexglue_prompt(signature: str, docstring: str) -> str:
    """Return the start of a well-formed function: the signature, then the docstring.

    It does not end in a line end: many tokenizers join a line end and the indentation after it into one
    token, and a prompt that ended between the two would be one that no model was trained on.
    """
    head = plain_python(signature).strip()
    head = head if head.endswith(":") else f"{head}:"
    text = plain_python(docstring).strip()
    if not text:
        return head
    lines = [line.rstrip() for line in text.expandtabs(4).split("\n")]
    margin = min((len(line) - len(line.lstrip()) for line in lines[1:] if line), default=0)
    body = "\n".join([lines[0], *(INDENT + line[margin:] if line else "" for line in lines[1:])])
    # a backslash would begin an escape sequence, and quotes would end the docstring
    body = body.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    if body.endswith('"'):
        body += " "
    end = f"\n{INDENT}" if "\n" in body else ""
    return f'{head}\n{INDENT}"""{body}{end}"""'


def common_literals(bodies: Iterable[str]) -> set[tuple[str, str]]:
    """Return the literals that the data set kept, as (STR or NUM, text): those that its references hold."""
    marks = (match for body in bodies for match in _LITERAL.finditer(body))
    literals = (("STR", match["string"]) if match["quote"] else (match["kind"], match["text"])
                for match in marks)
    return {(kind, text) for kind, text in literals if text is not None}


# A lexer of our own and not the standard library's: that one stops at the first thing that is not Python, as
# an unfinished prediction is, and its tokens of f-strings depend on the version of Python that runs it.  Its
# numbers are those of the one that wrote the data set, to which Python 2's 0777 is two: 0 and 777.
_TOKEN = re.compile(r"""
    (?P<comment>\#[^\r\n]*)
  | (?P<continuation>\\(?:\r\n?|\n))
  | (?P<string>(?P<prefix>[rbuf]{0,2})(?:
        (?P<triple>\"\"\"|''')(?P<long>(?:\\.|(?!(?P=triple)).)*)(?P<long_end>(?P=triple)|\Z)
      | (?P<quote>["'])(?P<short>(?:\\(?:\r\n|.)|(?!(?P=quote))[^\\\r\n])*)
        (?P<short_end>(?P=quote)|(?=[\r\n])|\Z|(?=\\\Z))))
  | (?P<name>[^\W\d]\w*)
  | (?P<number>
        (?:[0-9](?:_?[0-9])*\.(?:[0-9](?:_?[0-9])*)?|\.[0-9](?:_?[0-9])*)(?:e[+-]?[0-9](?:_?[0-9])*)?j?
      | [0-9](?:_?[0-9])*(?:e[+-]?[0-9](?:_?[0-9])*j?|j)
      | 0(?:x(?:_?[0-9a-f])+|b(?:_?[01])+|o(?:_?[0-7])+|(?:_?0)*) | [1-9](?:_?[0-9])*)
  | (?P<other>.)
""", re.VERBOSE | re.DOTALL | re.IGNORECASE)


def normalize_python(code: str, common: set[tuple[str, str]]) -> str:
    """Return predicted Python as the data set writes its references, scored form.

    Comments and the backslashes of continued lines are dropped; a string or number that is not among the
    `common` literals is emptied (quotes stay, a number becomes 0); white space is folded.
    """
    return fold_white_space(_TOKEN.sub(lambda match: _normalized_token(match, common), code))


def _normalized_token(match: re.Match, common: set[tuple[str, str]]) -> str:
    if match["comment"] is not None or match["continuation"] is not None:
        return "" if match["continuation"] is None else " "
    if match["number"] is not None:
        return match["number"] if ("NUM", match["number"]) in common else "0"
    if match["string"] is None:
        return match[0]
    quote = match["triple"] or match["quote"]
    # white space is folded first, that at the ends too: it is inside the quotes
    text = re.sub(r"\s+", " ", match["long"] if match["triple"] else match["short"])
    for code, character in _UNPRINTABLE.items():
        text = text.replace(character, code)
    end = match["long_end"] if match["triple"] else match["short_end"]
    return match["prefix"] + _quoted(quote, text if ("STR", text) in common else "", end, match)


def logical_lines(code: str) -> Iterator[str]:
    """Yield the logical lines of Python, or of a body whose <EOL> are line ends: none ends in a string or
    between brackets."""
    begin = depth = 0
    for match in _TOKEN.finditer(code):
        if match["other"] is not None:
            depth = max(0, depth + (match[0] in "([{") - (match[0] in ")]}"))
            if match[0] in "\r\n" and not depth:
                yield code[begin:match.start()]
                begin = match.end()
    yield code[begin:]


_LINE_AT_COLUMN_0 = re.compile(r"[\r\n]\S")


def method_end(body: str) -> int | None:
    """Return where the body of a method at column 0 has ended in `body`, or None while it may go on.

    That is the start of the first line of code at column 0 that is outside brackets and strings and does
    not continue the line before it.  A comment does not end a method, whatever its column.
    """
    if not _LINE_AT_COLUMN_0.search(body):  # called at every new token
        return None
    depth, at_line_start = 0, False  # it begins after the prompt's last character
    for match in _TOKEN.finditer(body):
        text = match[0]
        if at_line_start and not text.isspace() and match["comment"] is None and depth == 0:
            return match.start()
        if match["string"] is not None:
            end = match["long_end"] if match["triple"] else match["short_end"]
            if not end and match.end() == len(body):
                return None  # a string is open
        if match["other"] is not None:
            depth = max(0, depth + (text in "([{") - (text in ")]}"))
        at_line_start = text in ("\n", "\r")
    return None


def fetch_codexglue(path: Path) -> None:
    """Fetch the benchmark's test file from the hub to `path`, unless it is there."""
    if path.is_file():
        return
    try:
        with hub_errors("data set", CODEXGLUE_DATASET):
            cached = hf_hub_download(CODEXGLUE_DATASET, CODEXGLUE_FILE, repo_type="dataset")
    except PipelineError as error:
        raise PipelineError(f"--codexglue_file {path}: no such file, and fetching it failed ({error}); "
                            f"download {CODEXGLUE_FILE} of the data set {CODEXGLUE_DATASET} from the hub and "
                            "put it there") from None
    with open(cached, "rb") as source, atomic_file(path, binary=True) as target:
        shutil.copyfileobj(source, target)
    print(f"fetched {path} from the hub data set {CODEXGLUE_DATASET}", file=sys.stderr)


def codexglue_task(path: Path, sample: int, seed: int) -> Task:
    """Return the Python task; the common literals are those of the whole file, whatever the sample."""
    fetch_codexglue(path)
    rows = list(read_jsonl(path, CODEXGLUE_FIELDS))
    if not rows:
        raise PipelineError(f"--codexglue_file {path}: holds no example; delete it, and it is fetched again")
    common = common_literals(row["body"] for row in rows)
    prompts = {i: codexglue_prompt(rows[i]["signature"], rows[i]["docstring"])
               for i in draw(len(rows), sample, seed)}
    examples = [Example(id=str(rows[i].get("id", i)), prompt=prompt, place=Place(prompt),
                        reference=codexglue_reference(rows[i]["body"]), group=i,
                        completion=plain_body(rows[i]["body"]),
                        first_line=first_line(rows[i]["body"].replace("<EOL>", "\n"), codexglue_reference,
                                              logical_lines))
                for i, prompt in prompts.items()]
    name, dataset = ((CODEXGLUE_NAME, CODEXGLUE_DATASET) if len(rows) == CODEXGLUE_EXAMPLES
                     else (STAND_IN_NAME, path.name))
    return Task(name, examples, CODEXGLUE_MAX_NEW_TOKENS,
                lambda text: normalize_python(text, common), StopRule(method_end),
                {"file": path.name, "sha256": sha256_file(path), "format": TEXT_FORMAT,
                 "prompt": "signature, docstring", "stop": "end of method"},
                DataSource(dataset), lines=logical_lines)
