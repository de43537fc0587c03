"""What a run would need, found out without its weights: sizes, memory, tokens, time."""
