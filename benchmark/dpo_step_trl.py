"""TRL's side of benchmark/dpo_step.py: its DPOTrainer on given weights and batches. Runs in TRL's own environment.

``compact`` lets TRL's head score the tokens of answers only, as it does on a GPU; without Triton it scores every
position and takes a buffer of 32,768 rows. Images, tokens, LoRA and optimizer are what the folder says. TRL trains in
fp32 without checkpointing here (it has both bf16 and checkpointing on by default), and without ``max_length``, whose
default cuts answers off.
"""

import json
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.update({"HF_HUB_OFFLINE": "1", "TRL_TELEMETRY": "0", "TOKENIZERS_PARALLELISM": "false"})

import peft
import torch
import transformers
import trl.trainer.utils
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast, ProcessorMixin, TrainerCallback
from trl import DPOConfig, DPOTrainer

WORKER = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("dpo_step_worker.py")), run_name="worker"))
COMPACT_CHUNK = 1024
ENDLESS = 10**6
PAD = "<|finetune_right_pad_id|>"


class Tokens(ProcessorMixin):
    """A processor that is only asked for its tokenizer: the batches are ready."""

    attributes = ("tokenizer",)
    tokenizer_class = "PreTrainedTokenizerFast"


class Batches:
    """In place of TRL's collator: the next ready batch, whichever pairs are drawn."""

    def __init__(self, file: Path) -> None:
        self.batches: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(file).items():
            number, name = key.split(".")
            self.batches.setdefault(int(number), {})[name] = tensor
        self.taken = 0

    def __call__(self, examples: list[Any]) -> dict[str, torch.Tensor]:
        """Called by the data loader."""
        batch = self.batches[self.taken % len(self.batches)]
        self.taken += 1
        return dict(batch)


class Told(TrainerCallback):
    """Waits before each step for the parent, and answers after it."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.loss = float("nan")

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The batch is ready; the step has not begun."""
        self.worker.wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The optimizer has stepped."""
        self.worker.done(float(self.loss))


class Trainer(DPOTrainer):
    """Remembers the loss of a step, which TRL rounds where it logs it."""

    told: Told

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's."""
        loss = super().compute_loss(*args, **kwargs)
        self.told.loss = (loss[0] if isinstance(loss, tuple) else loss).detach()
        return loss


def load(folder: Path, settings: dict[str, Any]) -> Any:
    """The base model."""
    config = transformers.AutoConfig.from_pretrained(folder / "hf")
    if settings["state_before_layer"]:  # transformers reads the state after a layer, the weights mean the one before it
        vision = config.vision_config
        vision.intermediate_layers_indices = [index - 1 for index in vision.intermediate_layers_indices]
    return AutoModelForImageTextToText.from_pretrained(folder / "hf", config=config, dtype=torch.float32)


def trainer(folder: Path, settings: dict[str, Any]) -> Trainer:
    """TRL's trainer with the given adapters. It gets the base model: a PeftModel would be its own reference."""
    model = load(folder, settings)
    adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    lora = LoraConfig(
        r=adapter["r"],
        lora_alpha=adapter["lora_alpha"],
        lora_dropout=0.0,
        target_modules=adapter["target_modules"],  # whole names; q_proj alone would adapt the vision tower as well
        task_type="CAUSAL_LM",
    )
    size = settings["batch_size"]
    texts = {name: ["a"] * size for name in ("prompt", "chosen", "rejected")}
    made = Trainer(
        model=model,
        args=DPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=size,
            max_steps=ENDLESS,
            learning_rate=settings["lr"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            beta=settings["beta"],
            bf16=False,
            gradient_checkpointing=settings["checkpointing"],
            max_length=None,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_dict({"images": [["none"]] * size, **texts}),
        data_collator=Batches(folder / "batches.safetensors"),
        processing_class=Tokens(PreTrainedTokenizerFast(tokenizer_file=settings["tokenizer"], pad_token=PAD)),
        peft_config=lora,
    )
    loaded = peft.set_peft_model_state_dict(made.model, load_file(folder / "adapter" / "adapter_model.safetensors"))
    assert not loaded.unexpected_keys
    assert all("lora_" in name for name, p in made.model.named_parameters() if p.requires_grad)
    return made


def main() -> int:
    """Train until the parent has no more commands."""
    folder = Path(sys.argv[1])
    settings = json.loads(sys.argv[2])
    torch.set_num_threads(1)
    if settings["compact"]:
        trl.trainer.utils._use_triton = lambda device: True
        trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = COMPACT_CHUNK
    made = trainer(folder, settings)
    model = made.model.get_base_model().model
    tower = model.vision_tower if hasattr(model, "vision_tower") else model.vision_model
    made.told = Told(WORKER.Worker(tower, model.language_model.embed_tokens))
    made.add_callback(made.told)
    made.train()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
