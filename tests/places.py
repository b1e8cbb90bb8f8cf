"""Which tests stay together when they run in several processes."""


def place_of(test: str) -> str:
    """What one worker of `--dist loadfile` takes whole: a file, or the folder whose files share ranks or a Slurm."""
    file = test.partition("::")[0]
    folder, _, name = file.rpartition("/")
    shared = folder.endswith("multiprocess") or name.startswith("test_slurm")
    return folder if shared else file


# Places that take long by themselves, the longest first. They are begun first, so that workers end together.
LONG = (
    "tests/cluster",  # a Slurm
    "tests/multiprocess",
    "tests/end_to_end/test_readme.py",
    "tests/cluster/test_requeue.py",
    "tests/end_to_end/test_four_systems.py",
    "tests/end_to_end/test_resume.py",
    "tests/cluster/test_launchers.py",
    "tests/cluster/test_plan_is_true.py",
    "tests/end_to_end/test_one_rank_fails.py",
    "tests/end_to_end/test_kill.py",
    "tests/end_to_end/test_resize.py",
    "tests/unit/benchmarks/test_hot_path.py",
    "tests/unit/benchmarks/test_scaling.py",
    "tests/unit/benchmarks/test_device_check.py",
    "tests/unit/benchmarks/test_step.py",
    "tests/golden/test_golden.py",
    "tests/unit/losses/kernels/test_oldest_triton.py",
)


def turn_of(test: str) -> int:
    """When it comes."""
    place = place_of(test)
    return LONG.index(place) if place in LONG else len(LONG)
