"""benchmarks/placement.py: the two nodes are two, and the committed numbers say what the table shows."""

import json
import subprocess
import sys

import placement as bench
import pytest


def test_the_cable_counts_what_crosses_it_and_is_gone_afterwards():
    with bench.two_nodes() as (nodes, address):
        if not nodes[0].cable:
            pytest.skip("network namespaces cannot be made here")
        one, other = nodes
        read = f"open('/sys/class/net/{other.cable}/statistics/rx_bytes').read()"
        count = [*other.prefix, sys.executable, "-c", f"print(int({read}))"]
        send = f"import socket; socket.socket(2, 2).sendto(bytes(1000), ('{bench.ADDRESSES[1]}', 9))"
        before = int(subprocess.check_output(count))
        subprocess.run([*one.prefix, sys.executable, "-c", send], check=True)
        assert 1000 <= int(subprocess.check_output(count)) - before < 2000
        assert address == bench.ADDRESSES[0] and one != other
    left = subprocess.check_output(["ip", "netns", "list"], text=True).split()
    assert not {one.prefix[3], other.prefix[3]} & set(left)


def test_the_committed_numbers(root):
    report = json.loads((root / "benchmarks" / "results" / "placement_cpu.json").read_text())
    cases = {(case["placement"], case["window"]): case for case in report["cases"]}
    assert len(cases) == 2 * len(bench.PLACEMENTS) == len(bench.table(report).splitlines()) - 1
    for placement in bench.PLACEMENTS:
        every, once = cases[placement, False], cases[placement, True]
        for key in ("bytes_within_nodes", "bytes_between_nodes"):
            assert every[key] == report["micro_batches"] * once[key]
        assert (every["bytes_between_nodes"] == 0) == (placement in ("node", "replica"))
        for case in (every, once):  # the counted bytes are those on the cable, but for headers and barriers
            assert 0 <= case["bytes_on_cable"] - case["bytes_between_nodes"] < 0.01 * report["teacher_bytes"] * 4
