"""From prompts to captions: cleaning, T5 encoding with a disk cache, special tokens, one caption per chunk."""
