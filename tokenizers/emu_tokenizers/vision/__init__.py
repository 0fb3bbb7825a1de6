"""The vision tokenizer: pictures and clips to codes and back. Its public names are those of `emu_tokenizers`.

Nothing is loaded here: a process that only encodes takes `emu_tokenizers.vision.coder`, which loads in half the time.
"""
