"""Which tests stay together when they run in several processes."""


def place_of(test: str) -> str:
    """What one worker of `--dist loadfile` takes whole: a file, or the folder whose files share ranks or a Slurm."""
    file = test.partition("::")[0]
    folder, _, name = file.rpartition("/")
    shared = folder.endswith("multiprocess") or name.startswith("test_slurm")
    return folder if shared else file
