"""Installs Toolgate as a service, and proves on an unmodified client that it does what it is for.

Runs as root inside the virtual machine. Each line of its output is something that was seen; the first thing that is not
as it should be ends it with that thing's name and exit code 1.
"""

import ctypes
import glob
import os
import pathlib
import platform
import re
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import time
import urllib.request

SOURCES = pathlib.Path("/toolgate")
BUILD = pathlib.Path("/toolgate-build")
UNITS = pathlib.Path("/run/systemd/system")
SETTINGS = pathlib.Path("/etc/toolgate")
OUTPUT = pathlib.Path("/run/demo-agent.txt")
READY = "http://127.0.0.1:15021/"
# The server that is declared, and one that nobody declared.
PORT, OTHER_PORT = 8931, 8932
# Seconds that anything may take that is waited for: instructions may be translated.
PATIENCE = 180

SERVER_UNIT = """[Service]
ExecStart={python} {sources}/vagrant/server.py {port}
Environment=API_TOKEN=not-for-agents {environment}
"""
# Captured by its slice, which is there before the service is and stays when it has ended.
CLIENT_UNIT = """[Service]
Type=oneshot
Slice={slice}
ExecStart={python} {sources}/xtask/src/demo/client.py http://127.0.0.1:{port}/mcp
Environment={environment}
StandardOutput=truncate:{output}
StandardError=inherit
"""

ALLOWED = "result: The sum of 2 and 40 is 42."
DENIED_TOOL = "error: toolgate: policy does not permit this"
DENIED_ARGUMENTS = "error: toolgate: policy does not permit these"
FILTERED = "  2: echo, get-sum"
EVERYTHING = ["The sum of 2 and 4000 is 4002.", "API_TOKEN=not-for-agents", "  3: echo, get-sum, get-env"]


class Failed(Exception):
    pass


def saw(what):
    print(f"ok   {what}", flush=True)


def run(*words, check=True):
    done = subprocess.run(words, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise Failed(f"`{' '.join(words)}` ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done


def until(what, found):
    """The first true answer of `found`."""
    end = time.monotonic() + PATIENCE
    while not (answer := found()):
        if time.monotonic() > end:
            raise Failed(f"waited {PATIENCE} s for {what}")
        time.sleep(0.2)
    return answer


def ready():
    try:
        with urllib.request.urlopen(READY, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def listens(port):
    with socket.socket() as made:
        return made.connect_ex(("127.0.0.1", port)) == 0


def python():
    """The interpreter that has the SDK, and what its environment needs for that."""
    if os.path.isdir("/toolgate-sdk"):
        return "/usr/bin/python3", "PYTHONPATH=/toolgate-sdk"
    return "/opt/toolgate-sdk/bin/python", ""


def install():
    for archive in BUILD.glob("toolgate-*.tar.gz"):
        with tarfile.open(archive) as tar:
            tar.extractall("/run/toolgate-release")
    found = [BUILD / "toolgate", *pathlib.Path("/run/toolgate-release").rglob("toolgate")]
    agent = next((file for file in found if file.is_file()), None)
    if agent is None:
        raise Failed("the build has no `toolgate`: run `cargo xtask build --release`, or set TOOLGATE_BUILD")
    unit = SOURCES / "agent/systemd/toolgate.service"
    # Wherever the unit wants it.
    path = re.search(r"^ExecStart=[-@:+!]*(\S+)", unit.read_text(), re.MULTILINE).group(1)
    shutil.copy(agent, path)
    os.chmod(path, 0o755)
    shutil.copy(unit, "/etc/systemd/system/toolgate.service")
    (SETTINGS / "resources").mkdir(parents=True, exist_ok=True)
    (SETTINGS / "toolgate.yaml").write_text("capture: { cgroups: [demo.slice] }\n")
    shutil.copy(SOURCES / "vagrant/resources.yaml", SETTINGS / "resources/demo.yaml")
    saw(f"installed {run(path, '--version').stdout.strip()} as {path}, and {unit.relative_to(SOURCES)}")
    return path


def units():
    interpreter, environment = python()
    common = {"python": interpreter, "environment": environment, "sources": SOURCES, "output": OUTPUT}
    UNITS.mkdir(parents=True, exist_ok=True)
    for name, port in [("declared", PORT), ("other", OTHER_PORT)]:
        (UNITS / f"mcp-{name}.service").write_text(SERVER_UNIT.format(port=port, **common))
        (UNITS / f"outside-{name}.service").write_text(CLIENT_UNIT.format(slice="system.slice", port=port, **common))
    (UNITS / "demo.slice").write_text("[Slice]\n")
    (UNITS / "demo-agent.service").write_text(CLIENT_UNIT.format(slice="demo.slice", port=PORT, **common))
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "demo.slice", "mcp-declared.service", "mcp-other.service")
    until("the MCP servers", lambda: listens(PORT) and listens(OTHER_PORT))
    saw("two MCP servers run outside of any captured cgroup, one of them declared")


def client(unit):
    """What the client prints, and whether it ended well."""
    OUTPUT.unlink(missing_ok=True)
    done = run("systemctl", "start", unit, check=False)
    return done.returncode == 0, OUTPUT.read_text() if OUTPUT.exists() else ""


def expect(text, words, what):
    for word in words:
        if word not in text:
            raise Failed(f"{what}: no `{word}` in what the client printed:\n{text}")
    saw(what)


def refused(text):
    return "ConnectError" in text or "onnection refused" in text or "All connection attempts failed" in text


def start():
    run("systemctl", "start", "toolgate.service")
    until("the agent to be ready", ready)


def captured():
    good, text = client("demo-agent.service")
    if not good:
        raise Failed(f"the captured client failed:\n{text}")
    expect(text, [ALLOWED], "the captured client's permitted call is answered")
    expect(text, [DENIED_TOOL], "a tool that no rule permits is denied, and the client is told why")
    expect(text, [DENIED_ARGUMENTS], "arguments that the rule does not permit are denied, and the client is told why")
    expect(text, [FILTERED], "its list has the permitted tools only")


def outside(what):
    """Who is not captured has what is not declared, as ever, and does not get around the agent to what is."""
    good, text = client("outside-other.service")
    if not good:
        raise Failed(f"the client outside failed:\n{text}")
    expect(text, [ALLOWED, *EVERYTHING], f"{what}, the same client outside reaches the other server as ever")
    good, text = client("outside-declared.service")
    if good or not refused(text):
        raise Failed(f"the client outside was not refused at the declared server:\n{text}")
    saw("and is refused at the declared one: its port is guarded")


def killed():
    # No restart meanwhile, whatever the unit says.
    drop_in = UNITS / "toolgate.service.d/acceptance.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text("[Service]\nRestart=no\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "kill", "--signal=KILL", "toolgate.service")
    state = lambda: run("systemctl", "is-active", "toolgate.service", check=False).stdout.strip()
    until("the agent to be dead", lambda: state() in ("failed", "inactive"))
    good, text = client("demo-agent.service")
    if good or not refused(text):
        raise Failed(f"the agent is dead, and the captured client was not refused:\n{text}")
    saw("the agent is killed: the captured client is refused")
    outside("meanwhile")
    drop_in.unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "reset-failed", "toolgate.service")


def programs():
    """Names of Toolgate's programs in the kernel, by bpf(2): BPF_PROG_GET_NEXT_ID, _GET_FD_BY_ID, OBJ_GET_INFO_BY_FD."""
    if platform.machine() != "x86_64":
        raise Failed(f"the number of bpf(2) on {platform.machine()} is not known here")
    libc = ctypes.CDLL(None, use_errno=True)
    names, number = [], 0
    while True:
        attributes = ctypes.create_string_buffer(struct.pack("=II", number, 0), 128)
        if libc.syscall(321, 11, attributes, 128) != 0:
            return names
        number = struct.unpack_from("=I", attributes.raw, 4)[0]
        fd = libc.syscall(321, 13, ctypes.create_string_buffer(struct.pack("=I", number), 128), 128)
        if fd < 0:
            continue
        info = ctypes.create_string_buffer(256)
        asked = ctypes.create_string_buffer(struct.pack("=IIQ", fd, 128, ctypes.addressof(info)), 128)
        if libc.syscall(321, 15, asked, 128) == 0:
            # The name is 16 bytes after type, id, tag, two lengths, two pointers, load time, uid, and map ids.
            name = info.raw[64:80].split(b"\0")[0].decode()
            if name.startswith("toolgate"):
                names.append(name)
        os.close(fd)


def remove(path, reserved):
    run("systemctl", "disable", "--now", "toolgate.service")
    run(path, "detach")
    for file in [path, "/etc/systemd/system/toolgate.service"]:
        os.unlink(file)
    for folder in [SETTINGS, "/var/lib/toolgate", "/var/log/toolgate", "/run/toolgate", "/run/toolgate-release"]:
        shutil.rmtree(folder, ignore_errors=True)
    run("systemctl", "daemon-reload")
    until("the kernel to free the programs", lambda: not programs())
    left = glob.glob("/sys/fs/bpf/toolgate*") + glob.glob("/sys/fs/cgroup/toolgate*")
    if left:
        raise Failed(f"left behind: {left}")
    if reserved_ports() != reserved:
        raise Failed(f"reserved ports were `{reserved}` and are `{reserved_ports()}`")
    saw("removed: no program, pin, cgroup or setting of it is left")
    good, text = client("demo-agent.service")
    if not good:
        raise Failed(f"removed, and the client that was captured fails:\n{text}")
    expect(text, EVERYTHING, "and nothing refuses: the client that was captured reaches everything again")


def reserved_ports():
    return pathlib.Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text().strip()


def main():
    print(f"kernel {platform.release()}", flush=True)
    reserved = reserved_ports()
    path = install()
    units()
    start()
    if not programs():
        raise Failed("the agent is ready, and bpf(2) shows no program of it: this test would not see what is left")
    saw("the service is started, and ready")
    captured()
    outside("not captured")
    run("systemctl", "restart", "toolgate.service")
    until("the agent to be ready", ready)
    saw("the service is restarted")
    captured()
    killed()
    start()
    saw("the service is started after its death")
    captured()
    remove(path, reserved)
    run("systemctl", "stop", "mcp-declared.service", "mcp-other.service", "demo.slice")
    print("accepted", flush=True)


try:
    main()
except Failed as failure:
    print(f"FAILED {failure}", flush=True)
    journal = run("journalctl", "--no-pager", "--lines=40", "--unit=toolgate.service", check=False)
    print(journal.stdout, flush=True)
    sys.exit(1)
