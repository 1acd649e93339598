"""Small parts: journal, name server, proxy configuration, image configuration, id ranges."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.core.errors import LeaseholdError
from leasehold.deploy import logs
from leasehold.deploy.ingress import config
from leasehold.deploy.ingress.options import MOST_TRIES, Options, Shape
from leasehold.deploy.ingress.table import PLAIN, SEVERAL, Server, Table, Target
from leasehold.deploy.keeper.journal import Journal
from leasehold.deploy.net import nameserver, rules
from leasehold.deploy.oci import bundle, image, seccomp
from leasehold.deploy.oci.image import User


def test_a_journal_survives_a_torn_last_line(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    journal = Journal(path)
    journal.record("a", {"pid": 1})
    journal.record("b", {"pid": 2})
    journal.record("a", {"pid": 3})
    journal.forget("b")
    journal.close()
    with open(path, "ab") as file:
        file.write(b'{"id":"c","pid":')
    again = Journal(path)
    assert again.entries == {"a": {"id": "a", "pid": 3}}
    again.record("d", {"pid": 4})
    again.close()
    third = Journal(path)
    assert set(third.entries) == {"a", "d"}
    third.close()


def _query(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0"
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!HH", kind, 1)


def test_names_are_asked_and_answered() -> None:
    data = _query("Web")
    name, kind, end = nameserver.question(data)
    assert (name, kind, end) == ("web", 1, len(data))
    answer = nameserver.reply(data, end, nameserver.NOERROR, ["10.0.0.1", "10.0.0.2"])
    number, flags, questions, answers = struct.unpack_from("!HHHH", answer)
    assert (number, flags & 0x800F, questions, answers) == (7, 0x8000, 1, 2)
    assert answer.endswith(bytes([10, 0, 0, 2]))


@given(st.binary(max_size=80))
def test_no_packet_breaks_the_name_server(data: bytes) -> None:
    try:
        nameserver.question(data)
    except (ValueError, IndexError, struct.error):
        pass


def test_the_proxy_comes_up_with_what_it_had() -> None:
    table = Table(
        {
            "a web 80": Target(
                3,
                ["a.test", "b.test"],
                {1: Server("10.0.0.1", 80), 2: Server("10.0.0.2", 80)},
                [2],
                Options(max_body=5, tries=30),
            )
        },
        pool=4,
        slots=3,
        shapes={3: Shape.of(Options(tries=30))},
    )
    text = config.render(table, config.Frame(threads=1, maxconn=100))
    backend = text[text.index("backend b3") :]
    assert "server s1 10.0.0.1:80 tcp-ut" in backend
    assert "server s2 10.0.0.2:80 weight 0 tcp-ut" in backend
    assert "server s3 0.0.0.0:1 disabled tcp-ut" in backend
    assert "retries 29" in backend
    maps = config.maps(table, frozenset())
    assert maps["hosts.map"] == "a.test b3\nb.test b3\n"
    assert maps["body.map"] == "b3 5\n"
    assert maps["read.map"] == ""
    assert table.free_backend(PLAIN) == 0


def test_a_backend_is_chosen_that_needs_no_reload() -> None:
    table = Table()
    plain, several = table.free_backend(PLAIN), table.free_backend(SEVERAL)
    assert plain is not None
    assert several is not None
    assert (table.shape(plain), table.shape(several)) == (PLAIN, SEVERAL)
    odd = Shape.of(Options(tries=7))
    number = table.free_backend(odd)
    assert number is not None
    assert table.reshape(number, odd)
    assert not table.reshape(number, odd)
    assert table.free_backend(odd) == number, "kept for the next of its kind"
    assert Table(pool=0).free_backend(PLAIN) is None


def test_the_tenants_words_for_retries_become_the_proxys() -> None:
    assert Shape.of(Options()).retries == 2, "three tries are two after the first"
    assert Shape.of(Options(tries=0)).retries == MOST_TRIES - 1
    assert Shape.of(Options(cases=("off",))) == Shape(0, "none")
    both = Shape.of(Options(replicas=2)).retry_on
    assert both == "conn-failure empty-response junk-response response-timeout"
    assert Shape.of(Options(cases=("503", "429"))).retry_on == "503"
    # No try is begun after next_timeout: neither by pauses, slow connections nor slow answers.
    hurried = Shape.of(Options(replicas=2, tries=9, next_timeout_ms=2_000))
    assert (hurried.retries, hurried.connect_ms) == (2, 666)
    assert "response-timeout" not in hurried.retry_on


def test_commands_follow_the_usual_rule() -> None:
    config_ = {"config": {"Entrypoint": ["/e"], "Cmd": ["a", "b"]}}
    assert image.command(config_, entrypoint=None, args=None) == ["/e", "a", "b"]
    assert image.command(config_, entrypoint=None, args=["x"]) == ["/e", "x"]
    assert image.command(config_, entrypoint=["/c"], args=None) == ["/c"]
    assert image.command(config_, entrypoint=["/c"], args=["x"]) == ["/c", "x"]
    with pytest.raises(LeaseholdError, match="command"):
        image.command({}, entrypoint=None, args=None)


def test_the_manifests_environment_wins() -> None:
    config_ = {"config": {"Env": ["A=image", "B=image"]}}
    found = image.environment(config_, ["A=mine", "C=x=y"], {"B": "told", "C": "told"})
    assert dict(e.split("=", 1) for e in found) == {
        "PATH": image.DEFAULT_PATH,
        "A": "mine",
        "B": "told",
        "C": "x=y",
    }


def test_users_come_from_the_topmost_layer_and_never_through_links(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    for layer in (low, high):
        (layer / "etc").mkdir(parents=True)
    (low / "etc/passwd").write_text("app:x:10:20::/home/app:/bin/sh\n")
    (low / "etc/group").write_text("app:x:20:\nextra:x:30:app\n")
    assert image.resolve_user("app", [low]) == User(10, 20, (30,), "/home/app")
    assert image.resolve_user("app:extra", [low]) == User(10, 30, (), "/home/app")
    assert image.resolve_user("55", [low]) == User(55, 0)
    (high / "etc/passwd").symlink_to("/etc/passwd")
    assert image.resolve_user("app", [low, high]).uid == 10
    with pytest.raises(LeaseholdError, match="passwd"):
        image.resolve_user("nobody-here", [low, high])


def test_health_checks_of_images() -> None:
    check = {"Test": ["CMD-SHELL", "curl -f /"], "Interval": 5_000_000_000, "Retries": 2}
    found = image.health_check({"config": {"Healthcheck": check}})
    assert found is not None
    assert found.command == ("/bin/sh", "-c", "curl -f /")
    assert (found.interval, found.retries) == (5.0, 2)
    assert image.health_check({"config": {"Healthcheck": {"Test": ["NONE"]}}}) is None
    assert image.health_check({}) is None


def test_a_bundle_gives_nothing_away() -> None:
    plan = bundle.Plan(
        rootfs="/r",
        netns="/n",
        cgroup="/leasehold/x",
        hostname="web-0",
        args=["/bin/x"],
        env=[],
        limits=bundle.Limits(500, 64 << 20, 100),
        idmap=(2_000_000, 65_536),
    )
    made = bundle.config(plan)
    assert made["process"]["noNewPrivileges"] is True
    kinds = {entry["type"] for entry in made["linux"]["namespaces"]}
    assert kinds == {"pid", "mount", "ipc", "uts", "cgroup", "network", "user"}
    assert made["linux"]["resources"]["cpu"] == {"quota": 50_000, "period": 100_000, "shares": 512}
    assert made["linux"]["resources"]["pids"] == {"limit": 100}
    sources = [m["source"] for m in made["mounts"] if m["type"] == "bind"]
    assert sources == ["/sys/devices/system/cpu"]
    json.dumps(made)


def test_the_system_call_filter_refuses_by_default() -> None:
    profile = seccomp.profile()
    assert profile is not None
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {n for rule in profile["syscalls"] for n in rule["names"]
               if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule}  # fmt: skip
    refused = {"mount", "unshare", "setns", "bpf", "ptrace", "keyctl", "clone3", "clone",
               "io_uring_setup", "userfaultfd", "open_by_handle_at", "kexec_load"}  # fmt: skip
    assert not allowed & refused
    assert {"read", "futex", "execve", "epoll_wait", "openat", "rseq"} <= allowed


def test_logs_outlive_their_lease_by_the_retention_only(tmp_path: Path) -> None:
    for name, age in (("old", 100), ("new", 1), ("alive", 100)):
        file = tmp_path / name / "web/0.log"
        file.parent.mkdir(parents=True)
        file.write_text("x")
        for path in (file, file.parent, tmp_path / name):
            os.utime(path, (1000 - age, 1000 - age))
    assert logs.expire(tmp_path, {"alive"}, 1000 - 50) == ["old"]
    assert {p.name for p in tmp_path.iterdir()} == {"new", "alive"}
    assert logs.expire(tmp_path / "none", set(), 0) == []


def test_rules_name_every_part_of_a_replica() -> None:
    a = rules.Attachment("lr7", "10.213.0.9", 3, "none")
    text = rules.node_table("up", [a], [rules.Publication("udp", 30000, "10.213.0.9", 53)])
    assert "lr7 . 10.213.0.9" in text
    assert "lr7 : jump egress_none" in text
    assert "udp . 30000 : 10.213.0.9 . 53" in text
    assert rules.attach(a).count("add element") == rules.detach(a).count("delete element") == 4
