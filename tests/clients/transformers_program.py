# SPDX-License-Identifier: MIT
"""A GPT-2 from its configuration, trained by the Transformers Trainer on made-up text."""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from transformers import EvalPrediction, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

BATCH_ROWS = 8  # of all processes together
WORDS = 32


class Sentences(torch.utils.data.Dataset):
    """Rows in which each word is followed by one of two: something to learn."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        first = torch.randint(WORDS, (count, 1), generator=generator)
        steps = torch.randint(1, 3, (count, 11), generator=generator)
        self.rows = torch.cat([first, steps], 1).cumsum(1) % WORDS

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    guesses = prediction.predictions[:, :-1].argmax(-1)
    return {"accuracy": float((guesses == prediction.label_ids[:, 1:]).mean())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--init", help="make the default group on this backend first")
    args = parser.parse_args()
    if args.init:
        dist.init_process_group(args.init)
    torch.manual_seed(3)
    no_dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": WORDS}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**shape, **no_dropout, **ends))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.work,
            use_cpu=True,
            max_steps=6,
            per_device_train_batch_size=BATCH_ROWS // args.processes,
            per_device_eval_batch_size=BATCH_ROWS // args.processes,
            gradient_accumulation_steps=2,
            # Adam would blow up the rounding of the gradients of keys' biases, which are zero.
            optim="sgd",
            learning_rate=0.5,
            lr_scheduler_type="linear",
            max_grad_norm=1.0,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=3,
            save_strategy="steps",
            save_steps=3,
            report_to=[],
            disable_tqdm=True,
            seed=11,
        ),
        train_dataset=Sentences(64, seed=1),
        eval_dataset=Sentences(24, seed=2),  # whole batches: the Trainer averages over these
        compute_metrics=accuracy,
    )
    trainer.train()
    log = trainer.state.log_history
    found = {
        "losses": [entry["loss"] for entry in log if "loss" in entry],
        "norms": [float(entry["grad_norm"]) for entry in log if "grad_norm" in entry],
        "eval_losses": [entry["eval_loss"] for entry in log if "eval_loss" in entry],
        "accuracies": [entry["eval_accuracy"] for entry in log if "eval_loss" in entry],
        # 13 rows: what pads the last batch has to be taken away again.
        "logits": torch.from_numpy(trainer.predict(Sentences(13, seed=4)).predictions),
        "state": trainer.accelerator.unwrap_model(trainer.model).state_dict(),
        "wrapped": type(trainer.model_wrapped).__name__,
    }
    if dist.is_initialized():
        found["name"] = dist.get_backend()
        found["runs_on"] = dist.group.WORLD._get_backend(torch.device("cpu")).name()
    if trainer.is_world_process_zero():
        torch.save(found, args.out)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
