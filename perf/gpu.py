"""Stage 3 on a GPU with phi-1.5's real configuration: tokens a second, share of the matrix rate, memory.

QLoRA (NF4) and plain bf16 LoRA, and beside them the recipe that many tutorials have and, where it is
installed, TRL (perf/train.py), in one run; each candidate is a process of its own, and this one leaves the
GPU alone.  The weights are random; examples are random text of about 200 tokens, half of them prompt.

Run:    python perf/gpu.py --tokenizer FOLDER
"""
import argparse
import importlib.util
import json
import random
import sys
import tempfile
from pathlib import Path

from measure import ROOT, machine, skip

from train import REFERENCE, STAGE, TRL, child  # perf/train.py

EXAMPLE_TOKENS, GOAL = 200, 100_000
SIZE, PRODUCTS = 8192, 50  # of the matrices whose product is the limit, and products between two waits
PHI = {"vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
       "num_attention_heads": 32, "max_position_embeddings": 2048, "partial_rotary_factor": 0.5,
       "hidden_act": "gelu_new"}
BUILD = """
import json, sys, torch
from transformers import PhiConfig, PhiForCausalLM
torch.manual_seed(0)
config = PhiConfig(**json.loads(sys.argv[2]), dtype="bfloat16")
with torch.device("cuda"):
    model = PhiForCausalLM(config).to(torch.bfloat16)
model.save_pretrained(sys.argv[1])
print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__,
                  "parameters": sum(p.numel() for p in model.parameters())}))
"""
RATE = """
import sys, time, torch
size, products = int(sys.argv[1]), int(sys.argv[2])
a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
best = 0.0
for _ in range(4):
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(products):
        a @ b
    torch.cuda.synchronize()
    best = max(best, products * 2 * size**3 / (time.perf_counter() - begun))
print(best)
"""


def build_dataset(folder: Path, tokenizer_folder: str, examples: int) -> float:
    """Write the tokenizer and a data set of random words; return the mean number of tokens of an example."""
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(0)

    def text() -> str:
        spread = EXAMPLE_TOKENS // 10
        number = EXAMPLE_TOKENS // 2 + draw.randrange(-spread, spread + 1)
        return tokenizer.decode([draw.randrange(len(tokenizer) // 50, len(tokenizer)) for _ in range(number)])

    rows = datasets.Dataset.from_list([{"prompt": text(), "completion": text()} for _ in range(examples)])
    few = rows.select(range(8))
    splits = {"train": rows, "validation": few, "test": few}
    datasets.DatasetDict(splits).save_to_disk(str(folder / "dataset"))
    texts = [*rows["prompt"], *rows["completion"]]  # tokens that were decoded are not read as the same ones
    return sum(map(len, tokenizer(texts)["input_ids"])) / examples


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder of phi-1.5's tokenizer")
    parser.add_argument("--examples", type=int, default=1600)
    args = parser.parse_args(argv)
    import torch

    if not torch.cuda.is_available():
        skip("this measures on a GPU, and there is none")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        length = build_dataset(folder, args.tokenizer, args.examples)
        base = json.loads(child(BUILD, folder / "model", json.dumps(PHI)))
        print(f"{machine()}; {base['device']}, torch {base['torch']}")
        rate = float(child(RATE, SIZE, PRODUCTS))
        limit = rate / 4 / base["parameters"]
        print(f"products of {SIZE} x {SIZE}: {rate / 1e12:.0f} TFLOP/s in bf16, at 4 FLOP a parameter and "
              f"token {limit:,.0f} tokens a second; examples of {length:.0f} tokens", flush=True)
        # (what, its code, its share of the examples, what it is told besides)
        stage = [ROOT, "--quantization"]
        candidates = [("LoRA, bf16", STAGE, 1, [*stage, "none"]), ("QLoRA, NF4", STAGE, 1, [*stage, "nf4"]),
                      ("reference recipe, bf16 LoRA", REFERENCE, 8, [])]
        if importlib.util.find_spec("trl"):
            candidates.append(("TRL, packed, bf16 LoRA", TRL, 1, ["packed"]))
        for label, code, share, more in candidates:
            found = json.loads(child(code, folder / "model", folder / "dataset", args.examples // share,
                                     "bf16", folder / label.replace(", ", "_"), *more))
            tokens = length * found["examples_per_second"]
            peak = f", {found['peak_bytes'] / 1e9:.1f} GB at its peak" if "peak_bytes" in found else ""
            print(f"{label}: {tokens:,.0f} tokens a second ({tokens / limit:.0%} of the limit){peak}, "
                  f"{GOAL * EXAMPLE_TOKENS / tokens / 60:.0f} minutes for {GOAL:,} examples of "
                  f"{EXAMPLE_TOKENS} tokens", flush=True)


if __name__ == "__main__":
    sys.exit(main())
