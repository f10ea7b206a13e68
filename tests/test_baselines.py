"""pipeline/evaluation/baselines.py: what needs no model."""
import pytest
from datasets import Dataset
from evaluation_runs import task_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation import baselines
from pipeline.evaluation.baselines import similar_completions, trivial_predictions


def train_split(rows: list[tuple[str, str]]) -> Dataset:
    """Return a train split of these prompts and completions."""
    return Dataset.from_dict({"prompt": [p for p, _ in rows], "completion": [c for _, c in rows]})


def test_trivial_predictions() -> None:
    """A baseline looks at the reference, or copies something else than it says."""
    prompts = ["a\nb\n\nc\n", "one", "val total = sum(items)\nprintln(total)"]
    task = task_of(["x\ny", "x\n\ny\n", "x"], prompts=prompts)
    train = train_split([("nothing of the kind", "no"), ("val total = sum(prices)\nprintln(total)", "yes"),
                         ("a b", "some")])
    found = trivial_predictions(task, train, 0)
    assert found == {"nothing": ["", "", ""], "the line before": ["c", "one", "println(total)"],
                     "the prompt's last 2 lines": ["b\nc", "one", prompts[2]],
                     "most similar training completion": ["some", "no", "yes"]}
    assert set(trivial_predictions(task, None, 0)) == set(found) - {"most similar training completion"}
    # behind a longer context, the pair's own chunk is what training prompts are like
    for example, chunk in zip(task.examples, ["a b", "a b", "val total"], strict=True):
        example.chunk = chunk
    again = trivial_predictions(task, train, 0)
    assert again == found | {"most similar training completion": ["some", "some", "yes"]}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefg")).map(" ".join), min_size=1, max_size=8),
       st.lists(st.sampled_from("abcdefgh")).map(" ".join))
def test_most_similar_is_the_largest_share_of_words(trained: list[str], prompt: str) -> None:
    """Another training example than the most similar one makes the baseline too easy to beat."""
    def share(a: str, b: str) -> float:
        return len(set(a.split()) & set(b.split())) / max(1, len(set(a.split()) | set(b.split())))

    train = train_split([(text, str(i)) for i, text in enumerate(trained)])
    [found] = similar_completions([prompt], train, 0)
    assert share(prompt, trained[int(found)]) == max(share(prompt, text) for text in trained)


def test_similar_completions_looks_at_a_bounded_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline holds all training prompts in memory, or takes the completion of another row than it
    found."""
    monkeypatch.setattr(baselines, "BASELINE_EXAMPLES", 5)
    train = train_split([(f"same word{i}", str(i)) for i in range(50)])
    found = similar_completions([f"same word{i}" for i in range(50)], train, 3)
    drawn = {i for i, completion in enumerate(found) if int(completion) == i}
    assert set(found) == {str(i) for i in drawn}
    assert len(drawn) == 5
