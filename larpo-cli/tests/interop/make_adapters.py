"""Makes low-rank adapters with PEFT, with the logits that PEFT computes: the fixtures of the tests.

    python make_adapters.py MODELS OUT

MODELS is a folder of model folders (larpo-core/tests/golden/models), OUT gets a folder for each adapter: PEFT's own files and
golden.json. Needs the Python packages torch, transformers and peft; run by hand, results are kept in
larpo-core/tests/golden/adapters.
"""

import json
import sys
from pathlib import Path

import peft
import torch
import transformers

transformers.logging.set_verbosity_error()
# Name, model, settings. A list, a regular expression, every linear module, and the family's default.
ADAPTERS = [
    ("llama_names", "llama_tied_bf16", {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    ("qwen3_pattern", "qwen3", {"r": 2, "lora_alpha": 4.5, "target_modules": r"model\.layers\.\d+\.(self_attn\.[ko]_proj|mlp\.up_proj)"}),
    ("gemma2_all", "gemma2", {"r": 4, "lora_alpha": 3, "use_rslora": True, "lora_dropout": 0.1, "target_modules": "all-linear"}),
    ("gpt2_default", "gpt2_hub_names", {"r": 2, "lora_alpha": 8}),
    ("gpt2_names", "gpt2_hub_names", {"r": 3, "lora_alpha": 2, "target_modules": ["c_proj", "mlp.c_fc"]}),
]


def main():
    models, out = Path(sys.argv[1]), Path(sys.argv[2])
    for seed, (name, base, settings) in enumerate(ADAPTERS):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            models / base, dtype=torch.float32, attn_implementation="eager"
        )
        config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
        model = peft.get_peft_model(model, config).eval()
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(out / name)
        (out / name / "README.md").unlink(missing_ok=True)
        # No path of the machine that made it.
        file = out / name / "adapter_config.json"
        saved = json.loads(file.read_text())
        saved["base_model_name_or_path"] = base
        saved["target_modules"] = sorted(saved["target_modules"]) if isinstance(saved["target_modules"], list) else saved["target_modules"]
        file.write_text(json.dumps(saved, indent=2) + "\n")
        ids = torch.randint(3, model.config.vocab_size - 3, (1, 12))
        model = model.double()
        with torch.no_grad():
            logp = torch.log_softmax(model(ids).logits, -1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            with model.disable_adapter():
                plain = torch.log_softmax(model(ids).logits, -1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        golden = {"base": base, "ids": ids[0].tolist(), "next_token_logp": logp.tolist(), "without": plain.tolist(),
                  "peft": peft.__version__, "transformers": transformers.__version__}
        (out / name / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
        print(name, sum(p.numel() for n, p in model.named_parameters() if "lora_" in n), (logp - plain).abs().max().item())


if __name__ == "__main__":
    main()
