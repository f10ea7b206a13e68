"""Stage 3 on whole files beside what people would use instead: tokens a second and the highest memory.

    stage:     train.py --train_on files, sequences of 512 tokens
    reference: the recipe of many tutorials: Trainer on files joined and cut into blocks of 512 tokens,
               batches of 4
    trl:       TRL's SFTTrainer on the same texts, packed into blocks of 512 tokens, batches of 4; its loss
               is named, because TRL has several

Every token is a label for all, the base model, adapters and precision are the same, and all are measured in
one run, each in a process of its own.  Seconds are those from the end of the first step to the end of the
last.  Memory: of the device on a GPU, else the most that the process held.

Run:    python perf/train_files.py --model_name_or_path MODEL --dataset DATASET
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import CLOCK, ROOT, machine, median, skip

COMMON = """
import json, resource, sys, time, torch
model_name, dataset, sequences, precision, out, root = sys.argv[1:7]
sequences = int(sequences)

def show(tokens, seconds, **more):
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({"tokens_per_second": tokens / seconds, "peak_bytes": peak, **more}))
"""
OTHERS = COMMON + """
from datasets import Dataset, load_from_disk
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
tokenizer = AutoTokenizer.from_pretrained(model_name)
tokenizer.pad_token = tokenizer.eos_token
texts = load_from_disk(dataset + "/files")["train"].shuffle(seed=0).select_columns(["text"])
dtype = {"bf16": torch.bfloat16, "float32": torch.float32}[precision]
model = AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype)
lora = LoraConfig(r=64, lora_alpha=128, target_modules="all-linear", task_type="CAUSAL_LM")
settings = dict(use_cpu=not torch.cuda.is_available(), bf16=precision == "bf16", report_to="none",
                learning_rate=1e-3, save_strategy="no", disable_tqdm=True, per_device_train_batch_size=4,
                max_steps=sequences // 4)
""" + CLOCK
REFERENCE = OTHERS + """
from transformers import default_data_collator
ids = []
for text in texts.select(range(min(len(texts), sequences * 8)))["text"]:
    ids += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    if len(ids) >= 512 * sequences:
        break
blocks = [ids[i:i + 512] for i in range(0, 512 * sequences, 512)]
trainer = Trainer(model=get_peft_model(model, lora), callbacks=[clock], data_collator=default_data_collator,
                  train_dataset=Dataset.from_dict({"input_ids": blocks, "labels": blocks}),
                  args=TrainingArguments(out, **settings))
trainer.train()
show(4 * 512 * clock.steps, clock.ended - clock.begun)
"""
TRL = OTHERS + """
from trl import SFTConfig, SFTTrainer
trainer = SFTTrainer(model=model, train_dataset=texts.select(range(min(len(texts), sequences * 8))),
                     processing_class=tokenizer, peft_config=lora, callbacks=[clock],
                     args=SFTConfig(out, max_length=512, packing=True, packing_strategy="wrapped",
                                    gradient_checkpointing=False, **settings))
trainer.train()
show(4 * 512 * clock.steps, clock.ended - clock.begun, loss_type=getattr(trainer.args, "loss_type", None))
"""
STAGE = COMMON + """
sys.path.insert(0, root)
import train
from pipeline.training.trainer import CompletionTrainer
step, ends, tokens = CompletionTrainer.training_step, [], []
def training_step(self, *args, **kwargs):
    result = step(self, *args, **kwargs)
    ends.append(time.perf_counter())
    tokens.append(self.real_tokens)
    return result
CompletionTrainer.training_step = training_step
train.main(["--model_name_or_path", model_name, "--dataset", dataset, "--max_train_samples", str(sequences),
            "--max_validation_samples", "1", "--eval_steps", "100000", "--output_dir", out + "/adapter",
            "--quantization", "none", "--precision", precision, "--train_on", "files",
            "--examples_per_step", "4", *sys.argv[7:]])
show(tokens[-1] - tokens[0], ends[-1] - ends[0])
"""
CANDIDATES = {"stage": (STAGE, []), "reference": (REFERENCE, []), "trl, packed": (TRL, []),
              "compiled": (STAGE, ["--torch_compile"])}


def measure(name: str, args: argparse.Namespace) -> dict:
    """Run one candidate and return what it printed; its own errors where it fails."""
    code, more = CANDIDATES[name]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, args.model_name_or_path, args.dataset, args.sequences,
                   args.precision, folder, ROOT, *more]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--dataset", required=True, help="folder that preprocess_data.py wrote")
    parser.add_argument("--sequences", type=int, default=24)
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--against", nargs="*", choices=[*CANDIDATES][1:],
                        default=["reference", "trl, packed"])
    args = parser.parse_args()
    if not (Path(args.dataset) / "files").is_dir():
        skip(f"{args.dataset}/files is not there")
    found: dict[str, list[dict]] = {}
    for _ in range(args.runs):
        for name in ["stage", *args.against]:
            found.setdefault(name, []).append(measure(name, args))
    rate = {name: median([run["tokens_per_second"] for run in runs]) for name, runs in found.items()}
    memory = {name: max(run["peak_bytes"] for run in runs) / 1e9 for name, runs in found.items()}
    print(f"{machine()}; {args.precision}, {args.sequences} sequences of 512 tokens")
    for name in args.against:
        loss = found[name][0].get("loss_type")
        other = f"{name} (loss_type {loss})" if loss else name
        print(f"train.py / {other}, tokens, all of them labels, a second: {rate['stage']:.0f} / "
              f"{rate[name]:.0f} = {rate['stage'] / rate[name]:.2f}; memory {memory['stage']:.1f} / "
              f"{memory[name]:.1f} GB")


if __name__ == "__main__":
    main()
