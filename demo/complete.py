"""Show what a model writes at a place of a file, and what its base model writes there.

Reads   FILE LINE[:COLUMN]  a source file and a place in it, counted from 1 as editors do: the text before it
                            is what the model sees; without a column, it is the beginning of the line
        --model             a folder or hub name, a merged model or an adapter
        --base_model        the model that it was made from, shown beside it
Writes  nothing; the completions are printed

The model is prompted as in benchmarking.py, with the last whole lines of the file before the place that have
at most --context_tokens tokens, and decodes greedily.  A model with FIM tokens (prompts/fim_formats.py) is
also given at most --suffix_tokens of the text after the place, in whole lines.  With --repository, snippets
of the project's other files come first, as with benchmarking.py --repository_tokens.  Blanks right before the
place are left to the model, because tokenizers join them to the word that follows.  The time is that of the
prompt and the new tokens; loading the model is reported separately.

Run:    python demo/complete.py --model models/merged src/Main.kt 12
Quick:  python demo/complete.py --model models/merged src/Main.kt 12:9 --max_new_tokens 16
"""
import argparse
import itertools
import shutil
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline.run.errors import PipelineError
from pipeline.run.stage import non_negative_int, positive_int, run_stage

SIDE_BY_SIDE = 100  # columns of a terminal from which on two texts are shown side by side
SHOWN_BEFORE = 3  # lines of the file before the place that are shown


class Place(NamedTuple):
    """A place in a text: line and column, from 1; column 0: the beginning of the line."""
    line: int
    column: int = 0


class Written(NamedTuple):
    """What a model wrote at a place."""
    title: str
    text: str
    report: str  # token counts and times


def place(text: str) -> Place:
    """argparse type: LINE or LINE:COLUMN."""
    numbers = text.split(":")
    if len(numbers) > 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"{text} is not LINE or LINE:COLUMN, counted from 1")
    return Place(*map(int, numbers))


def split_at(file: Path, where: Place) -> tuple[str, str]:
    """Return the text of the file before and after the place, line ends as \\n.

    PipelineError if there is no such file or place.
    """
    if not file.is_file():
        raise PipelineError(f"{file}: no such file; check the path")
    try:
        text = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise PipelineError(f"{file}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    lines = text.split("\n")
    if where.line > len(lines):
        raise PipelineError(f"{file}: has {len(lines)} lines, and no line {where.line}; name one of them")
    line = lines[where.line - 1]
    if where.column > len(line) + 1:
        raise PipelineError(f"{file}, line {where.line}: has {len(line)} characters; name a column up to "
                            f"{len(line) + 1}, which is after the last")
    offset = sum(len(other) + 1 for other in lines[:where.line - 1]) + max(0, where.column - 1)
    return text[:offset], text[offset:]


def beside(left: Written, right: Written, width: int) -> str:
    """Return two texts in two columns of a terminal, or one below the other if it is narrower than
    SIDE_BY_SIDE."""
    if width < SIDE_BY_SIDE:
        return "\n\n".join(alone(written) for written in (left, right))
    half = (width - 3) // 2

    def column(written: Written) -> list[str]:
        head = textwrap.wrap(written.title, half) + textwrap.wrap(written.report, half) + ["-" * half]
        lines = written.text.expandtabs(4).split("\n")
        return head + [line[i:i + half] for line in lines for i in range(0, max(1, len(line)), half)]

    rows = itertools.zip_longest(column(left), column(right), fillvalue="")
    return "\n".join(f"{a:<{half}} | {b}".rstrip() for a, b in rows)


def alone(written: Written) -> str:
    """Return one text under its title."""
    return f"--- {written.title}\n--- {written.report}\n{written.text}"


def complete(args: argparse.Namespace) -> None:
    """Print what each model writes at the place."""
    before, after = split_at(args.file, args.place)
    # heavy imports wait until the arguments are known to be good
    from asking import find_sources, write
    from project import Project

    from pipeline.model import device

    device.quiet_libraries()
    project = None
    if args.repository:
        project = Project(args.repository, args.file, before, after, args.repository_tokens)
    print(f"device: {device.device_name()}, {device.choose_precision(args.precision)}", file=sys.stderr)
    sources = find_sources(args.model, args.base_model)
    shown = before.split("\n")[-SHOWN_BEFORE - 1:]
    print(f"--- {args.file}, up to line {args.place.line}\n" + "\n".join(shown), end="▌\n\n")
    titles = ["model"] if len(sources) == 1 or args.base_model is None else ["base", "fine-tuned"]
    written = [Written(f"{title}: {source.name}", *write(source, sources[0], before, after, args, project))
               for source, title in zip(sources[-len(titles):], titles, strict=True)]
    width = shutil.get_terminal_size().columns
    print(alone(written[0]) if len(written) == 1 else beside(*written, width))
    if rest := after.split("\n")[:SHOWN_BEFORE]:
        print("\n--- the file goes on\n" + "\n".join(rest))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="a source file, in UTF-8")
    add("place", type=place, metavar="LINE[:COLUMN]",
        help="where to write, from 1; without a column, at the beginning of the line")
    add("--model", default="models/merged",
        help="a folder or hub name, a merged model or an adapter (default: %(default)s)")
    add("--base_model", help="the model that it was made from, shown beside it (default: only --model)")
    add("--context_tokens", type=positive_int, default=512,
        help="tokens of the file before the place in the prompt, at most (default: %(default)s)")
    add("--suffix_tokens", type=non_negative_int, default=128,
        help="tokens of the file after the place in the prompt of a model with FIM tokens, at most; 0: none "
             "(default: %(default)s)")
    add("--repository", type=Path, metavar="FOLDER",
        help="put snippets of this folder's files with the same extension before the file; never of the "
             "file itself or its near-duplicates (default: the file alone)")
    add("--repository_tokens", type=positive_int, default=512,
        help="tokens of these snippets, at most (default: %(default)s)")
    add("--max_new_tokens", type=positive_int, default=64,
        help="tokens to write, at most (default: %(default)s)")
    add("--precision", choices=("auto", "bf16", "fp16", "float32"), default="auto",
        help="auto: bf16 if the hardware has it, else fp16 on a GPU, float32 on a CPU "
             "(default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(complete, build_parser().parse_args(argv), any_bytes=("file",), prints=True)


if __name__ == "__main__":
    main()
