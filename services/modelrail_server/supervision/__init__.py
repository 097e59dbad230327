"""One process that starts several equal ones on one port, replaces those that end, and adds up.

The supervisor loads no model and speaks no gRPC. Each worker is connected with it by a pair of
sockets, through which it says that it lives, reports its metrics, and asks about its siblings.
"""
