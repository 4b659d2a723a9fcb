"""A small language model learns the standard library's docstrings under Hugging Face's Trainer, its optimizer remote.

Against training with torch.optim alone two lines differ:

    from torch.optim import AdamW
    optimizer = AdamW(model.parameters(), lr=3e-3)

Start a server (`stepwell serve`), then this program; started again, it goes on where it ended.
"""

import argparse
import ast
import pathlib
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from stepwell.torch import RemoteOptimizer

WIDTH, LENGTH, BATCH = 32, 32, 8


def docstrings():
    """Those of the modules at the top of the standard library, in pieces as the Trainer takes them."""
    found = []
    for path in sorted(pathlib.Path(ast.__file__).parent.glob("[ac]*.py")):
        tree = ast.parse(path.read_bytes())
        definitions = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, definitions)]
    pieces = torch.tensor(list("\n\n".join(found).encode("ascii", "replace"))).unfold(0, LENGTH, LENGTH)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def language_model():
    """One layer over bytes."""
    sizes = {"vocab_size": 128, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "max_position_embeddings": LENGTH}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return LlamaForCausalLM(LlamaConfig(**sizes, **special, num_hidden_layers=1, num_attention_heads=4))


def train(address, run, steps):
    set_seed(0)
    model = language_model()
    optimizer = RemoteOptimizer(model, "adamw", lr=3e-3, address=address, run=run)
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            lr_scheduler_type="cosine",
            logging_steps=max(1, steps // 2),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model, arguments, train_dataset=docstrings(), optimizers=(optimizer, None))
        trainer.train()
    for entry in trainer.state.log_history:
        if "loss" in entry:
            print(f"step {entry['step']}: loss {float(entry['loss']):.4f}")
    return model


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Train a small language model under Trainer with a remote optimizer.")
    options.add_argument("--address", default="127.0.0.1:50051")
    options.add_argument("--run", default="docstrings-huggingface")
    options.add_argument("--steps", type=int, default=200)
    given = options.parse_args()
    trained = train(given.address, given.run, given.steps)
