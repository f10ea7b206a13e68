"""Stage 3 on a GPU with phi-1.5's real configuration: tokens a second, share of the matrix rate, memory.

QLoRA (NF4) and plain bf16 LoRA, and beside them the recipe that many tutorials have (perf/train.py), in one
run; each candidate is a process of its own.  The weights are random; examples are random text of about 200
tokens, half of them prompt.

Run:    python perf/gpu.py --tokenizer FOLDER
"""
import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from measure import ROOT, machine, skip

from train import LIMIT, REFERENCE, STAGE, child  # perf/train.py

EXAMPLE_TOKENS, GOAL = 200, 100_000
PHI = {"vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
       "num_attention_heads": 32, "max_position_embeddings": 2048, "partial_rotary_factor": 0.5,
       "hidden_act": "gelu_new"}


def build(folder: Path, tokenizer_folder: str, examples: int) -> None:
    """Write the model with random weights and a data set of random words."""
    import datasets
    import torch
    from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = PhiForCausalLM(PhiConfig(**PHI, dtype="bfloat16")).to(torch.bfloat16)
    model.save_pretrained(folder / "model")
    draw = random.Random(0)

    def text() -> str:
        ids = [draw.randrange(1000, 40_000) for _ in range(EXAMPLE_TOKENS // 2 + draw.randrange(-20, 20))]
        return tokenizer.decode(ids)

    rows = datasets.Dataset.from_list([{"prompt": text(), "completion": text()} for _ in range(examples)])
    few = rows.select(range(8))
    splits = {"train": rows, "validation": few, "test": few}
    datasets.DatasetDict(splits).save_to_disk(str(folder / "dataset"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder of phi-1.5's tokenizer")
    parser.add_argument("--examples", type=int, default=1600)
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        skip("this measures on a GPU, and there is none")
    print(f"{machine()}; {torch.cuda.get_device_name()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, args.tokenizer, args.examples)
        rate, parameters = map(float, child(LIMIT, folder / "model", "bf16").split())
        limit = rate / 4 / parameters
        print(f"matrix products: {rate / 1e12:.0f} TFLOP/s in bf16, at 4 FLOP a parameter and token "
              f"{limit:,.0f} tokens a second", flush=True)
        candidates = [("LoRA, bf16", STAGE, ["none"]), ("QLoRA, NF4", STAGE, ["nf4"]),
                      ("reference recipe, bf16 LoRA", REFERENCE, [])]
        for label, code, quantization in candidates:
            more = [ROOT, "--quantization", *quantization] if quantization else []
            examples = args.examples if quantization else args.examples // 8
            found = json.loads(child(code, folder / "model", folder / "dataset", examples, "bf16",
                                     folder / label.split(",")[0], *more))
            tokens = EXAMPLE_TOKENS * found["examples_per_second"]
            print(f"{label}: {tokens:,.0f} tokens a second ({tokens / limit:.0%} of the limit), "
                  f"{found['peak_bytes'] / 1e9:.1f} GB at its peak, "
                  f"{GOAL / found['examples_per_second'] / 60:.0f} minutes for {GOAL:,} examples of "
                  f"{EXAMPLE_TOKENS} tokens", flush=True)


if __name__ == "__main__":
    sys.exit(main())
