"""The swarm: libtorrent, shut in. The only importer of it.

One session an agent. It listens on the agent's own address and nowhere else, knows no DHT, no LSD, no UPnP,
no NAT-PMP, no PEX and no tracker: whom it connects it is told, and its filter lets in members only.
Handshakes are encrypted, which takes the infohash to be understood; what follows goes in plain, as between
exchanges. Files are the store's own, by their paths. libtorrent's plainest way to the disk is used: a block
is in the file when it says so, nothing is cached, no thread beside its one touches the file, and on a page
cache it is as fast as the others (200 MiB over loopback in 0.9 s; with pread 1.1 s, mapped 1.1 s).

Between zones a connection is uTP (BEP 29), which gives way to all else on a link, or TCP where UDP does not
get through; within one it is TCP, since uTP is slow (128 MiB over loopback in 10 s). libtorrent has a setting
for all connections that it begins, so those of the two ways are begun at different times.

What libtorrent says wakes the loop by a pipe; nothing here waits for libtorrent on the loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import libtorrent as lt

from agent.errors import ConfigError

log = logging.getLogger(__name__)

LISTEN_WITHIN = 10.0  # seconds
REMOVED_WITHIN = 10.0  # seconds until a torrent has let go of its files
CONNECTIONS = 128  # of all torrents; each may hold 1 MiB to send
ALERTS = 20_000  # that are kept for the loop; beyond that all pieces are asked for
FORCED, PLAIN_LEVEL = 0, 1  # enc_policy, enc_level: settings are given as numbers
PREFER_TCP = 0  # bandwidth_mixed_algo_t
BEGUN_WITHIN = 0.9  # seconds: it looks for connections to begin twice a second
TURNED_WITHIN = 3.0  # seconds: who was refused asks again each second, or does not any more
SETTINGS: dict[str, Any] = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_incoming_utp": True,
    "enable_outgoing_utp": False,  # `Swarm.connects`
    "mixed_mode_algorithm": PREFER_TCP,  # else TCP is held back where there is uTP beside it
    "in_enc_policy": FORCED,
    "out_enc_policy": FORCED,
    "allowed_enc_level": PLAIN_LEVEL,
    "anonymous_mode": False,
    "user_agent": "headrace",
    "peer_fingerprint": "-HR0001-",
    "connections_limit": CONNECTIONS,
    "unchoke_slots_limit": 16,
    "max_queued_disk_bytes": 16 << 20,
    "send_buffer_watermark": 1 << 20,
    "max_peer_recv_buffer_size": 1 << 20,
    "max_out_request_queue": 256,  # of 16 KiB: four pieces
    "alert_queue_size": ALERTS,
    "min_reconnect_time": 2,  # seconds
    "peer_connect_timeout": 5,
    "handshake_timeout": 5,
    "request_timeout": 10,
    "piece_timeout": 10,
    "peer_timeout": 30,
    "inactivity_timeout": 60,
    "close_redundant_connections": True,  # two that have all have nothing to say to each other
    "listen_system_port_fallback": False,
}


class Torrent:
    """One torrent, from `Swarm.add` until `remove` has ended. Loop only."""

    def __init__(self, swarm: Swarm, handle: Any, have: Sequence[bool], came: Callable[[int], None]) -> None:
        self._swarm = swarm
        self._handle = handle
        self._have = list(have)
        self._came = came
        self.sent = self.received = 0  # bytes of pieces, since it was added
        self.peers = 0  # that it is connected to
        self.wrong = 0  # pieces that came and were not those of their hash
        self.fault = ""  # why it moves nothing any more
        self.removed = asyncio.Event()
        self._leaving = False

    def connect(self, host: str, port: int, background: bool = False) -> bool:
        """Look for a member of the swarm there, in the background where it is in another zone.

        False where that has to be asked for again a second later."""
        if self._leaving or not self._swarm.connects(background):
            return False
        self._handle.connect_peer((host, port))
        return True

    async def remove(self) -> bool:
        """Leave the swarm. True: the files are closed and nothing is written any more."""
        if not self._leaving:
            self._leaving = True
            self._swarm.remove(self._handle)
        try:
            async with asyncio.timeout(REMOVED_WITHIN):
                return await self.removed.wait()
        except TimeoutError:
            log.error("libtorrent does not let go of a torrent: its files stay as they are")
            return False

    def piece(self, number: int) -> None:
        """A piece is in its file, and has its hash."""
        if not self._leaving and not self._have[number]:
            self._have[number] = True
            self._came(number)

    def went(self, sent: int, received: int, peers: int) -> None:
        """How far it is."""
        self._swarm.on_sent(sent - self.sent)
        self.sent, self.received, self.peers = sent, received, peers


class Swarm:
    """This agent's session. `start` makes one; loop only."""

    def __init__(self, session: Any, pipe: tuple[int, int]) -> None:
        self._session = session
        self._read, self._write = pipe
        self._torrents: dict[Any, Torrent] = {}
        self._listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._background, self._asked = False, 0.0  # how connections were asked for, and when
        self._turning = False  # somebody waits to ask for them in the other way
        self.port = 0
        self.on_sent: Callable[[int], object] = lambda count: None  # told of bytes as they were sent
        self.on_banned: Callable[[str], object] = lambda host: None  # told of hosts that sent wrong pieces

    @classmethod
    async def start(cls, host: str, port: int, limits: tuple[int, int] = (0, 0)) -> Swarm:
        """Listen on a port of this address, 0 for one of the system's choice.

        `limits` are bytes per second to send and to receive, 0 for none. Raises ConfigError.
        """
        settings = SETTINGS | {
            "listen_interfaces": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            "outgoing_interfaces": host,
            "upload_rate_limit": limits[0],
            "download_rate_limit": limits[1],
            "alert_mask": _mask(),
        }
        session = await asyncio.to_thread(_session, settings)
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        swarm = cls(session, pipe)
        session.set_alert_fd(pipe[1])
        asyncio.get_running_loop().add_reader(pipe[0], swarm._drain)
        swarm._take_alerts()  # what came before there was a pipe
        try:
            async with asyncio.timeout(LISTEN_WITHIN):
                swarm.port = await swarm._listening
        except (TimeoutError, OSError) as error:
            await swarm.close()
            raise ConfigError(
                "peers.swarm_port", f"cannot listen on {host}:{port}: {error or 'no answer'}; choose another"
            ) from None
        return swarm

    def admit(self, hosts: Iterable[str]) -> None:
        """Members' addresses: only these get in, and are connected."""
        self._session.set_ip_filter(_filter(hosts))

    def add(
        self,
        metainfo: Mapping[bytes, object],
        paths: Mapping[int, Path],
        have: Sequence[bool],
        wanted: Sequence[bool],
        came: Callable[[int], None],
    ) -> Torrent:
        """Join the swarm of a torrent.

        `paths` are its files' by their numbers; of pieces those that it has are `have`, which nothing checks,
        and only those that are `wanted` are ever written. `came` is told of each, on the loop.
        """
        parameters = lt.load_torrent_buffer(lt.bencode({b"info": cast(Any, metainfo)}))
        parameters.save_path = str(next(iter(paths.values())).parent)
        parameters.renamed_files = {number: str(path) for number, path in paths.items()}
        parameters.storage_mode = lt.storage_mode_t.storage_mode_sparse
        parameters.have_pieces = list(have)
        parameters.piece_priorities = [4 if one else 0 for one in wanted]  # 4 is the middle one
        flags = lt.torrent_flags
        parameters.flags = (
            flags.no_verify_files | flags.disable_dht | flags.disable_lsd | flags.disable_pex
        ) | (flags.update_subscribe | flags.apply_ip_filter | flags.duplicate_is_error)
        handle = self._session.add_torrent(parameters)
        torrent = self._torrents[handle] = Torrent(self, handle, have, came)
        return torrent

    def connects(self, background: bool) -> bool:
        """For `Torrent.connect`: whether connections may be asked for in this way now, for all torrents.

        Who is refused since the other way has the turn gets it next: of that way no more are let through."""
        now = asyncio.get_running_loop().time()
        since = now - self._asked
        if background == self._background:
            if self._turning and since < TURNED_WITHIN:
                return False
        elif since < BEGUN_WITHIN:
            self._turning = True
            return False
        else:
            self._session.apply_settings({"enable_outgoing_utp": background})
            self._background = background
        self._asked, self._turning = now, False
        return True

    def remove(self, handle: Any) -> None:
        """For `Torrent.remove`."""
        self._session.remove_torrent(handle)

    def look(self) -> None:
        """Have every torrent's `progress` and `pieces` brought up to date soon."""
        self._session.post_torrent_updates()

    async def close(self) -> None:
        """Leave every swarm, and end the session."""
        await asyncio.gather(*(torrent.remove() for torrent in list(self._torrents.values())))
        asyncio.get_running_loop().remove_reader(self._read)
        self._session.set_alert_fd(-1)
        last, self._session = [self._session], None
        await asyncio.to_thread(
            last.clear
        )  # the last reference goes there: that waits for libtorrent's thread
        os.close(self._read)
        os.close(self._write)

    def _drain(self) -> None:
        try:
            while os.read(self._read, 4096):
                pass
        except BlockingIOError:
            pass
        self._take_alerts()

    def _take_alerts(self) -> None:
        for alert in self._session.pop_alerts():
            take = _TAKES.get(type(alert))
            if take is not None:
                take(self, alert)

    def _of(self, alert: Any) -> Torrent | None:
        return self._torrents.get(alert.handle)

    def _listens(self, alert: Any) -> None:
        if not self._listening.done() and alert.socket_type == lt.listen_succeeded_alert_socket_type_t.tcp:
            self._listening.set_result(alert.port)

    def _listens_not(self, alert: Any) -> None:
        if not self._listening.done():
            self._listening.set_exception(OSError(alert.error.message()))

    def _piece(self, alert: Any) -> None:
        if (torrent := self._of(alert)) is not None:
            torrent.piece(alert.piece_index)

    def _banned(self, alert: Any) -> None:
        self.on_banned(alert.endpoint[0])

    def _wrong(self, alert: Any) -> None:
        if (torrent := self._of(alert)) is not None:
            torrent.wrong += 1
            torrent.peers = max(1, torrent.peers)  # until the next look says whether anybody is left

    def _fault(self, alert: Any) -> None:
        if (torrent := self._of(alert)) is not None:
            torrent.fault = alert.message()
            log.warning("swarm: %s", torrent.fault)

    def _gone(self, alert: Any) -> None:
        torrent = self._torrents.pop(alert.handle, None)
        if torrent is not None:
            torrent.removed.set()

    def _dropped(self, alert: Any) -> None:
        """There were too many at once: pieces among them will be told with the state."""
        self.look()

    def _states(self, alert: Any) -> None:
        for status in alert.status:
            torrent = self._torrents.get(status.handle)
            if torrent is not None:
                torrent.went(status.total_payload_upload, status.total_payload_download, status.num_peers)
                for number, there in enumerate(status.pieces):
                    if there:
                        torrent.piece(number)


_TAKES: dict[type, Callable[[Swarm, Any], None]] = {
    lt.listen_succeeded_alert: Swarm._listens,
    lt.listen_failed_alert: Swarm._listens_not,
    lt.piece_finished_alert: Swarm._piece,
    lt.hash_failed_alert: Swarm._wrong,
    lt.peer_ban_alert: Swarm._banned,
    lt.file_error_alert: Swarm._fault,
    lt.torrent_error_alert: Swarm._fault,
    lt.torrent_removed_alert: Swarm._gone,
    lt.alerts_dropped_alert: Swarm._dropped,
    lt.state_update_alert: Swarm._states,
}


def _mask() -> int:
    category = lt.alert_category
    told = category.error | category.status | category.storage | category.piece_progress | category.peer
    return int(told)


def _session(settings: Mapping[str, Any]) -> Any:
    parameters = lt.session_params(cast(Any, dict(settings)))
    parameters.ip_filter = _filter(())
    parameters.disk_io_constructor = "posix_disk_io_constructor"
    session = lt.session(parameters)
    # All addresses of a private network would count as near, and be held to no limit.
    session.set_peer_class_filter(lt.ip_filter())
    return session


def _filter(hosts: Iterable[str]) -> Any:
    made = lt.ip_filter()
    made.add_rule("0.0.0.0", "255.255.255.255", 1)
    made.add_rule("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1)
    for host in hosts:
        made.add_rule(host, host, 0)
    return made
