// MQTT.js against a broker, in all three versions.
//
// usage: node mqtt_js.js HOST PORT PREFIX
//
// Prints one line per scenario; the exit code says whether all were met. Topics and client ids
// begin with PREFIX, so that runs against one broker do not meet.
'use strict';

const assert = require('node:assert/strict');
const mqtt = require('mqtt');

const WAIT = 20_000;
const [HOST, PORT, PREFIX] = process.argv.slice(2);
const VERSIONS = { 3.1: 3, '3.1.1': 4, '5.0': 5 };

function within(what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing within ${WAIT} ms`)), WAIT);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A client whose events are waited for, each within a bound. */
class Peer {
  static async open(version, name, { clean = true, will } = {}) {
    const peer = new Peer();
    peer.messages = [];
    peer.waiting = [];
    peer.client = mqtt.connect({
      host: HOST,
      port: Number(PORT),
      protocol: 'mqtt',
      protocolVersion: version,
      protocolId: version === 3 ? 'MQIsdp' : 'MQTT',
      clientId: (PREFIX + name).slice(-23),
      clean,
      keepalive: 30,
      reconnectPeriod: 0,
      will,
      properties: version === 5 ? { sessionExpiryInterval: clean ? 0 : 600 } : undefined,
    });
    // Before anything can come in.
    peer.client.on('message', (topic, payload, packet) => {
      const message = { topic, payload: payload.toString('latin1'), qos: packet.qos, retain: packet.retain };
      const next = peer.waiting.shift();
      if (next) next(message);
      else peer.messages.push(message);
    });
    peer.sessionPresent = await within(
      'CONNACK',
      new Promise((resolve, reject) => {
        peer.client.once('connect', (ack) => resolve(ack.sessionPresent));
        peer.client.once('error', reject);
        peer.client.once('close', () => reject(new Error('closed before CONNACK')));
      }),
    );
    return peer;
  }

  async subscribe(topic, qos) {
    const granted = await within('SUBACK', this.client.subscribeAsync(topic, { qos }));
    assert.deepEqual(granted.map((g) => g.qos), [qos]);
  }

  async publish(topic, payload, qos, retain = false) {
    await within('acknowledgement', this.client.publishAsync(topic, payload, { qos, retain }));
  }

  next() {
    if (this.messages.length) return Promise.resolve(this.messages.shift());
    return within('message', new Promise((resolve) => this.waiting.push(resolve)));
  }

  async expect(topic, payload, qos, retain = false) {
    assert.deepEqual(await this.next(), { topic, payload, qos, retain });
  }

  async end() {
    await within('end', this.client.endAsync());
  }

  /** Ends the connection without DISCONNECT. */
  crash() {
    this.client.stream.destroy();
  }
}

async function roundTrips(version, base) {
  const subscriber = await Peer.open(version, 'sub');
  const publisher = await Peer.open(version, 'pub');
  for (const qos of [0, 1, 2]) {
    const topic = `${base}/${qos}`;
    await subscriber.subscribe(qos ? `${topic}/#` : topic, qos);
    const payloads = ['', '\x00\xff', 'x'.repeat(100_000), ...Array.from({ length: 50 }, (_, i) => `${i}`)];
    // All at once: the client pipelines them.
    await Promise.all(payloads.map((p) => publisher.publish(topic, Buffer.from(p, 'latin1'), qos)));
    for (const payload of payloads) await subscriber.expect(topic, payload, qos);
  }
  await subscriber.subscribe(`${base}/lower`, 1);
  await publisher.publish(`${base}/lower`, 'two', 2);
  await subscriber.expect(`${base}/lower`, 'two', 1);
  await subscriber.end();
  await publisher.end();
}

async function retained(version, base) {
  const publisher = await Peer.open(version, 'pub');
  await publisher.publish(`${base}/kept`, 'first', 1, true);
  await publisher.publish(`${base}/kept`, 'second', 1, true);
  const early = await Peer.open(version, 'early');
  await early.subscribe(`${base}/+`, 1);
  await early.expect(`${base}/kept`, 'second', 1, true);
  await publisher.publish(`${base}/kept`, 'third', 1, true);
  await early.expect(`${base}/kept`, 'third', 1, false);
  await publisher.publish(`${base}/kept`, '', 1, true);
  await early.expect(`${base}/kept`, '', 1, false);
  const late = await Peer.open(version, 'late');
  await late.subscribe(`${base}/+`, 1);
  await publisher.publish(`${base}/other`, 'live', 1);
  await late.expect(`${base}/other`, 'live', 1);
  for (const peer of [publisher, early, late]) await peer.end();
}

async function will(version, base) {
  const watcher = await Peer.open(version, 'watch');
  await watcher.subscribe(`${base}/will`, 1);
  const last = (payload) => ({ topic: `${base}/will`, payload: Buffer.from(payload), qos: 1, retain: false });
  const polite = await Peer.open(version, 'polite', { will: last('polite') });
  await polite.end();
  const crashing = await Peer.open(version, 'crash', { will: last('crashed') });
  crashing.crash();
  await watcher.expect(`${base}/will`, 'crashed', 1);
  await watcher.end();
}

async function session(version, base) {
  const subscriber = await Peer.open(version, 'kept', { clean: false });
  assert(!subscriber.sessionPresent, 'a session that nobody made');
  await subscriber.subscribe(`${base}/#`, 2);
  await subscriber.end();
  const publisher = await Peer.open(version, 'pub');
  const sent = Array.from({ length: 20 }, (_, i) => ({ payload: `${i}`, qos: 1 + (i % 2) }));
  for (const { payload, qos } of sent) await publisher.publish(`${base}/a`, payload, qos);
  const again = await Peer.open(version, 'kept', { clean: false });
  assert(again.sessionPresent || version === 3, 'the session is lost');
  const got = [];
  for (let i = 0; i < sent.length; i++) {
    const { payload, qos } = await again.next();
    got.push({ payload, qos });
  }
  const byPayload = (a, b) => a.payload - b.payload;
  assert.deepEqual(got.sort(byPayload), sent);
  await publisher.publish(`${base}/b`, 'live', 1);
  await again.expect(`${base}/b`, 'live', 1);
  await again.end();
  const fresh = await Peer.open(version, 'kept', { clean: true });
  assert(!fresh.sessionPresent, 'a clean session has a past');
  await publisher.end();
  await fresh.end();
}

async function main() {
  for (const [name, version] of Object.entries(VERSIONS)) {
    for (const scenario of [roundTrips, retained, will, session]) {
      await scenario(version, `${PREFIX}/${name}/${scenario.name}`);
      console.log(`ok ${name} ${scenario.name}`);
    }
  }
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
