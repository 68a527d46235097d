"""Gathers candidates with libnice through one TURN server, and prints the type of each candidate.

Arguments: address of the client, host, port, username and password of the server, and the relay type (UDP, TCP or TLS).
"""

import ctypes
import sys

import gi

gi.require_version("Nice", "0.1")
from gi.repository import GLib, Nice

TIMEOUT_SECONDS = 60

own, host, port, user, password, kind = sys.argv[1:]
loop = GLib.MainLoop()
agent = Nice.Agent.new(GLib.MainContext.default(), Nice.Compatibility.RFC5245)
address = Nice.Address.new()
assert address.set_from_string(own)
assert agent.add_local_address(address)
stream = agent.add_stream(1)
assert agent.set_relay_info(stream, 1, host, int(port), user, password, getattr(Nice.RelayType, kind))

# Without a receiver, libnice reads nothing. The binding lacks the function, whose callback has no destructor.
Receive = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p
)
receive = Receive(lambda *_: None)
attach = ctypes.CDLL("libnice.so.10").nice_agent_attach_recv
attach.argtypes = [ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, Receive, ctypes.c_void_p]
assert attach(hash(agent), stream, 1, None, receive, None)

agent.connect("candidate-gathering-done", lambda *_: loop.quit())
GLib.timeout_add_seconds(TIMEOUT_SECONDS, lambda: sys.exit("gathering does not end"))
assert agent.gather_candidates(stream)
loop.run()
for candidate in agent.get_local_candidates(stream, 1):
    print(candidate.type.value_nick)
