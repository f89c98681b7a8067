"""Published training settings by name: what `--recipe alpaca` and `--recipe vicuna` stand for.

A recipe is a set of numbers and, for bases without a chat form of their own, the wording of the prompt.
Each says where it was published and where we differ.
"""

from dataclasses import dataclass

# Stanford Alpaca, README, "Data Release": the prompts used for fine-tuning, with and without an input.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Recipe:
    """As published, in the words of TrainSettings; batch is lessons a step, warmup a share of the steps."""

    name: str
    source: str
    rank: int
    alpha: float
    dropout: float
    lr: float
    epochs: int
    batch: int
    max_tokens: int
    targets: tuple[str, ...]
    schedule: str
    warmup: float
    weight_decay: float
    alpaca_prompt: bool = False


RECIPES = {
    # finetune.py's defaults, with PEFT, AdamW and the Trainer's linear schedule. There the loss runs over the
    # prompt too (train_on_inputs); ours is on the response alone, as in Stanford's original train.py.
    "alpaca": Recipe(
        name="alpaca",
        source="https://github.com/tloen/alpaca-lora (finetune.py)",
        rank=8,
        alpha=16,
        dropout=0.05,
        lr=3e-4,
        epochs=3,
        batch=128,
        max_tokens=256,
        targets=("q", "v"),
        schedule="linear",
        warmup=0.08,  # 100 of the 1,219 steps that 52,002 examples make
        weight_decay=0.0,
        alpaca_prompt=True,
    ),
    # The table "Code and Hyperparameters" gives batch, rate, epochs and length; LoRA's numbers are those of
    # the command under "Fine-tuning using (Q)LoRA". Every assistant turn is learned, and nothing else.
    "vicuna": Recipe(
        name="vicuna",
        source="https://github.com/lm-sys/FastChat (README.md, docs/training.md)",
        rank=8,
        alpha=16,
        dropout=0.05,
        lr=2e-5,
        epochs=3,
        batch=128,
        max_tokens=2048,
        targets=("q", "v"),
        schedule="cosine",
        warmup=0.03,
        weight_decay=0.0,
    ),
}


def alpaca_prompt(instruction: str, context: str) -> str:
    """The published Alpaca prompt, up to and including `### Response:` and its newline."""
    if context:
        return ALPACA_WITH_INPUT.format(instruction=instruction, input=context)
    return ALPACA_WITHOUT_INPUT.format(instruction=instruction)
