"""Make a second model to try settings on: a small phi, pretrained for minutes on the standard library.

It knows some Python and no Kotlin, has another architecture than SmolLM2 (one norm a block, attention and MLP
side by side, biases, an untied head) and a twenty-fifth of its parameters.

Run:    python perf/small_phi.py OUTPUT_FOLDER
        python preprocess_data.py --model_name_or_path OUTPUT_FOLDER --output_dir DATASET ...
        python perf/sweep.py --model_name_or_path OUTPUT_FOLDER --dataset DATASET --output FILE \\
            --changes learning_rates --tokens 450_000
"""
import sys
import sysconfig
import time
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
STEPS, ROWS, LENGTH, VOCABULARY = 300, 8, 256, 4096


def main(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(root.rglob("*.py")) if not {"site-packages", "test"} & set(file.parts)]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    backend.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT).save_pretrained(folder)
    ids = torch.tensor([token for encoding in backend.encode_batch(texts) for token in (*encoding.ids, 0)])
    torch.manual_seed(0)
    model = PhiForCausalLM(PhiConfig(vocab_size=VOCABULARY, hidden_size=256, intermediate_size=1024,
                                     num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=1024,
                                     partial_rotary_factor=0.5, bos_token_id=0, eos_token_id=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS, pct_start=0.1)
    begun = time.time()
    for step in range(STEPS):
        starts = torch.randint(len(ids) - LENGTH, (ROWS,))
        rows = torch.stack([ids[start:start + LENGTH] for start in starts.tolist()])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss.item():.3f}, {time.time() - begun:.0f} s", flush=True)
    model.save_pretrained(folder)
    print(f"wrote {folder}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
