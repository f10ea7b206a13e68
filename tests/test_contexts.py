"""pipeline/prompts/contexts.py: what stands before a cut, as much of it as a number of tokens holds."""
from pathlib import Path

import pytest
import tiny_models
from datasets import Dataset, load_from_disk
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.preparation.writing import FILE
from pipeline.prompts.contexts import Cut, FileTexts, contexts_of, find_cuts, last_lines

LINES = ("fun alpha(x: Int): Int {\n", "    val a = x + 1\n", "    return a\n", "}\n", "\n", "\t\t\n",
         "// ключ 鍵 🙂\n", "x" * 90 + "\n", " " * 300 + "y\n", "s = '<|endoftext|>'\r\n")
TEXTS = st.tuples(st.lists(st.sampled_from(LINES), max_size=40).map("".join),
                  st.sampled_from(("", "    val b", "🙂", "x" * 400))).map("".join)


def number_of_tokens(text: str) -> int:
    """Return the tokens of the tiny tokenizer in a text."""
    return len(tiny_models.make_tokenizer()(text, split_special_tokens=True)["input_ids"])


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 150))
@example("fun alpha(x: Int): Int {\n    val b", 4)  # fewer tokens with the line break before it
def test_a_context_is_the_end_of_the_file_in_whole_lines(before: str, tokens: int) -> None:
    """The context is other text than the file's, begins with half a line, or is longer than the model can
    take."""
    [context] = contexts_of(tiny_models.make_tokenizer(), [before], tokens)
    assert before.endswith(context)
    assert number_of_tokens(context) <= tokens
    if number_of_tokens(before) <= tokens:
        assert context == before
        return
    rest = before[:len(before) - len(context)]
    if not rest.endswith("\n"):  # not even the last line fits
        assert "\n" not in context[:-1]
        assert number_of_tokens(before.splitlines(keepends=True)[-1]) > tokens
    elif context:
        line = rest.splitlines(keepends=True)[-1]
        assert number_of_tokens(line + context) > tokens  # one more line does not fit


@pytest.mark.parametrize("line", ["val a = listOf(" + "1, " * 33_000, " " * 100_000, "x" * 100_000,
                                  "🙂" * 25_000])
@pytest.mark.parametrize("end", ["", "\n"])
def test_one_line_of_100_kb(line: str, end: str) -> None:
    """A file that is one long line leaves the model without any context, or with more than it can take; or
    its tokens are counted for minutes."""
    counted = []

    def count(text: str) -> int:
        counted.append(len(text))
        return number_of_tokens(text)

    context = last_lines("package a\n" + line + end, 100, count)
    assert line.endswith(context.removesuffix("\n"))
    assert 90 <= number_of_tokens(context) <= 100
    assert len(counted) < 40
    assert max(counted) <= 16 * len(context)  # never the whole file where a part of it is enough


def test_little_is_counted_where_tokens_are_long() -> None:
    """The tokens of a large file are counted many times over, where those before the cut would do."""
    text, counted = "x" * 1_000_000, []

    def count(text: str) -> int:
        counted.append(len(text))
        return -(-len(text) // 25)

    assert len(last_lines(text, 100, count)) == 2500
    assert max(counted) <= 4 * 2500


def test_all_of_a_short_file_is_its_context() -> None:
    """The head of a file that fits is left out."""
    text = "".join(LINES[:4])
    assert contexts_of(tiny_models.make_tokenizer(), [text, ""], 512) == [text, ""]


@pytest.fixture(scope="module")
def files() -> FileTexts:
    """Two files, of lines 7 and 3 of the raw file."""
    unknown = {name: [None, None] for name in FILE}
    return FileTexts(Dataset.from_dict(
        unknown | {"text": ["abcdefgh", "🙂 a\nb"], "source_line": [7, 3]}, features=FILE))


@pytest.mark.parametrize(("line", "start", "prompt", "completion", "expected"), [
    (7, 0, "abc", "def", Cut("abc", False, "gh")),
    (7, 2, "cd", "efgh", Cut("abcd", True)),
    (3, 0, "🙂 a", "\nb", Cut("🙂 a", True)),
    (3, 2, "a", "\n", Cut("🙂 a", False, "b")),
    (7, 0, "abc", "xyz", None),  # another text
    (7, 1, "abc", "def", None),  # elsewhere in it
    (7, 6, "gh", "ij", None),  # beyond its end
    (7, 99, "a", "b", None),
    (4, 0, "abc", "def", None),  # no such file
])
def test_the_cut_of_a_pair(files: FileTexts, line: int, start: int, prompt: str, completion: str,
                           expected: Cut | None) -> None:
    """A pair is continued from another place than where it stands, or from a file that does not hold it."""
    assert files.cut(line, start, prompt, completion) == expected


def test_pairs_without_files_or_places_have_no_cuts(files: FileTexts) -> None:
    """A data set of somebody else, or of an older version, ends in a traceback."""
    pairs = {"prompt": ["abc", "x"], "completion": ["def", "y"], "source_line": [7, 7]}
    assert find_cuts(pairs, files) == [None, None]
    assert find_cuts(pairs | {"start": [0, 0]}, None) == [None, None]
    assert find_cuts(pairs | {"start": [0, 0]}, files) == [Cut("abc", False, "gh"), None]


def test_every_pair_of_a_data_set_is_found(files_folder: Path) -> None:
    """The last stages look for files in another form than the data set has."""
    pairs, texts = load_from_disk(str(files_folder)), load_from_disk(str(files_folder / "files"))
    for split in pairs:
        rows = pairs[split][:]
        cuts = find_cuts(rows, FileTexts(texts[split]))
        assert [cut.ends_file for cut in cuts] == [i % 3 == 2 for i in range(len(cuts))]
        for cut, prompt in zip(cuts, rows["prompt"], strict=True):
            assert cut.before.endswith(prompt)
        assert any(len(cut.before) > len(prompt) for cut, prompt in zip(cuts, rows["prompt"], strict=True))
