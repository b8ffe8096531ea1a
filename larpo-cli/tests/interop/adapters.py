"""Adapters that larpo trained and merged load in PEFT and transformers with equal log-probabilities, and the other way round.

    python adapters.py LARPO MODELS

LARPO is the program, MODELS a folder of model folders (larpo-core/tests/golden/models has a few). For every language model:
`larpo sft --use_peft` trains an adapter, PEFT loads the folder, `larpo merge` writes a model that transformers loads, and PEFT
saves the adapter again; `larpo score` gives for all three folders the log-probabilities that PEFT gives. Needs the Python
packages torch, transformers and peft.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import tokenizers
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
ROWS = [("12+3", "=15"), ("4+4", "=8"), ("31+7", "=38"), ("2+9", "=11")]


def larpo(program, *words):
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def tokenizer_files(folder):
    """A tokenizer of single bytes, which fits any of the models."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def scored(program, model, data, out):
    """Summed log-probabilities of the responses as larpo gives them."""
    larpo(program, "score", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", out)
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    return [row["sum_logps"][0] for row in rows]


def logps(model, tokenizer, end):
    """The same by transformers: a response ends with the end of text."""
    sums = []
    for prompt, response in ROWS:
        p, r = tokenizer.encode(prompt).ids, tokenizer.encode(response).ids + end
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([p + r])).logits.double(), -1)[0]
        sums.append(sum(logp[len(p) + i - 1, token].item() for i, token in enumerate(r)))
    return sums


def largest(a, b):
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def main():
    program, models = sys.argv[1], Path(sys.argv[2])
    compared = 0
    for source in sorted(path.parent for path in models.glob("*/config.json")):
        config = json.loads((source / "config.json").read_text())
        if not config["architectures"][0].endswith(("ForCausalLM", "LMHeadModel")):
            continue
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            shutil.copytree(source, work / "base")
            tokenizer = tokenizer_files(work / "base")
            generation = source / "generation_config.json"
            ids = json.loads(generation.read_text()).get("eos_token_id") if generation.exists() else config["eos_token_id"]
            end = [ids] if isinstance(ids, int) else ids[:1]
            data = work / "rows.jsonl"
            rows = [json.dumps({"prompt": p, "completion": r}) for p, r in ROWS]
            data.write_text("\n".join(rows) + "\n")
            larpo(program, "sft", "--model_name_or_path", work / "base", "--dataset_name", data, "--output_dir",
                  work / "adapter", "--use_peft", "--lora_r", 4, "--lora_target_modules", "all-linear", "--use_rslora",
                  "--max_steps", 8, "--learning_rate", "1e-2")
            larpo(program, "merge", work / "adapter", work / "merged", "--dtype", "float32")
            plain = load(work / "base")
            without = logps(plain, tokenizer, end)
            adapted = peft.PeftModel.from_pretrained(plain, work / "adapter").eval()
            adapted.save_pretrained(work / "saved")
            want = logps(adapted, tokenizer, end)
            found = {name: scored(program, work / name, data, work / f"scores-{name}")
                     for name in ["adapter", "merged", "saved"]}
            found["merged in transformers"] = logps(load(work / "merged"), tokenizer, end)
            worst = {name: largest(sums, want) for name, sums in found.items()}
            print(f"{source.name:16} moved by {largest(want, without):5.2f}, largest differences:",
                  ", ".join(f"{name} {difference:.1e}" for name, difference in worst.items()))
            assert largest(want, without) > 0.05 and max(worst.values()) < 1e-4, source
            compared += 1
    print(f"peft {peft.__version__}, transformers {transformers.__version__}: {compared} adapters load and agree")


if __name__ == "__main__":
    main()
