"""Batch generation of clips from a file of prompts; `emu generate-videos` does the same.

    python generate_videos.py prompts.jsonl --model digits --output clips

A line of prompts.jsonl is {"prompt": "a handwritten seven moving left"}, and if wished "seed", "size": [height, width], "frames", "fps",
"first_frames" (picture files that the clip begins with), "guidance_scale", "negative_prompt", "temperature", "top_k", "top_p". Run it
again to go on after a stop; --help tells all options.
"""

import sys

from emu.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["generate-videos", *sys.argv[1:]]))
