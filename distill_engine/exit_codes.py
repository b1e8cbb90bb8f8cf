"""What the exit code of a run tells the launcher."""

DONE = 0
FAILED = 1
STOPPED_AND_SAVED = 75  # asked to stop, checkpointed: start the same command again to go on
BAD_INPUT = 78  # recipe, configuration or data: starting again cannot help
