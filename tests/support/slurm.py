"""A SLURM of one's own: munged, slurmctld and slurmd of two nodes on this machine, without systemd and cgroups."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "setpriv")

PLACES = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # daemons lie where only root looks

N_NODES = 2

DEVICES = ("null", "zero", "full", "random")
"""Files that stand for the four GPUs of each node: SLURM takes devices alone and only counts them."""

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL")
"""States of a job that will not run again; one that is put back has others for a moment."""

CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
KillWait=2
MailProg=/bin/true
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""`cred_expire` is the time that a requeued job waits (5 s are the least, 120 s the default). The nodes have the
processors, memory and GPUs that the scripts ask for because `config_overrides` takes SLURM's word for it."""

NODE = "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=64 RealMemory=500000 Gres=gpu:4"


def find_missing() -> list[str]:
    """List the programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=PLACES) is None]


@dataclass
class Slurm:
    """The commands of a running SLURM."""

    folder: Path
    environment: Mapping[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str) -> None:
        """Start a daemon, which ends with this process at the latest."""
        with (self.folder / f"{name}.out").open("wb") as out:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command], env=self.environment, stdout=out, stderr=out
            )

    def run(self, *command: str, folder: Path | None = None, may_fail: bool = False) -> str:
        """Run a command of SLURM and return what it prints."""
        ended = subprocess.run(
            command, cwd=folder or self.folder, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert may_fail or ended.returncode == 0, (command, ended.stdout, ended.stderr, self.read_logs())
        return ended.stdout.strip()

    def submit(self, script: Path, *arguments: str, folder: Path, options: Sequence[str] = ()) -> str:
        """Submit a script from a folder, where the job's output goes too; return the job's number."""
        return self.run("sbatch", "--parsable", *options, str(script), *arguments, folder=folder)

    def show(self, job: str) -> dict[str, str]:
        """Return what SLURM says of a job, or of an element of an array (`7_2`)."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, what: str, is_so: Callable[[], bool], *, seconds: float = 120) -> None:
        """Wait until something is so."""
        last = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < last, (f"{what}: not within {seconds} s", self.read_logs())
            time.sleep(0.1)

    def wait_for_end(self, job: str, *, seconds: float = 120) -> str:
        """Wait until a job is over, and return its state and exit code, as `COMPLETED 0:0`."""
        said: dict[str, str] = {}

        def has_ended() -> bool:
            said.update(self.show(job))
            return said["JobState"] in ENDED

        self.wait_for(f"the end of job {job}", has_ended, seconds=seconds)
        return f"{said['JobState']} {said['ExitCode']}"

    def wait_until_runs_again(self, job: str, restarts: int, *, seconds: float = 120) -> None:
        """Wait until a job has been put back this often and runs."""
        wanted = (str(restarts), "RUNNING")
        self.wait_for(f"restart {restarts} of job {job}", lambda: self._count_starts(job) == wanted, seconds=seconds)

    def _count_starts(self, job: str) -> tuple[str, str]:
        said = self.show(job)
        return said["Restarts"], said["JobState"]

    def warn(self, job: str) -> None:
        """Send what SLURM sends ahead of a time limit (`--signal=B:USR1`), to the job's shell alone."""
        self.run("scancel", "--batch", "--signal=USR1", job)

    def read_logs(self) -> str:
        """Return the ends of all logs, for a test that fails."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)

    def stop(self) -> None:
        """Cancel all jobs, wait for their processes, and end the daemons, the youngest first."""
        try:
            self.run("scancel", "--user", getpass.getuser())
            self.wait_for("an empty queue", lambda: not self.run("squeue", "--noheader"), seconds=20)
        finally:
            for daemon in reversed(self.daemons.values()):
                daemon.terminate()
            for daemon in self.daemons.values():
                try:
                    daemon.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()


def find_process(number: str, word: str) -> int | None:
    """Return the process of an xact command that a job of this number (`JobId`) runs now."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it ended, or belongs to another
            continue
        if f"SLURM_JOB_ID={number}".encode() in variables and words[1:4] == [b"-m", b"xact", word.encode()]:
            return int(folder.name)
    return None


def find_ports(n: int) -> list[int]:
    """Find ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def find_version() -> tuple[int, ...]:
    """Return SLURM's version, as (22, 5)."""
    said = subprocess.check_output(["slurmd", "-V"], env=os.environ | {"PATH": PLACES}, text=True)
    return tuple(int(part) for part in said.split()[-1].split(".")[:2])


def write_configuration(folder: Path) -> list[str]:
    """Write the configuration and make the folders it names; return the names of the nodes."""
    controller_port, *ports = find_ports(1 + N_NODES)
    names = [f"node{i}" for i in range(N_NODES)]
    for name in ("state", *names):
        (folder / name).mkdir()
    nodes = "\n".join(NODE.format(name=name, port=port) for name, port in zip(names, ports, strict=True))
    text = CONF.format(folder=folder, user=getpass.getuser(), controller_port=controller_port, nodes=nodes)
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("".join(f"Name=gpu File=/dev/{device}\n" for device in DEVICES))
    plugin = "cgroup/v1" if find_version() < (23, 11) else "disabled"  # v1 touches no cgroup until it is asked to
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    return names


def make_environment(folder: Path) -> dict[str, str]:
    """Make the environment of commands and jobs: this SLURM, and the `xact` of this Python."""
    program = folder / "bin" / "xact"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m xact "$@"\n')
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    own = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{program.parent}:{PLACES}", "OMP_NUM_THREADS": "1"}
    return kept | own


@contextmanager
def open_slurm() -> Iterator[Slurm]:
    """Run a SLURM in a folder of its own until the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 107 characters
    folder.chmod(0o755)  # munged wants its socket to be in reach of all
    slurm = Slurm(folder, make_environment(folder))
    try:
        nodes = write_configuration(folder)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        slurm.start("munged", "munged", "-F", "-f", *(f"--{name}={folder}/munge.{end}" for name, end in files.items()))
        slurm.wait_for("munged's socket", (folder / "munge.socket").exists, seconds=20)
        slurm.start("slurmctld", "slurmctld", "-D", "-i")
        for node in nodes:
            slurm.start(node, "slurmd", "-D", "-N", node)
        ask = ("sinfo", "-h", "-o", "%D %t")
        slurm.wait_for("idle nodes", lambda: slurm.run(*ask, may_fail=True) == f"{N_NODES} idle", seconds=60)
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(folder)
