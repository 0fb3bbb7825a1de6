"""Pictures and clips from files to [-1, 1] tensors and back; nothing else in the house opens, converts or measures them."""
