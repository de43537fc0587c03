"""Prompts that have nothing to do with a studied behaviour: what a latent does to the
answers says what it stands for, where the behaviour's own prompts would suggest it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sae_attr.text.pairs import Prompt

NEUTRAL = "neutral"  # the split of a prompts file, and the source of answers
_TEXTS = (
    "Tell me about your day.",
    "Write a short story about a lighthouse.",
    "What can I cook with potatoes and eggs?",
    "How do clouds form?",
    "Describe a street in the morning.",
    "Give me some ideas for a weekend.",
    "What is a good way to learn a language?",
    "Write a few lines about the sea.",
    "How does a bicycle stay upright?",
    "Tell me something about trees.",
    "What should I know about maps?",
    "Write a letter to a friend.",
    "How do I choose a book?",
    "Describe a room with a piano.",
    "What makes bread rise?",
    "Tell me about a famous bridge.",
)


def neutral_prompts(like: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Returns the package's neutral prompts: messages where the given prompts are
    messages, else texts.

    Args:
      like: prompts of the study.
    """
    as_texts = all(isinstance(prompt.prompt, str) for prompt in like)
    prompts = []
    for number, text in enumerate(_TEXTS):
        message = ({"role": "user", "content": text},)
        prompts.append(Prompt(f"neutral.{number}", text if as_texts else message))
    return tuple(prompts)
