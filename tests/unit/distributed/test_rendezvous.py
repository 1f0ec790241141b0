"""How the ranks meet, and what is said of those that do not come."""

import os
import threading
from datetime import timedelta

import pytest
from support.hosts import wait

from intel_ft.distributed import rendezvous
from intel_ft.distributed.launch.launcher import free_port
from intel_ft.errors import EnvironmentProblem

HERE = "127.0.0.1"


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.1)
    monkeypatch.setattr(rendezvous, "_AGAIN", 0.1)
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    # Ranks are processes, each with its own count of meetings; here they are threads.
    monkeypatch.setattr(rendezvous, "_meetings", iter([0] * 9))


def start(rank, size, port, results, seconds=60.0):
    def run():
        try:
            results[rank] = rendezvous.meet(rank, size, (HERE, port), timedelta(seconds=seconds))
        except RuntimeError as error:
            results[rank] = error

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_rank_that_is_late_is_named_and_then_they_meet(caplog):
    port, stores = free_port(), {}
    first = [start(1, 3, port, stores)]
    wait(lambda: f"rank 1 of 3 still waits for rank 0 at {HERE}:{port}" in caplog.text)
    first.append(start(0, 3, port, stores))
    wait(lambda: "waiting for rank 2 of 3 for " in caplog.text)
    for thread in (*first, start(2, 3, port, stores)):
        thread.join()
    stores[2].set("key", "value")
    assert [stores[rank].get("key") for rank in range(3)] == [b"value"] * 3


def test_a_rank_that_never_comes_ends_the_wait(caplog):
    stores = {}
    start(0, 4, free_port(), stores, seconds=0.3).join()
    assert str(stores[0]).startswith("ranks 1, 2, 3 of 4 did not arrive within ")
    assert "waiting for ranks 1, 2, 3 of 4" in caplog.text


def test_each_attempt_of_torchrun_meets_anew(monkeypatch):
    """Its store has the keys of the attempt before, so nobody would be waited for."""
    from torch.distributed import TCPStore

    port = free_port()
    agent = TCPStore(HERE, port, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for attempt in ("0", "1"):
        monkeypatch.setitem(os.environ, "TORCHELASTIC_RESTART_COUNT", attempt)
        stores = {}
        thread = start(1, 2, port, stores)
        thread.join(0.2)
        assert stores == {}
        start(0, 2, port, stores).join()
        thread.join()
        assert not stores[1].check(["key"])
        stores[0].set("key", "value")
    assert agent is not None


@pytest.mark.parametrize("port", ["99999", "0", "-1", "no", ""])
def test_a_port_that_is_none(port):
    with pytest.raises(EnvironmentProblem, match=f"MASTER_PORT={port} on "):
        rendezvous.check_address(HERE, port)


def test_a_name_without_an_address_is_an_error_at_once():
    with pytest.raises(EnvironmentProblem, match=r"MASTER_ADDR=no\.such\.host\.invalid cannot be "):
        rendezvous.check_address("no.such.host.invalid", "29500")
    assert rendezvous.check_address("localhost", "29500") == 29500


def test_agents_of_two_hosts_do_not_count_the_same_restarts(monkeypatch):
    """After a rank was killed, only its own agent's count is one higher."""
    from torch.distributed import HashStore

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    store, attempts = HashStore(), []
    for count in ("0", "0", "1", "0"):
        monkeypatch.setitem(os.environ, "TORCHELASTIC_RESTART_COUNT", count)
        attempts.append(rendezvous._attempt(store, 2))
    assert attempts == ["hosts/0", "hosts/0", "hosts/1", "hosts/1"]
