"""`none`: a network namespace with loopback up, and nothing else."""

from __future__ import annotations

import os
import socket

from support.rooms import Room

LOOK = """
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname(), timeout=5)
peer, _ = server.accept()
client.sendall(b"hello")
def reach(*address):
    try:
        socket.create_connection(address, timeout=5)
    except OSError as error:
        return errno.errorcode.get(error.errno, "nothing")  # nobody has answered
    return "connected"
print(json.dumps({
    "heard": peer.recv(9).decode(),
    "devices": [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]],
    "outside": reach("192.0.2.1", 80),
    "host": reach("127.0.0.1", int(sys.argv[1])),
}))
"""


def test_none_has_loopback_and_nothing_else(room: Room) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"sys.argv.append('{port}')\n{LOOK}"
        seen = room.python(code, network="none")
    assert seen == {"heard": "hello", "devices": ["lo"], "outside": "ENETUNREACH", "host": "ECONNREFUSED"}


def test_host_has_the_hosts_loopback(simple: Room) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        seen = simple.python(f"sys.argv.append('{port}')\n{LOOK}")
    assert seen["host"] == "connected"


def test_none_hides_abstract_sockets(simple: Room) -> None:
    name = f"\0nsbuild-test-{os.getpid()}"  # one name for everybody on this host
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        code = f"""
import socket
def reach():
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect({name!r})
        except OSError as error:
            return errno.errorcode[error.errno]
    return "connected"
print(json.dumps(reach()))
"""
        assert simple.python(code, network="none") == "ECONNREFUSED"
        assert simple.python(code) == "connected"
