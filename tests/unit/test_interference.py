"""What else ran beside a measurement: from books recorded on several machines, and beside a core that really burns."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from evals import interference, kernel
from evals.interference import Interference, measure, problems, severity, unseen, watch
from evals.kernel import Throttling
from tests.support.disturbed import BUSY, COMPILER, QUIET, watching

VERSION_2 = {
    "proc/self/cgroup": "0::/system.slice/job.service\n",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 9000000\nuser_usec 8000000\nsystem_usec 1000000\n",
    "sys/fs/cgroup/system.slice/cpu.stat": "usage_usec 90\nnr_periods 100\nnr_throttled 40\nthrottled_usec 2500000\n",
    "sys/fs/cgroup/system.slice/job.service/cpu.stat": "usage_usec 9\nnr_periods 7\nnr_throttled 2\nthrottled_usec 9\n",
}
VERSION_1 = {
    "proc/self/cgroup": "9:name=systemd:/\n3:cpu,cpuacct:/docker/4f2a\n1:memory:/docker/4f2a\n0::/\n",
    "proc/self/mountinfo": "33 31 0:29 /docker/4f2a /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:30 /docker/4f2a /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 50\nnr_throttled 10\nthrottled_time 1500000000\n",
}
NAMESPACE = {  # a container that sees nothing but its own group, as the root
    "proc/self/cgroup": "0::/\n",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 9\nnr_periods 9\nnr_throttled 3\nthrottled_usec 700000\n",
}


def write(folder: Path, files: Mapping[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "proc", folder / "sys"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (VERSION_2, Throttling(seconds=2.5, periods=40)),
        (VERSION_1, Throttling(seconds=1.5, periods=10)),
        (NAMESPACE, Throttling(seconds=0.7, periods=3)),
        ({**VERSION_2, "proc/self/cgroup": "0::/\n"}, Throttling(seconds=0.0, periods=0)),
        ({"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": ""}, None),
        ({}, None),
    ],
    ids=["the group around ours", "version 1", "a container", "no limit", "not mounted", "nothing"],
)
def test_the_limit_that_holds_up_most(tmp_path: Path, files: dict[str, str], expected: Throttling | None) -> None:
    assert kernel.throttling(*write(tmp_path, files)) == expected


def stat(pid: int, parent: int, name: str, own: int, waited: int = 0, started: int = 100) -> str:
    """A line of /proc/PID/stat, times in ticks."""
    before = f"{pid} ({name}) S {parent} 1 1 0 -1 4194304 98 0 0 0"
    return f"{before} {own} 0 {waited} 0 20 0 1 0 {started} 3133440 358 18446744073709551615 0 0 0\n"


def test_a_process_table_with_names_that_hold_brackets(tmp_path: Path) -> None:
    lines = [stat(1, 0, "init", 5), stat(7, 1, "a) S 9 (b", 250, 50), stat(9, 7, "child", 100), stat(12, 1, "x", 1)]
    proc, _ = write(tmp_path, {f"proc/{line.split()[0]}/stat": line for line in lines})
    (proc / "40").mkdir()  # ended between the listing and the reading
    table = kernel.processes(proc)
    assert sorted(table) == [1, 7, 9, 12]
    assert (table[7].name, table[7].parent, table[7].own, table[7].waited) == ("a) S 9 (b", 1, 2.5, 0.5)
    assert kernel.family(table, [7, 99]) == {7, 9}


def test_only_the_processors_that_we_may_use_are_counted(tmp_path: Path) -> None:
    text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 20 30 1000 5 7 8 40 60 0\ncpu1 900 0 0 0 0 0 0 0 0 0\nintr 5\n"
    proc, _ = write(tmp_path, {"proc/stat": text})
    found = kernel.times([0], proc)
    assert found is not None
    assert [found.processes, found.steal, found.all] == pytest.approx([1.5, 0.4, 12.1])
    assert kernel.times([5], proc) is None, "nobody knows that processor"


def test_heat_frequency_pressure_and_swap(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu/cpu0"
    proc, sys_ = write(
        tmp_path,
        {
            f"{cpu}/thermal_throttle/package_throttle_total_time_ms": "2500\n",
            f"{cpu}/cpufreq/scaling_cur_freq": "1800000\n",
            f"{cpu}/cpufreq/cpuinfo_max_freq": "3600000\n",
            "proc/pressure/cpu": "some avg10=1.0 avg60=1.0 avg300=1.0 total=3000000\nfull avg10=0 total=0\n",
            "proc/vmstat": "pgpgin 5\npswpin 3\npswpout 9\n",
            "proc/loadavg": "1.25 1.0 0.5 2/300 4000\n",
        },
    )
    assert list(kernel.heat([0, 1], sys_).values()) == [2.5]
    assert kernel.frequency([0, 1], sys_) == 0.5
    assert (kernel.pressure(proc), kernel.load(proc)) == (3.0, 1.25)
    assert kernel.swapped_in(proc) == 3 * os.sysconf("SC_PAGE_SIZE")


def moving(folder: Path, before: Mapping[str, str], after: Mapping[str, str]) -> Interference:
    """Watch half a second in which these books change."""
    proc, sys_ = write(folder, before)
    with watch(wanted=2, proc=proc, sys=sys_) as seen:
        time.sleep(0.5)
        write(folder, after)
    assert seen.interference is not None
    return seen.interference


def books(busy: int, idle: int) -> str:
    """/proc/stat with each processor that this process may use at these ticks."""
    return "".join(f"cpu{cpu} {busy} 0 0 {idle} 0 0 0 0 0 0\n" for cpu in os.sched_getaffinity(0))


def test_others_are_all_but_us_and_what_descends_from_us(tmp_path: Path) -> None:
    """We ran 10 ticks, our child 20, one of ours that ended 5; a compiler under make ran 30 and ended, another 40."""
    me, cores = os.getpid(), len(os.sched_getaffinity(0))
    before = {
        "proc/stat": books(1000, 1000),
        f"proc/{me}/stat": stat(me, 1, "python", 500, 100),
        "proc/50001/stat": stat(50001, me, "engine", 70),
        "proc/50010/stat": stat(50010, 1, "make", 3, 0),
        "proc/50011/stat": stat(50011, 50010, "sh", 1),
        "proc/50012/stat": stat(50012, 50011, "cc1plus", 200),
    }
    proc, _ = write(tmp_path, before)
    after = {
        "proc/stat": books(1100, 1000),
        f"proc/{me}/stat": stat(me, 1, "python", 510, 105),
        "proc/50001/stat": stat(50001, me, "engine", 90),
        "proc/50010/stat": stat(50010, 1, "make", 3, 231),
        "proc/50013/stat": stat(50013, 50010, "cc1plus", 40, started=200),
    }
    with watch(wanted=2, proc=proc, sys=tmp_path) as seen:
        for ended in (50011, 50012):
            (proc / f"{ended}/stat").unlink()
        write(tmp_path, after)
    assert seen.interference is not None
    assert seen.interference.other_cpu_seconds == pytest.approx(cores * 1.0 - 0.35)
    named = {other.name: pytest.approx(other.cpu_seconds) for other in seen.interference.others}
    assert named == {"cc1plus": 0.4, "make": 0.3}, "what ended had run 2.01 s before the watch began"


def test_a_sandbox_whose_books_stand_still_shows_nothing(tmp_path: Path) -> None:
    found = moving(tmp_path, {"proc/stat": books(0, 0)}, {})
    assert (found.other_cpu_seconds, found.steal_seconds, found.throttled_cpu_seconds) == (None, None, None)
    assert {"other processes' time", "steal", "processor limits", "processor pressure", "swap"} <= set(unseen(found))
    assert (problems(found), severity(found)) == ((), 0)


def test_a_limit_that_withholds_processors_is_seen(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/cpu.stat"
    later = {group: "usage_usec 9\nnr_periods 19\nnr_throttled 8\nthrottled_usec 1000000\n"}
    found = moving(tmp_path, {**NAMESPACE, "proc/stat": books(0, 0)}, later)
    assert found.throttled_cpu_seconds == pytest.approx(0.3)
    assert found.throttled_periods == 5
    (told,) = problems(found)
    assert told.startswith("a control group's processor limit withheld 0.")


def test_without_linux_nothing_is_watched(tmp_path: Path) -> None:
    with watch(wanted=2, proc=tmp_path) as seen:
        pass
    assert seen.interference is None
    assert problems(None) == ()


BURN = "import time\nwhile time.process_time() < {}: pass"


def test_a_core_that_burns_elsewhere_is_seen_and_one_of_ours_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our children's time is ours, whether they live or have ended; an orphan's, like a neighbour's, is others'."""
    monkeypatch.setattr(interference, "MOST_NAMED", 1000)
    for name in ("lives", "ended", "theirs"):
        (tmp_path / name).symlink_to(sys.executable)
    orphan = f"{tmp_path}/theirs -S -c '{BURN.format(2)}' & :"
    subprocess.run(["sh", "-c", orphan], check=True, stdout=subprocess.DEVNULL)
    with watch(wanted=len(os.sched_getaffinity(0))) as seen:
        living = subprocess.Popen([tmp_path / "lives", "-S", "-c", BURN.format(0.5)])
        subprocess.run([tmp_path / "ended", "-S", "-c", BURN.format(0.5)], check=True)
    living.wait()
    found = seen.interference
    assert found is not None
    assert found.other_cpu_seconds is not None
    named = {other.name: other.cpu_seconds for other in found.others}
    assert named.keys() & {"lives", "ended", "theirs"} == {"theirs"}
    assert named["theirs"] > 0.2, "as long as one of ours had half a second"
    assert found.other_cpu_seconds > named["theirs"] - 0.1
    assert problems(found)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"other_cpu_seconds": 2.0, "others": (COMPILER,)}, "other processes ran (cc1plus) 1.00 of 2 processors"),
        ({"other_cpu_seconds": 2.0}, "other processes ran (not visible from here, or ended) 1.00 of 2 processors"),
        ({"other_cpu_seconds": 2.0, "cores": 8}, None),
        ({"steal_seconds": 0.5}, "the hypervisor gave to other machines (steal) 0.25 of 2 processors"),
        ({"throttled_cpu_seconds": 1.0}, "a control group's processor limit withheld 0.50 of 2 processors"),
        ({"hot_seconds": 0.5}, "the processor slowed itself down for heat 25% of the time"),
        ({"swapped_in_bytes": 2**24}, "8.0 MiB/s were read back from swap"),
        ({"seconds": 0.1, "other_cpu_seconds": 0.03}, None),
    ],
)
def test_what_is_too_much_is_said_in_words(changed: dict[str, object], told: str | None) -> None:
    one = replace(QUIET, **changed)  # type: ignore[arg-type]
    assert problems(one) == (() if told is None else (told,))
    assert (severity(one) > 1) == (told is not None)


def test_a_measurement_is_repeated_until_the_machine_is_quiet() -> None:
    said: list[str] = []
    found, watched = measure(lambda number: number, watching(BUSY, QUIET, BUSY), iter((0.0, 0.0)), said.append)
    assert (found, watched.kept, watched.tries) == (1, 1, (BUSY, QUIET))
    assert watched.interference == QUIET
    (why,) = said
    assert why.startswith("other processes ran (cc1plus) 1.00 of 2 processors: measured again in 0 s, try 2 of 3")


def test_on_a_machine_that_stays_busy_the_least_disturbed_try_is_kept() -> None:
    calmer = replace(BUSY, other_cpu_seconds=0.9)
    found, watched = measure(lambda number: number, watching(BUSY, calmer, BUSY), iter([0.0] * 9), lambda _: None)
    assert (found, watched.kept, len(watched.tries)) == (1, 1, 3)
    assert problems(watched.interference), "and what is kept says so"


def test_repetitions_end_with_the_pauses_that_measurements_share() -> None:
    pauses = iter((0.0,))
    for tries in (2, 1):
        _, watched = measure(lambda number: number, watching(BUSY, BUSY), pauses, lambda _: None)
        assert len(watched.tries) == tries


def test_a_limit_is_no_reason_to_repeat_since_it_does_not_pass() -> None:
    limited = replace(QUIET, throttled_cpu_seconds=1.0)
    _, watched = measure(lambda number: number, watching(limited), iter((0.0, 0.0)), lambda _: None)
    assert len(watched.tries) == 1
    assert problems(watched.interference)


def test_where_nothing_can_be_watched_it_is_measured_once() -> None:
    found, watched = measure(lambda number: number, watching(None), iter((0.0,)), lambda _: None)
    assert (found, watched.tries, watched.interference) == (0, (), None)
