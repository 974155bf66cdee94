#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What is in deploy/ against the real program: deploy_test.py NIBBLE MODEL.

Every metric and label of the Grafana dashboard is exported; the commands of the systemd unit, the container and the Kubernetes manifest start a
server that answers their probes, wants their keys and ends as they expect; the container has the libraries that the program needs. Where
`systemd-analyze` and the Python package `kubernetes-validate` are installed, they look at the unit and the manifest too; a line says
when they are not."""
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

from serve_client import free_port

DEPLOY = pathlib.Path(__file__).resolve().parent.parent.parent / "deploy"
KEY = "a-key-of-the-test"
# Of every Debian image: the C and C++ libraries.
BASE_PACKAGES = {"libc6", "libgcc-s1", "libstdc++6", "zlib1g"}


class Program:
    """The command line of a deployment, on a port of the test and with the test's paths in the place of the deployment's."""

    def __init__(self, command, port):
        self.port = port
        self.process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout.readline(), f"{command} does not start"

    def get(self, path, key=None):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers), timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.process.stdout.close()
        return code


def check_answers(command, key):
    program = Program(command, free_port())
    assert program.get("/health/live")[0] == program.get("/health/ready")[0] == 200, "probes carry no key"
    if key:
        assert program.get("/v1/models")[0] == 401, "without a key"
    status, text = program.get("/metrics", key)
    assert status == 200, "with a key"
    assert program.stop() == 0, "exit code"
    return text


def check_dashboard(metrics):
    """Each name and label in the dashboard's expressions stands in what the server exports."""
    exported = {}
    for line in metrics.splitlines():
        if not line.startswith("#"):
            name, labels = re.fullmatch(r"([a-z0-9_:]+)\{(.*)\} \S+", line).groups()
            exported.setdefault(name, set()).update(re.findall(r'([a-z_]+)="', labels))
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [entry["query"] for entry in dashboard["templating"]["list"] if entry["type"] == "query"]
    assert len(expressions) > 20
    legends = {"".join(re.findall(r"nibble:[a-z0-9_]+", target["expr"])[:1]): re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
               for panel in dashboard["panels"] for target in panel["targets"]}
    names = 0
    for expression in expressions:
        for name in re.findall(r"nibble:[a-z0-9_]+", expression):
            assert name in exported, f"{name} is not exported"
            labels = re.findall(r"(\w+)=~?\"", expression) + re.findall(r"label_values\([^,]+, (\w+)\)", expression)
            labels += [label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")]
            for label in labels + legends.get(name, []):
                assert label in exported[name], f"{name} has no label {label}"
            names += 1
    for name in ("num_requests_running", "kv_quant_bits", "num_preemptions_swapped_total", "swap_space_full_total"):
        assert any(f"nibble:{name}" in expression for expression in expressions), f"the dashboard does not show {name}"
    return names


def unit_command(nibble, model, folder):
    unit = (DEPLOY / "nibble.service").read_text()
    command = re.search(r"^ExecStart=(.*)$", unit, re.M)[1]
    config = (DEPLOY / "nibble.yaml").read_text()
    assert subprocess.run([nibble, "serve", "--config", DEPLOY / "nibble.yaml", "--print-config"], capture_output=True).returncode == 0
    (folder / "nibble.yaml").write_text(config.replace("/srv/models/novelist-10m", model))
    (folder / "keys").write_text(KEY + "\n")
    seconds = {name: int(re.search(rf"{name}[=:] *(\d+)", text)[1]) for name, text in (("TimeoutStopSec", unit), ("drain-seconds", config))}
    assert seconds["TimeoutStopSec"] > seconds["drain-seconds"], "killed while it drains"
    if shutil.which("systemd-analyze"):
        path = folder / "nibble.service"
        path.write_text(unit.replace("/usr/local/bin/nibble", nibble))
        verified = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
        assert verified.returncode == 0 and not verified.stderr, verified.stderr
    else:
        print("systemd-analyze is not here: the unit is not verified")
    for old, new in (("/usr/local/bin/nibble", nibble), ("/etc/nibble", str(folder)), ("${CREDENTIALS_DIRECTORY}", str(folder))):
        assert old in command, command
        command = command.replace(old, new)
    return shlex.split(command)


def container_command(nibble, model):
    text = (DEPLOY / "Containerfile").read_text()
    entry, default = (json.loads(re.search(rf"^{word} (\[.*\])$", text, re.M)[1]) for word in ("ENTRYPOINT", "CMD"))
    assert "/health/live" in re.search(r"^HEALTHCHECK.*$", text, re.M)[0]
    installed = set(text.rsplit("FROM ", 1)[1].replace("\\\n", " ").split())
    libraries = re.findall(r"=> (/\S+)", subprocess.run(["ldd", nibble], capture_output=True, text=True, check=True).stdout)
    for library in libraries:
        path = pathlib.Path(library).resolve()
        owner = subprocess.run(["dpkg", "-S", path], capture_output=True, text=True).stdout.split(":")[0]
        if not owner:  # in a merged /usr, some packages say /lib
            owner = subprocess.run(["dpkg", "-S", str(path).removeprefix("/usr")], capture_output=True, text=True).stdout.split(":")[0]
        assert not owner or owner in installed | BASE_PACKAGES, f"{library} is of {owner}, which the container does not install"
    words = [nibble if word == "nibble" else model if word.startswith("/models/") else word for word in entry + default]
    assert words[0] == nibble and model in words
    return words


def manifest_command(nibble, model, folder):
    text = (DEPLOY / "kubernetes.yaml").read_text()
    arguments = json.loads(re.search(r"^ +args: (\[.*\])$", text, re.M)[1])
    assert re.findall(r"httpGet: \{path: (\S+), port: http\}", text) == ["/health/ready", "/health/ready", "/health/live"]
    sleep = int(re.search(r'command: \["sleep", "(\d+)"\]', text)[1])
    grace = int(re.search(r"terminationGracePeriodSeconds: (\d+)", text)[1])
    assert grace > sleep + int(arguments[arguments.index("--drain-seconds") + 1]), "killed while it drains"
    if importlib.util.find_spec("kubernetes_validate"):
        done = subprocess.run([sys.executable, "-m", "kubernetes_validate", "--strict", DEPLOY / "kubernetes.yaml"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        print("kubernetes-validate is not installed: the manifest is not held to the schema")
    places = {"/models/novelist-10m": model, "/keys/keys": str(folder / "keys")}
    return [nibble, "serve", *[places.get(argument, argument) for argument in arguments]]


def main():
    nibble, model = (os.path.abspath(path) for path in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        metrics = check_answers(unit_command(nibble, model, folder), KEY)
        print(f"systemd unit: starts; {check_dashboard(metrics)} names of the dashboard are exported")
        check_answers(manifest_command(nibble, model, folder), KEY)
        print("Kubernetes manifest: starts")
        check_answers(container_command(nibble, model), None)
        print("container: starts, its libraries are installed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
