"""The holder: the small privileged process that mounts and keeps `/dev/fuse` descriptors.

It imports nothing but the standard library, runs one loop in one thread, and parses nothing that comes from
the network. PROTOCOL.md states what it answers, and to whom.
"""
