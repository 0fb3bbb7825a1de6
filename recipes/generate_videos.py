"""Batch generation of clips from prompts; `emu generate-videos` does the same.

    python generate_videos.py prompts.jsonl --model digits --output clips
    python generate_videos.py "a handwritten seven moving left" --output clips

A line of prompts.jsonl is {"prompt": "a handwritten seven moving left"}, and optionally "seed", "size": [height, width], "frames", "fps",
"first_frames" (what the clip starts from: a picture, an animation or a video, or a list of pictures), "guidance_scale",
"negative_prompt", "temperature", "top_k", "top_p"; a plain-text file has one prompt per line, and - is standard input. Run it again to
resume; --format webdataset writes tar files; processes launched by torchrun or srun share the lines; --help lists all options.
"""

import sys

from emu.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["generate-videos", *sys.argv[1:]]))
