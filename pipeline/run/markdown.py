"""Markdown: tables, and code in a fence that it cannot close."""
import re
from typing import Any


def fenced(text: str) -> str:
    """Return the text as a Markdown code block that no run of backticks in it can close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}\n"


def table_as_markdown(table: Any) -> str:
    """Return the table in Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |"
                     for line in lines) + "\n"
