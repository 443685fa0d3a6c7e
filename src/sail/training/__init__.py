"""The parts of the trainer: arguments, reference, step preparation, tracking, checkpoints, the run folder."""
