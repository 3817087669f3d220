"""What training is made of: schedule, optimizer, step, checkpoints, processes."""
