"""What the tests of the Python client share."""

import os
import time

from k8s_agent_sandbox.models import SandboxInClusterConnectionConfig

# Both are given by tests/cluster/sdk.rs, which has made the pools in that namespace.
NAMESPACE = os.environ["SANDBOX_NAMESPACE"]
# To the pods themselves: this host reaches them by their addresses, as a pod of the cluster does.
CONNECTION = SandboxInClusterConnectionConfig(server_port=8888)

# Nothing here takes longer unless it hangs, seconds.
LIMIT = 90

# Something that is in memory alone: a word that it has made up, and how often it was asked for it.
KEEPER = """
import secrets, socket
word, asked = secrets.token_hex(16), 0
server = socket.create_server(("127.0.0.1", 7000))
while True:
    connection, _ = server.accept()
    asked += 1
    with connection:
        connection.sendall(f"{word} {asked}".encode())
"""

ASK = """
import socket
with socket.create_connection(("127.0.0.1", 7000), timeout=10) as connection:
    print(connection.makefile().read())
"""


def until(what, look):
    """Waits until `look` returns something true, and returns it."""
    deadline = time.monotonic() + LIMIT
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not after {LIMIT} s, it is {found!r}")
        time.sleep(0.1)
    return found


def start_keeper(sandbox):
    """Starts the keeper inside, and returns its word."""
    sandbox.files.write("keeper.py", KEEPER)
    sandbox.files.write("ask.py", ASK)
    started = sandbox.commands.run("sh -c 'python3 keeper.py >/dev/null 2>&1 &'")
    assert started.exit_code == 0, started
    until("the keeper to listen", lambda: sandbox.commands.run("python3 ask.py").exit_code == 0)
    return ask_keeper(sandbox)[0]


def ask_keeper(sandbox):
    """Its word, and how often it was asked for it."""
    said = sandbox.commands.run("python3 ask.py")
    assert said.exit_code == 0, said
    word, asked = said.stdout.split()
    return word, int(asked)


def condition(thing, kind):
    """A condition of an object as the API server has it, or nothing."""
    conditions = ((thing or {}).get("status") or {}).get("conditions") or []
    return next((found for found in conditions if found["type"] == kind), None)


def pod(client, name):
    return client.k8s_helper.core_v1_api.read_namespaced_pod(name, NAMESPACE)


def pods(client):
    listed = client.k8s_helper.core_v1_api.list_namespaced_pod(NAMESPACE)
    return {pod.metadata.name for pod in listed.items}
