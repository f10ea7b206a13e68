"""The replay file: pairs in a language that the model knows and must not forget."""
import random
from pathlib import Path

from pipeline.run.errors import PipelineError
from pipeline.run.jsonl import parse_json_line

REPLAY_VALIDATION_SHARE = 0.1  # of --replay_dataset: its last rows, which are never trained on
# prompts, completions, and whether something ends behind each completion
Pairs = tuple[list[str], list[str], list[bool]]


def sample_replay(path: Path, number: int, validation_number: int, seed: int) -> tuple[Pairs, Pairs]:
    """Return `number` training and at most `validation_number` (0: all) validation pairs of a replay file.

    The file's last tenth is for validation: its neighbours are pieces of one source file, so that at most one
    file is on both sides.  A line's field `ends`, where it has one, says whether something ends behind its
    completion.  Only the chosen lines are kept in memory.
    """
    if not path.is_file():
        raise PipelineError(f"--replay_dataset {path}: no such file; give JSON lines with the fields prompt "
                            "and completion")
    with open(path, "rb") as file:
        count = sum(1 for _ in file)
    first_validation = count - max(1, round(count * REPLAY_VALIDATION_SHARE))
    if first_validation < number:
        raise PipelineError(f"--replay_dataset {path}: {number} examples are needed for training and "
                            f"{max(0, first_validation)} of its {count} are for that; give a larger file, or "
                            "lower --replay_fraction or --max_train_samples")
    training = set(random.Random(seed).sample(range(first_validation), number))
    # drawn apart from the others, so that runs with other shares are validated on the same lines
    held_out = range(first_validation, count)
    validation = set(held_out if not 0 < validation_number < len(held_out)
                     else random.Random(seed).sample(held_out, validation_number))
    found: tuple[Pairs, Pairs] = (([], [], []), ([], [], []))
    with open(path, "rb") as file:
        for i, line in enumerate(file):
            if i in training or i in validation:
                row = parse_json_line(path, i + 1, line, {"prompt": str, "completion": str})
                if not isinstance(row.get("ends", False), bool):
                    raise PipelineError(f"{path}, line {i + 1}: 'ends' is neither true nor false; say "
                                        "whether something ends behind the completion, or leave it out")
                prompts, completions, ends = found[i in validation]
                prompts.append(row["prompt"])
                completions.append(row["completion"])
                ends.append(row.get("ends", False))
    return found
