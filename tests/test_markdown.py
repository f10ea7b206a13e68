"""pipeline/run/markdown.py: a text in a report stays in its block."""
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline.run.markdown import fenced


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("`~ \n#-|a>\t")))
def test_a_text_cannot_leave_its_block(text: str) -> None:
    """Code with backticks breaks the report, and what follows is shown as something else."""
    tokens = MarkdownIt().parse(f"before\n\n{fenced(text)}\n# after\n")
    paragraph = ["paragraph_open", "inline", "paragraph_close"]
    heading = ["heading_open", "inline", "heading_close"]
    assert [token.type for token in tokens] == [*paragraph, "fence", *heading]
    assert tokens[3].content == f"{text}\n"


def test_an_example_cannot_close_its_code_block() -> None:
    """An example with Markdown fences breaks the report."""
    assert fenced("a\n```\nb") == "````text\na\n```\nb\n````\n"
