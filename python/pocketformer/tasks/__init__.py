"""From texts to token ids, through the engine, to what a task is about."""
