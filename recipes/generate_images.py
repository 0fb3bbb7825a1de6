"""Batch generation of images from prompts; `emu generate-images` does the same.

    python generate_images.py prompts.jsonl --model digits --output images
    python generate_images.py "a handwritten seven" "the digit two" --output images

A line of prompts.jsonl is {"prompt": "a handwritten seven"}, and optionally "seed", "size": [height, width], "guidance_scale",
"negative_prompt", "temperature", "top_k", "top_p"; a plain-text file has one prompt per line, and - is standard input. Run it again to
resume; --format webdataset writes tar files; processes launched by torchrun or srun share the lines; --help lists all options.
"""

import sys

from emu.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["generate-images", *sys.argv[1:]]))
