"""The least that trains one step with Unsloth: the peer of `first_step.py`, which calls it.

    python bench/overhead/bare.py RUN

Imports the stack, loads the base of a run folder, puts the adapter on, trains one step on the run's
own token arrays, and prints when (seconds since 1970) that step was over.
"""

import sys
import time
from pathlib import Path

import torch
import unsloth  # noqa: F401  must come before trl and transformers
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel

from fastsft.base import resolve
from fastsft.data import arrays
from fastsft.run import open_run


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        print(f"first step {time.time()}", flush=True)
        control.should_training_stop = True


def collate(items):
    width = max(len(item["input_ids"]) for item in items)
    padded = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    rows = {
        key: [[*item[key], *[fill] * (width - len(item[key]))] for item in items]
        for key, fill in padded.items()
    }
    return {key: torch.tensor(value) for key, value in rows.items()}


def main() -> None:
    run = open_run(Path(sys.argv[1]))
    recipe = run.recipe()
    rows, _ = arrays.load(run.tokens_path)
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(resolve(recipe.model).folder),
        max_seq_length=recipe.data.max_tokens,
        dtype=torch.float32,
        load_in_4bit=recipe.model.quantization == "nf4",
        fix_tokenizer=False,
        use_exact_model_name=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        target_modules=list(recipe.lora.targets),
        use_gradient_checkpointing=False,
    )
    items = [rows[index] for index in range(len(rows))]
    data = Dataset.from_dict(
        {
            "input_ids": [ids for ids, _ in items],
            "labels": [labels for _, labels in items],
            "attention_mask": [[1] * len(ids) for ids, _ in items],
        }
    )
    SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(run.folder / "bare"),
            per_device_train_batch_size=recipe.train.micro_rows,
            gradient_accumulation_steps=recipe.train.accumulation_steps,
            max_steps=recipe.train.steps,
            learning_rate=recipe.train.learning_rate,
            max_length=recipe.data.max_tokens,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            use_cpu=True,
            bf16=False,
            fp16=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=data,
        data_collator=collate,
        processing_class=tokenizer,
        callbacks=[Stop()],
    ).train()


main()
