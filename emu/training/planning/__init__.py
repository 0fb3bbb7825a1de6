"""What a training run will take, known before it begins: memory, communication, time."""
