"""paho-mqtt, the Python client, against a broker, in all three versions.

usage: paho_python.py HOST PORT PREFIX

Prints one line per scenario; the exit code says whether all were met. Topics and client ids begin
with PREFIX, so that runs against one broker do not meet.
"""

import queue
import socket
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

WAIT = 20.0
HOST, PORT, PREFIX = sys.argv[1], int(sys.argv[2]), sys.argv[3]
NAMES = {mqtt.MQTTv31: "3.1", mqtt.MQTTv311: "3.1.1", mqtt.MQTTv5: "5.0"}


class Peer:
    """A client whose events are waited for, each within a bound."""

    def __init__(self, version, name, clean=True, will=None):
        self.version = version
        self.messages = queue.Queue()
        self.connected = queue.Queue()
        self.subscribed = queue.Queue()
        self.disconnected = threading.Event()
        self.done = queue.Queue()
        # MQTT 3.1 allows 23 characters.
        client_id = f"{PREFIX}{name}"[-23:]
        old = {} if version == mqtt.MQTTv5 else {"clean_session": clean}
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=version, **old
        )
        self.client.on_connect = lambda c, u, flags, reason, p: self.connected.put((flags, reason))
        self.client.on_message = lambda c, u, message: self.messages.put(message)
        self.client.on_subscribe = lambda c, u, mid, codes, p: self.subscribed.put(codes)
        self.client.on_publish = lambda c, u, mid, reason, p: self.done.put((mid, reason))
        self.client.on_disconnect = lambda *_: self.disconnected.set()
        if will is not None:
            self.client.will_set(*will)
        new = {}
        if version == mqtt.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 0 if clean else 600
            new = {"clean_start": clean, "properties": properties}
        self.client.connect(HOST, PORT, keepalive=30, **new)
        self.client.loop_start()
        flags, reason = self.connected.get(timeout=WAIT)
        assert not reason.is_failure, f"CONNACK {reason}"
        self.session_present = flags.session_present

    def subscribe(self, topic, qos):
        self.client.subscribe(topic, qos)
        codes = self.subscribed.get(timeout=WAIT)
        assert [code.value for code in codes] == [qos], f"granted {codes}, asked {qos}"

    def publish(self, topic, payload, qos, retain=False):
        self.client.publish(topic, payload, qos, retain).wait_for_publish(WAIT)
        _, reason = self.done.get(timeout=WAIT)
        assert not reason.is_failure, f"publish: {reason}"

    def expect(self, topic, payload, qos, retain=False):
        message = self.messages.get(timeout=WAIT)
        got = (message.topic, message.payload, message.qos, bool(message.retain))
        want = (topic, payload, qos, retain)
        assert got == want, f"got {str(got)[:300]}, want {str(want)[:300]}"

    def end(self):
        self.client.disconnect()
        assert self.disconnected.wait(WAIT), "no end of the connection"
        self.client.loop_stop()

    def crash(self):
        """Ends the connection without DISCONNECT."""
        self.client.loop_stop()
        self.client.socket().shutdown(socket.SHUT_RDWR)


def round_trips(version, base):
    subscriber, publisher = Peer(version, "sub"), Peer(version, "pub")
    for qos in (0, 1, 2):
        topic = f"{base}/{qos}"
        subscriber.subscribe(f"{base}/{qos}/#" if qos else topic, qos)
        payloads = [b"", b"\x00\xff", b"x" * 100_000] + [b"%d" % i for i in range(50)]
        for payload in payloads:
            publisher.publish(topic, payload, qos)
        for payload in payloads:
            subscriber.expect(topic, payload, qos)
    # What a subscription grants is the lower of the two.
    subscriber.subscribe(f"{base}/lower", 1)
    publisher.publish(f"{base}/lower", b"two", 2)
    subscriber.expect(f"{base}/lower", b"two", 1)
    subscriber.end()
    publisher.end()


def retained(version, base):
    publisher = Peer(version, "pub")
    publisher.publish(f"{base}/kept", b"first", 1, retain=True)
    publisher.publish(f"{base}/kept", b"second", 1, retain=True)
    early = Peer(version, "early")
    early.subscribe(f"{base}/+", 1)
    early.expect(f"{base}/kept", b"second", 1, retain=True)
    publisher.publish(f"{base}/kept", b"third", 1, retain=True)
    early.expect(f"{base}/kept", b"third", 1, retain=False)
    publisher.publish(f"{base}/kept", b"", 1, retain=True)
    early.expect(f"{base}/kept", b"", 1, retain=False)
    late = Peer(version, "late")
    late.subscribe(f"{base}/+", 1)
    publisher.publish(f"{base}/other", b"live", 1)
    late.expect(f"{base}/other", b"live", 1)
    for peer in (publisher, early, late):
        peer.end()


def will(version, base):
    watcher = Peer(version, "watch")
    watcher.subscribe(f"{base}/will", 1)
    polite = Peer(version, "polite", will=(f"{base}/will", b"polite", 1, False))
    polite.end()
    crashing = Peer(version, "crash", will=(f"{base}/will", b"crashed", 1, False))
    crashing.crash()
    watcher.expect(f"{base}/will", b"crashed", 1)
    watcher.end()


def session(version, base):
    subscriber = Peer(version, "kept", clean=False)
    assert not subscriber.session_present, "a session that nobody made"
    subscriber.subscribe(f"{base}/#", 2)
    subscriber.end()
    publisher = Peer(version, "pub")
    sent = [(b"%d" % i, 1 + i % 2) for i in range(20)]
    for payload, qos in sent:
        publisher.publish(f"{base}/a", payload, qos)
    again = Peer(version, "kept", clean=False)
    assert again.session_present or version == mqtt.MQTTv31, "the session is lost"
    got = sorted((m.payload, m.qos) for m in (again.messages.get(timeout=WAIT) for _ in sent))
    assert got == sorted(sent), f"got {got}"
    publisher.publish(f"{base}/b", b"live", 1)
    again.expect(f"{base}/b", b"live", 1)
    again.end()
    fresh = Peer(version, "kept", clean=True)
    assert not fresh.session_present, "a clean session has a past"
    publisher.end()
    fresh.end()


def main():
    for version, name in NAMES.items():
        for scenario in (round_trips, retained, will, session):
            scenario(version, f"{PREFIX}/{name}/{scenario.__name__}")
            print(f"ok {name} {scenario.__name__}", flush=True)


main()
