"""Reloads folders that larpo wrote in transformers and compares logits.

    python reload.py LARPO MODELS

LARPO is the program, MODELS a folder of model folders (larpo-core/tests/golden/models has a few). Every model is converted as it
is, into shards, and into every format of numbers; each result must load in transformers without a missing or unexpected tensor
and give the logits of the original (to the rounding of its format). Needs the Python packages torch and transformers.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    architecture = config["architectures"][0]
    model, report = getattr(transformers, architecture).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    # Buffers of old versions are no weights.
    problems = {
        kind: [name for name in names if not str(name).endswith((".attn.bias", ".masked_bias", "rotary_emb.inv_freq"))]
        for kind, names in report.items()
        if kind != "error_msgs"
    }
    assert not any(problems.values()) and not report.get("error_msgs"), (folder, report)
    return model.eval()


def logits(model):
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, model.config.vocab_size - 3, (1, 24), generator=generator)
    with torch.no_grad():
        return model(ids).logits.double()


def weights_rounded(model, dtype):
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return model


def main():
    larpo, models = sys.argv[1], Path(sys.argv[2])
    compared = 0
    for folder in sorted(path.parent for path in models.glob("*/config.json")):
        want = logits(load(folder))
        runs = [("as it is", [], None), ("in shards", ["--max_shard_size", "64KB"], None)]
        runs += [(name, ["--dtype", name], dtype) for name, dtype in FORMATS.items()]
        for what, flags, dtype in runs:
            with tempfile.TemporaryDirectory() as out:
                subprocess.run([larpo, "convert", folder, out, "--overwrite_output_dir", "--quiet", *flags], check=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                got = logits(load(Path(out)))
                expected = want if dtype is None else logits(weights_rounded(load(folder), dtype))
                difference = (got - expected).abs().max().item()
                shards = len(list(Path(out).glob("*.safetensors")))
                print(f"{folder.name:18} {what:10} {shards} file(s), largest difference of a logit {difference:.1e}")
                assert difference <= 1e-6 * max(1.0, expected.abs().max().item()), folder
                compared += 1
    print(f"transformers {transformers.__version__}: {compared} folders load and agree")


if __name__ == "__main__":
    main()
