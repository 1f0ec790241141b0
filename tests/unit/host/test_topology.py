"""Cores, nodes and limits read from the trees of machines that are not here; and who gets what."""

import os
import platform
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sys_trees import (
    first_node_offline,
    memory_apart_from_cores,
    snc4_with_hbm,
    two_modules_of_amd,
    two_sockets_of_four_nodes,
    write,
    write_machine,
    write_node,
)

from intel_ft.distributed import binding
from intel_ft.distributed.binding import format_list
from intel_ft.distributed.placement import places, ranks_per_host
from intel_ft.host import topology
from intel_ft.host.launcher_env import INTEL_MPI, LauncherEnv
from intel_ft.host.topology import Core, Topology


@pytest.fixture(autouse=True)
def environment():
    """One without limits or wishes; what a rank sets there is taken away again."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith(("SLURM", "CCL_WORKER"))]:
        del os.environ[name]
    yield os.environ
    os.environ.clear()
    os.environ.update(before)


def everything(root):
    return topology.read(root, allowed=set(range(1024)))


def test_two_sockets_of_four_nodes_with_hyper_threading(tmp_path):
    host = everything(two_sockets_of_four_nodes(tmp_path))
    assert (host.sockets, len(host.nodes), len(host.cores), host.usable) == (2, 8, 112, 112)
    assert host.cores[0] == Core(0, 0, (0, 112))
    assert host.cores[-1] == Core(1, 7, (111, 223))
    assert sum(host.memory.values()) == pytest.approx(512)
    assert ranks_per_host(host)[0] == 8
    shares = places(host, 8)
    assert [format_list(place.cpus) for place in shares[:2]] == ["0-13", "14-27"]
    assert [place.nodes for place in shares] == [(n,) for n in range(8)]
    assert [place.nodes for place in places(host, 2)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert all(len(place.nodes) == 1 and len(place.cpus) == 7 for place in places(host, 16))


def test_hbm_nodes_have_memory_and_no_ranks(tmp_path):
    host = everything(snc4_with_hbm(tmp_path))
    assert host.nodes == (0, 1, 2, 3)
    assert set(host.memory) == set(range(8))
    assert ranks_per_host(host)[0] == 4
    assert [place.nodes for place in places(host, 4)] == [(0,), (1,), (2,), (3,)]


def test_two_cores_of_an_amd_module_are_two_cores(tmp_path):
    host = everything(two_modules_of_amd(tmp_path))
    assert [core.threads for core in host.cores] == [(0,), (1,), (2,), (3,)]
    assert (host.usable, host.threads_per_core) == (4, 1)


def test_emulated_nodes_share_their_cpus_and_are_one(tmp_path):
    """`numa=fake=2` on two sockets: nodes 0 and 1 list the first socket's CPUs, 2 and 3 the second.

    A rank that takes a CPU for the last node's alone uses half of the memory next to it.
    """
    root = write_machine(tmp_path, [("0-1", 8), ("0-1", 8), ("2-3", 8), ("2-3", 8)], 2)
    host = everything(root)
    assert [core.node for core in host.cores] == [0, 0, 2, 2]
    assert ranks_per_host(host)[0] == 2
    assert [place.nodes for place in places(host, 2)] == [(0, 1), (2, 3)]


def test_a_node_that_lists_one_cpu_of_another_node(tmp_path):
    host = everything(write_machine(tmp_path, [("0-7", 8), ("0", 8)], 2))
    assert host.nodes == (0,)
    assert places(host, 1)[0].nodes == (0,)


def test_memory_is_of_the_nodes_next_to_the_cores(tmp_path):
    host = everything(memory_apart_from_cores(tmp_path))
    assert set(host.memory) == {2, 3, 4, 5}
    assert [place.nodes for place in places(host, 2)] == [(2,), (3,)]  # not 4 and 5: slower
    for node, row in ((4, "28 17 28 17 10 28"), (5, "17 28 17 28 28 10")):
        write_node(tmp_path, node, "", 740, row)
    assert [place.nodes for place in places(everything(tmp_path), 2)] == [(2,), (3,)]


def test_the_nearest_memory_by_distance_where_no_initiators_are_known(tmp_path):
    root = write_machine(tmp_path, [("0-1", 0), ("2-3", 4), ("", 4)], 3)
    write_node(root, 0, "0-1", 0, "10 21 17")
    assert places(everything(root), 2)[0].nodes == (2,)


def test_memory_of_a_node_that_is_offline_is_not_used(tmp_path):
    host = everything(first_node_offline(tmp_path))
    assert [core.threads for core in host.cores] == [(2,), (4,), (1,), (3,), (5,)]
    assert set(host.memory) == {1}
    assert [place.nodes for place in places(host, 2)] == [(), (1,)]
    assert ranks_per_host(host)[0] == 2  # the cores without memory are a socket


def test_ranks_get_equal_shares_of_nodes_that_differ(tmp_path):
    """All ranks wait for the one with the fewest cores."""
    host = everything(write_machine(tmp_path, [("0-1", 8), ("2-5", 8), ("6-11", 8)], 1))
    shares = places(host, 3)
    assert [format_list(place.cpus) for place in shares] == ["0-3", "4-7", "8-11"]
    assert [place.nodes for place in shares] == [(0, 1), (1, 2), (2,)]


def test_a_core_less_does_not_split_nodes(tmp_path):
    host = everything(write_machine(tmp_path, [("0-5", 8), ("6-12", 8)], 1))
    assert [place.nodes for place in places(host, 2)] == [(0,), (1,)]


def test_three_nodes_a_socket_that_cannot_be_alike(tmp_path):
    """128 cores a socket in SNC-3 mode, with hyper-threading."""
    lists = ("0-42", "43-85", "86-127", "128-170", "171-213", "214-255")
    nodes = []
    for cpus in lists:
        first, last = map(int, cpus.split("-"))
        nodes.append((f"{cpus},{first + 256}-{last + 256}", 64))
    host = everything(write_machine(tmp_path, nodes, 3, siblings=256))
    assert (len(host.cores), host.sockets, host.threads_per_core) == (256, 2, 2)
    assert ranks_per_host(host)[0] == 6
    shares = places(host, 6)
    assert [place.nodes for place in shares] == [(node,) for node in range(6)]
    assert [format_list(place.cpus) for place in shares] == list(lists)
    assert [place.nodes for place in places(host, 2)] == [(0, 1, 2), (3, 4, 5)]


def test_cores_of_one_and_of_two_threads(tmp_path):
    """A hybrid CPU: two performance cores with two threads each, four efficient cores with one."""
    root = write_machine(tmp_path, [("0-7", 16)], 1)
    for cpu in range(8):
        pair = f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}" if cpu < 4 else str(cpu)
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        write(folder / "thread_siblings_list", pair)
        write(folder / "core_id", str(4 * (cpu // 2) if cpu < 4 else 4 + cpu))
    host = everything(root)
    assert [core.threads for core in host.cores] == [(0, 1), (2, 3), (4,), (5,), (6,), (7,)]
    assert (host.usable, host.threads_per_core) == (6, 2)
    assert [place.cpus for place in places(host, 2)] == [(0, 2, 4), (5, 6, 7)]


def test_a_cpuset_of_one_node_and_the_memory_of_another(tmp_path):
    """As a container with --cpuset-cpus and --cpuset-mems."""
    root = write_machine(tmp_path, [("0-3", 8), ("4-7", 16), ("8-11", 32)], 1)
    write_node(root, 0, "0-3", 8, "10 21 31")
    write_node(root, 1, "4-7", 16, "21 10 21")
    write_node(root, 2, "8-11", 32, "31 21 10")
    write(root / "proc/self/status", "Cpus_allowed_list:\t8-11\nMems_allowed_list:\t0-1\n")
    host = topology.read(root, allowed={8, 9, 10, 11})
    assert host.memory == {0: 8, 1: 16}
    assert [place.nodes for place in places(host, 2)] == [(1,), (1,)]  # the nearer one of the two


@pytest.mark.parametrize("nodes", [(0,), (1, 63), (64,), (3, 130)])
def test_the_mask_of_any_number_of_nodes(nodes):
    mask, bits = binding._node_mask(nodes)
    assert bits == 64 * len(mask) > max(nodes)
    assert {n for n in range(bits) if mask[n // 64] >> n % 64 & 1} == set(nodes)


def test_a_slurm_job_of_some_cores(tmp_path):
    """What Slurm bound this process to is all there is, and both threads of a core are one core."""
    root = two_sockets_of_four_nodes(tmp_path)
    host = topology.read(root, allowed={0, 1, 112, 113, 56, 57})
    assert [core.threads for core in host.cores] == [(0, 112), (1, 113), (56,), (57,)]
    assert host.nodes == (0, 4)
    assert [place.cpus for place in places(host, 2)] == [(0, 1), (56, 57)]


def test_a_quota_anywhere_above_counts(tmp_path):
    host = everything(two_sockets_of_four_nodes(tmp_path, quota="450000 100000"))
    assert (host.quota, host.usable) == (4.5, 4)
    assert ranks_per_host(host)[0] == 1
    assert sum(len(place.cpus) for place in places(host, 2)) == 4
    with pytest.raises(ValueError, match="5 ranks, but 4 usable cores"):
        places(host, 5)


HERE = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": platform.node().partition(".")[0]}
ELSEWHERE = HERE | {"SLURMD_NODENAME": "another"}
# What Slurm 22.05 gives a job of `--threads-per-core=1 -c 4`, and `srun` in it.
ONE_THREAD = HERE | {"SLURM_JOB_CPUS_PER_NODE": "4", "SLURM_THREADS_PER_CORE": "1"}


def eight_cores(root, **more):
    """Two sockets of four cores with two threads each."""
    return write_machine(root, [("0-3,8-11", 1), ("4-7,12-15", 1)], 1, siblings=8, **more)


@pytest.mark.parametrize(
    ("variables", "cores"),
    [
        (HERE | {"SLURM_CPUS_ON_NODE": "4", "SLURM_JOB_CPUS_PER_NODE": "4"}, 2),
        (HERE | {"SLURM_CPUS_ON_NODE": "4", "SLURM_JOB_CPUS_PER_NODE": "12(x2)"}, 2),  # a step
        (HERE | {"SLURM_CPUS_ON_NODE": "12", "SLURM_JOB_CPUS_PER_NODE": "12,4"}, 6),
        (HERE | {"SLURM_CPUS_ON_NODE": "12", "SLURM_CPUS_PER_TASK": "4"}, 6),  # for three tasks
        (HERE | {"SLURM_CPUS_ON_NODE": "1"}, 1),
        (ONE_THREAD | {"SLURM_CPUS_ON_NODE": "4"}, 4),
        (ONE_THREAD | {"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_ID": "0"}, 4),
        # Intel MPI's mpirun takes all variables along to other hosts.
        (ELSEWHERE | {"SLURM_CPUS_ON_NODE": "2", "SLURM_JOB_CPUS_PER_NODE": "12(x2)"}, 6),
        (ELSEWHERE | {"SLURM_CPUS_ON_NODE": "2", "SLURM_JOB_CPUS_PER_NODE": "12,4"}, 8),
        (HERE | {"SLURM_CPUS_ON_NODE": "8"}, 8),  # all, where a node is configured by its cores
        (HERE | {"SLURM_CPUS_ON_NODE": "16"}, 8),
        ({"SLURMD_NODENAME": HERE["SLURMD_NODENAME"], "SLURM_CPUS_ON_NODE": "4"}, 8),  # no job
        # salloc's shell, on a host that is none of the job's
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_CPUS_PER_NODE": "4"}, 8),
        *((HERE | {"SLURM_CPUS_ON_NODE": text}, 8) for text in ("", "0", "-4", "4.5", "many")),
        (HERE | {"SLURM_CPUS_ON_NODE": "4", "SLURM_THREADS_PER_CORE": "0"}, 2),
    ],
)
def test_slurm_without_cpusets_says_how_many(variables, cores, tmp_path, environment):
    root = eight_cores(tmp_path)
    environment.update(variables)
    host = everything(root)
    assert (host.usable, len(host.cores)) == (cores, 8)
    assert cores == 8 or host.quota_by == topology.SLURM


def test_slurms_cpuset_and_a_smaller_quota_have_the_say(tmp_path, environment):
    root = eight_cores(tmp_path, quota="300000 100000")
    environment.update(HERE | {"SLURM_CPUS_ON_NODE": "2"})
    assert topology.read(root, allowed={0, 1, 2, 8, 9, 10}).usable == 3
    assert everything(root).usable == 1
    environment["SLURM_CPUS_ON_NODE"] = "12"
    host = everything(root)
    assert (host.quota, host.quota_by) == (3, "the control group")


def test_a_bare_tree_is_one_node_of_what_is_allowed(tmp_path):
    """As in a container that hides /sys."""
    mine = os.sched_getaffinity(0)
    host = topology.read(tmp_path)
    assert [core.threads for core in host.cores] == [(cpu,) for cpu in sorted(mine)]
    assert host.nodes == (0,)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 20),
    st.none() | st.floats(0.5, 40),
)
def test_places_never_overlap_and_nobody_goes_without(cores_of_node, ranks, quota):
    numbers = iter(range(100))
    cores = tuple(
        Core(0, node, (next(numbers),))
        for node, count in enumerate(cores_of_node)
        for _ in range(count)
    )
    host = Topology(cores, {}, quota)
    if ranks > host.usable:
        with pytest.raises(ValueError, match="usable core"):
            places(host, ranks)
        return
    shares = places(host, ranks)
    taken = [cpu for place in shares for cpu in place.cpus]
    assert len(shares) == ranks
    assert all(place.cpus for place in shares)
    assert len(taken) == len(set(taken)) <= max(ranks, host.usable)


def test_lists_of_cpus():
    assert topology.parse_list("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert topology.parse_list("") == set()
    assert format_list([0, 1, 2, 3, 8, 10, 11]) == "0-3,8,10-11"


def test_bound_means_fewer_than_the_parent_has():
    mine = os.sched_getaffinity(0)
    if len(mine) < 2:
        pytest.skip("one CPU cannot be made fewer")
    code = "from intel_ft.host.topology import is_bound; print(is_bound())"
    current = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{min(mine)}]); {code}"]
    assert subprocess.run(current, capture_output=True, text=True, check=True).stdout == "True\n"
    free = [sys.executable, "-c", code]
    assert subprocess.run(free, capture_output=True, text=True, check=True).stdout == "False\n"


class Kernel:
    """A machine of `tree` and the CPUs of this process, of its parent, and of its cpuset."""

    def __init__(self, monkeypatch, tree, current, parent, cpuset, ranks, rank=0):
        self.current, self.parent, self.cpuset = set(current), set(parent), set(cpuset)
        monkeypatch.setattr(os, "getppid", lambda: 7)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(self.of(pid)))
        monkeypatch.setattr(os, "sched_setaffinity", self.bind)
        monkeypatch.setattr(topology, "_bound_to", set())
        read = topology.read
        monkeypatch.setattr(topology, "read", lambda allowed=None: read(tree, allowed))
        for name in ("WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in (("SIZE", ranks), ("RANK", rank)):
            monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", str(value))
            monkeypatch.setenv(f"OMPI_COMM_WORLD_LOCAL_{name}", str(value))

    def of(self, pid):
        return self.parent if pid == 7 else self.current

    def bind(self, _, cpus):
        self.current = set(cpus) & self.cpuset


ALL = range(16)  # two sockets of eight cores


@pytest.mark.parametrize(
    ("current", "cpuset", "ranks", "rank", "expected"),
    [
        (ALL, ALL, 2, 1, range(8, 16)),  # nobody bound it
        (range(8, 16), ALL, 2, 1, range(8, 16)),  # its launcher did
        (range(8, 16), ALL, 4, 1, range(4, 8)),  # Open MPI: ranks 1 and 3 share the socket
        (range(8), ALL, 4, 3, range(12, 16)),
        (range(8), range(8), 2, 1, range(4, 8)),  # a Slurm job of half of a node, not bound
        (range(4, 8), range(8), 2, 1, range(4, 8)),  # and bound
        (range(3, 6), range(6), 4, 3, (4, 5)),  # cores that cannot be divided evenly
    ],
)
def test_ranks_that_a_launcher_put_on_the_same_cores_get_their_own(
    current, cpuset, ranks, rank, expected, tmp_path, monkeypatch
):
    tree = write_machine(tmp_path, [("0-7", 1), ("8-15", 1)], 1)
    kernel = Kernel(monkeypatch, tree, current, ALL, cpuset, ranks, rank)
    monkeypatch.setattr(binding, "_prefer_memory", lambda place: "")
    started = LauncherEnv(rank, ranks, rank, ranks, "Open MPI")
    by_launcher = set(current) == set(expected)
    assert topology.is_bound() == by_launcher
    assert kernel.current == set(current)  # looking changes nothing
    [decision] = binding.bind(started, "auto")
    assert kernel.current == set(expected)
    assert decision.value == format_list(sorted(expected))
    assert ("the launcher bound" in decision.reason) == by_launcher
    assert topology.is_bound()  # backends.cpu asks later


def sixteen_cores(monkeypatch, root, ranks, rank):
    monkeypatch.setattr(binding, "_prefer_memory", lambda place: "")
    tree = write_machine(root, [("0-7", 1), ("8-15", 1)], 1)
    return Kernel(monkeypatch, tree, ALL, ALL, ALL, ranks, rank)


def test_ranks_share_what_slurm_gives_without_a_place(tmp_path, monkeypatch, environment):
    """Another job may be bound to the first cores."""
    kernel = sixteen_cores(monkeypatch, tmp_path, 2, 1)
    started = LauncherEnv(1, 2, 1, 2, "Open MPI")
    environment.update(HERE | {"SLURM_CPUS_ON_NODE": "4"})
    [decision] = binding.bind(started, "auto")
    assert decision.value == "none" and kernel.current == set(ALL)
    assert decision.reason.startswith("Slurm allows 4 of 16 cores, but ")
    environment["SLURM_CPUS_ON_NODE"] = "16"
    assert binding.bind(started, "auto")[0].value == "8-15"


OFFLOAD = {"CCL_WORKER_OFFLOAD": "1"}


@pytest.mark.parametrize(
    ("variables", "current", "workers"),
    [
        (OFFLOAD, range(8, 15), "7,15"),
        (OFFLOAD | {"CCL_WORKER_COUNT": "2"}, range(8, 14), "6,7,14,15"),
        (OFFLOAD | {"CCL_WORKER_COUNT": "7"}, (8,), "1,2,3,4,5,6,7,9,10,11,12,13,14,15"),
        (OFFLOAD | {"CCL_WORKER_COUNT": "8"}, range(8, 16), None),
        (OFFLOAD | {"CCL_WORKER_COUNT": "many"}, range(8, 15), "7,15"),
        (OFFLOAD | {"CCL_WORKER_AFFINITY": "0,8-9"}, range(10, 16), "0,8-9"),
        (OFFLOAD | {"CCL_WORKER_AFFINITY": "auto"}, range(8, 16), "auto"),
        (OFFLOAD | {"CCL_WORKER_AFFINITY": "0-15"}, range(8, 16), "0-15"),
    ],
)
def test_oneccls_workers_get_the_last_cores(
    variables, current, workers, tmp_path, monkeypatch, environment
):
    kernel = sixteen_cores(monkeypatch, tmp_path, 2, 1)
    environment.update(variables)
    bound, left = binding.bind(LauncherEnv(1, 2, 1, 2, INTEL_MPI), "auto")
    assert kernel.current == set(current) and bound.value == format_list(list(current))
    assert environment.get("CCL_WORKER_AFFINITY") == workers
    assert (left.name, left.value) == ("CCL_WORKER_AFFINITY", workers or "")
    assert workers or left.reason.startswith("not set: ranks with 8 cores cannot spare 8 ")
    assert topology.is_bound()  # so that there are as many threads as cores


@pytest.mark.parametrize(
    ("offload", "collective", "launcher", "current"),
    [
        ("1", "ccl", "Open MPI", range(8, 15)),
        ("1", "auto", "Open MPI", range(8, 16)),  # over gloo
        ("1", "gloo", INTEL_MPI, range(8, 16)),
        ("0", "auto", INTEL_MPI, range(8, 16)),
        ("", "auto", INTEL_MPI, range(8, 16)),
    ],
)
def test_workers_that_nobody_starts_get_none(
    offload, collective, launcher, current, tmp_path, monkeypatch, environment
):
    kernel = sixteen_cores(monkeypatch, tmp_path, 2, 1)
    environment["CCL_WORKER_OFFLOAD"] = offload
    decisions = binding.bind(LauncherEnv(1, 2, 1, 2, launcher), "auto", collective)
    assert kernel.current == set(current)
    assert len(decisions) == 1 + (15 not in current) == 1 + ("CCL_WORKER_AFFINITY" in environment)


def test_workers_of_the_only_rank_of_a_host(tmp_path, monkeypatch, environment):
    kernel = sixteen_cores(monkeypatch, tmp_path, 1, 0)
    environment.update(OFFLOAD)
    assert binding.bind(LauncherEnv(0, 1, 0, 1, INTEL_MPI), "auto") == []  # there is nobody to tell
    bound, left = binding.bind(LauncherEnv(1, 2, 0, 1, INTEL_MPI), "auto")
    assert kernel.current == set(range(15)) and (bound.value, left.value) == ("0-14", "15")


def test_nodes_whose_cores_cannot_be_divided(tmp_path):
    root = write_machine(tmp_path, [("0", 1), ("1-3", 1)], 2)
    shares = places(everything(root), 4)
    assert [place.cpus for place in shares] == [(0,), (1,), (2,), (3,)]
