"""Pieces of a repository: what it takes to look for them, and what they are worth to a model.

    index     seconds and bytes a piece, for the train split's files
    search    seconds a place, for places of the test split
    loss      with --model: the mean loss a token of completions of the test split behind --context_tokens of
              their file, without and with pieces before it, the difference paired, resampled by file

Run:    python perf/retrieval.py --dataset DATASET --model MODEL --examples 100
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from measure import ROOT, machine

sys.path.insert(0, str(ROOT))
from pipeline.data.datasets import load_files
from pipeline.retrieval.index import Index, query_of

RESAMPLES = 2000


def measure_search(dataset: str) -> None:
    """Print what index and search take, of one repository."""
    files = load_files(dataset, ("train", "test"))
    process = psutil.Process()
    texts = files["train"]["text"][:]
    before, started, clock = process.memory_info().rss, time.process_time(), time.perf_counter()
    index = Index(texts)
    cpu, wall = time.process_time() - started, time.perf_counter() - clock
    kept = (sum(index.scorer.scores[name].nbytes for name in ("data", "indices", "indptr"))
            + index.copies.hashes.nbytes + index.copies.files.nbytes + index.places.nbytes)
    print(f"index: {len(index.places):,} pieces of {len(texts):,} files in {cpu:.1f} CPU seconds "
          f"({wall:.1f} s), {kept / max(1, len(index.places)):.0f} bytes a piece kept; the process grew by "
          f"{(process.memory_info().rss - before) / 1e6:.0f} MB; groups of near-copies: "
          f"{len(texts) - len(set(index.copies.groups.tolist())):,} files are not the first of theirs")
    places = [text[:len(text) * part // 4] for text in files["test"]["text"][:] for part in (1, 2, 3)]
    kin = [index.kin_of_text(text) for text in files["test"]["text"][:]]
    started = time.process_time()
    found = [index.best(query_of(before), 11, kin[i // 3]) for i, before in enumerate(places)]
    seconds = (time.process_time() - started) / len(places)
    print(f"search: {1000 * seconds:.1f} ms of CPU a place; nothing is found at {sum(not f for f in found)} "
          f"of {len(places)}")


def measure_losses(args: argparse.Namespace) -> None:
    """Print the losses without and with pieces."""
    import torch

    from pipeline.evaluation.candidates import identify_model, load_model
    from pipeline.evaluation.losses import batch_losses
    from pipeline.model.device import choose_precision
    from pipeline.model.tokenizers import load_tokenizer
    from pipeline.prompts.prompter import Prompter, PromptForms
    from pipeline.prompts.repository_form import prompt_form
    from pipeline.retrieval.snippet_set import repository_task
    from pipeline.tasks.completion_set import kotlin_task

    tokenizer = load_tokenizer(args.model)
    source = identify_model(args.model, None)
    plain = kotlin_task(args.dataset, args.examples, 0, 100, args.context_tokens, tokenizer)
    asked = repository_task(plain, args.dataset, args.repository_tokens, prompt_form(tokenizer), tokenizer,
                            args.output)
    model = load_model(source, source, choose_precision("auto"))
    nats, tokens = {}, None
    for task in (plain, asked):
        prompter = Prompter(tokenizer, task.tokens, PromptForms(repository=prompt_form(tokenizer)))
        prompts, completions = prompter.pairs(task.places(), [each.completion for each in task.examples])
        started = time.perf_counter()
        with torch.inference_mode():
            found = [batch_losses(model, [row])[0] for row in zip(prompts, completions, strict=True)]
        nats[task.name], tokens = np.array([n for n, _ in found]), np.array([n for _, n in found])
        print(f"{task.name}: {nats[task.name].sum() / tokens.sum():.4f} nats a token of {len(found)} "
              f"completions, behind {np.mean([len(p) for p in prompts]):.0f} tokens; "
              f"{(time.perf_counter() - started) / len(found):.2f} s each", flush=True)
    difference = nats[asked.name] - nats[plain.name]
    _, group = np.unique([example.group for example in asked.examples], return_inverse=True)
    for name, chosen in (("all", np.ones(len(difference), bool)),
                         ("without those whose answer stands in a piece",
                          np.array([not example.in_snippets for example in asked.examples]))):
        print(f"difference, {name} ({chosen.sum()}): {shown(difference, tokens, group, chosen)}")


def shown(difference: np.ndarray, tokens: np.ndarray, group: np.ndarray, chosen: np.ndarray) -> str:
    """Return the mean difference a token with its 95 % interval, files resampled."""
    sums = np.zeros((group.max() + 1, 2))
    np.add.at(sums, group[chosen], np.column_stack([difference, tokens])[chosen])
    sums = sums[sums[:, 1] > 0]
    drawn = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1)
    low, high = np.percentile(means[:, 0] / means[:, 1], (2.5, 97.5))
    return f"{sums[:, 0].sum() / sums[:, 1].sum():+.4f} [{low:+.4f}, {high:+.4f}] nats a token"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a data set with whole files")
    parser.add_argument("--model", help="also measure the loss of this model")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--context_tokens", type=int, default=512)
    parser.add_argument("--repository_tokens", type=int, default=512)
    parser.add_argument("--output", type=Path, default=Path("results"), help="of a hub data set's pieces")
    args = parser.parse_args()
    print(machine())
    measure_search(args.dataset)
    if args.model:
        measure_losses(args)


if __name__ == "__main__":
    main()
