"""pipeline/preparation/writing.py: which examples of a file are written."""
from collections.abc import Callable

from preparation_runs import Prepared

from pipeline.preparation.splits import SPLITS


def test_train_windows_slide_and_evaluation_windows_do_not_overlap(prepare: Callable[..., Prepared],
                                                                   texts: list[str]) -> None:
    """Positions of a test file count several times, or train loses examples."""
    data = prepare(texts)
    for split in ("validation", "test"):
        for line in data.lines[split]:
            completions = [completion for _, completion, number in data.rows[split] if number == line]
            prompts = [prompt for prompt, _, number in data.rows[split] if number == line]
            assert "".join([prompts[0], *completions]) == texts[line - 1]
            assert prompts[1:] == completions[:-1]
    per_file = {split: len(data.rows[split]) / len(data.lines[split]) for split in SPLITS}
    assert per_file["train"] > 2 * per_file["test"]


def test_examples_with_very_large_values_are_skipped(prepare: Callable[..., Prepared], texts: list[str],
                                                     kotlin_file: Callable[[int], str]) -> None:
    """Hundreds of digits reach the model, or the whole file is lost for one of them."""
    values = ["9" * 40, "x" * 200, "8" * 39 + "L", "y" * 199]
    files = [kotlin_file(80 + i, 30) + f"\nval big = \n {value}\n\n" + kotlin_file(90 + i, 30)
             for i, value in enumerate(values)]
    options = ("--chunk_tokens", 300, "--stride_tokens", 100)
    data = prepare([*texts, *files], *options)
    everything = prepare([*texts, *files], *options, "--keep_large_values", output="all")

    def holding(result: Prepared, value: str) -> bool:
        return any(value in prompt + completion
                   for rows in result.examples.values() for prompt, completion in rows)

    assert [holding(data, value) for value in values] == [False, False, True, True]
    assert all(holding(everything, value) for value in values)
    assert data.counts["examples skipped, very large value"] > 0
    assert everything.counts["examples skipped, very large value"] == 0
    assert {41, 42, 43, 44} <= set().union(*data.lines.values())  # the rest of these files serves
