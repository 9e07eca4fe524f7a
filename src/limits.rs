//! Every bound of the program, in one place: what has no configuration key has its number here,
//! and what has one has its default and its maximum here.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Duration;

/// Most shards of one broker. A set of shards is one 64-bit word.
pub const SHARDS_MAX: usize = 64;

/// Where a broker listens that is not told otherwise.
pub const LISTEN_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1883);
/// Addresses that one broker listens on.
pub const LISTENERS_MAX: usize = 64;

/// Largest Remaining Length that MQTT can express (`[MQTT-1.5.5]`), in bytes.
pub const REMAINING_LENGTH_MAX: usize = 268_435_455;
/// Largest packet accepted by default, fixed header included, in bytes.
pub const PACKET_SIZE_DEFAULT: usize = 2 * 1024 * 1024;
/// The range of what can be configured instead.
pub const PACKET_SIZE_LEAST: usize = 1024;
/// The range's other end: the largest packet that MQTT can express, rounded up.
pub const PACKET_SIZE_MAX: usize = 256 * 1024 * 1024;
/// Largest CONNECT accepted by default, fixed header included, in bytes: bounds what a stranger can
/// make the broker hold.
pub const CONNECT_SIZE_DEFAULT: usize = 128 * 1024;
/// The least that can be configured instead; the most is [`PACKET_SIZE_MAX`].
pub const CONNECT_SIZE_LEAST: usize = 256;
/// How long a connection may take to send its CONNECT.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Within so much the machine knows when input has arrived.
pub const INPUT_AGE_COARSE: Duration = Duration::from_millis(50);
/// Authentication methods of one broker.
pub const AUTHENTICATION_METHODS_MAX: usize = 16;
/// Authentication Data of one packet of a client, in bytes.
pub const AUTHENTICATION_DATA_BYTES_MAX: usize = 16 * 1024;
/// Packets of a client in one exchange of enhanced authentication, its CONNECT included.
pub const AUTHENTICATION_STEPS_MAX: u32 = 16;
/// Characters of a string that a client has chosen which are shown in a log line.
pub const LOGGED_CHARS_MAX: usize = 64;

/// Bytes of a topic name or filter: what MQTT can express, and the default of what is accepted.
pub const TOPIC_BYTES_MAX: usize = 65_535;
/// Most levels that a topic name can have, by its length: the default of what is accepted.
pub const TOPIC_NAME_LEVELS_MAX: usize = TOPIC_BYTES_MAX + 1;
/// Levels of a topic filter, whatever is configured.
pub const TOPIC_LEVELS_MAX: usize = 128;
/// Bytes of a Server Reference: it has to fit into the packets of small clients.
pub const SERVER_REFERENCE_BYTES_MAX: usize = 1024;
/// Sessions, connected or not, for the whole broker: an unfinished one may last for ever.
pub const SESSIONS_MAX: usize = 1_000_000;
/// Bytes that one idle connection with its session takes in our tables, on io_uring, with a client id
/// of 20 bytes: held by a test, not by the broker.
pub const IDLE_CONNECTION_BYTES: usize = 448;
/// Bytes that one filter of one subscriber takes, held by a test likewise: one shard, two levels that
/// no other filter has.
pub const FILTER_BYTES: usize = 130;
/// Subscriptions of one session.
pub const SUBSCRIPTIONS_PER_SESSION_MAX: usize = 100_000;
/// Filters of one SUBSCRIBE or UNSUBSCRIBE: what one packet makes a tick do. In a SUBSCRIBE each
/// one beyond is refused; an UNSUBSCRIBE with more cannot be refused so and ends its connection.
pub const FILTERS_PER_PACKET_MAX: usize = 8192;

/// QoS 1 and 2 messages that a client may have unacknowledged towards us (Receive Maximum).
pub const RECEIVE_MAXIMUM: u16 = 1024;
/// QoS 1 and 2 messages that we have unacknowledged towards one client, whatever it allows.
pub const IN_FLIGHT_MAX: u16 = 1024;
/// QoS 1 and 2 messages queued behind the in-flight window of one session.
pub const QUEUE_LEN_MAX: usize = 100_000;
/// Bytes of those in memory: with a journal, more are left to it.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of those that only the journal has.
pub const QUEUE_DISK_BYTES_MAX: usize = 4 * 1024 * 1024 * 1024;
/// Bytes of one queue that are to be ready for a client that takes them, while the rest is on disk.
pub const READ_WINDOW_BYTES: usize = 2 * 1024 * 1024;
/// Bytes that one question to the journal asks for, give or take a message.
pub const READ_PIECE_BYTES: usize = 1024 * 1024;
/// Messages that it asks for.
pub const READ_PIECE_LEN: usize = 4096;
/// Such questions of one shard that are open.
pub const READS_OPEN_MAX: usize = 16;
/// Messages of one queue that are evicted before it is another one's turn.
pub const EVICT_STEP: usize = 64;
/// Messages evicted where one more is queued while a shard holds more than it should.
pub const EVICT_PER_MESSAGE: usize = 8;
/// The same where a publication would be refused, or in one tick.
pub const EVICT_PER_TICK: usize = 2048;
/// Answers of one shard that wait for a commit; beyond, publishers are not read.
pub const PARKED_MAX: usize = 65_536;
/// Changes of one shard that the journal has not committed, above which its publishers wait.
pub const CHANGES_OPEN_MAX: u64 = 262_144;
/// Bytes in them, above which publishers wait.
pub const CHANGES_OPEN_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of changes between the places at which it is known how many were committed.
pub const CHANGES_MARK_BYTES: u64 = 16 * 1024;
/// Wills of one shard that are due and not yet published; beyond, CONNECTs wait.
pub const WILLS_DUE_MAX: usize = 4096;
/// Messages of shared subscriptions that wait for another member, above which no further session
/// ends. One session may bring as many more as its queue and window hold.
pub const MOVES_MAX: usize = 4096;
/// Members of a shared subscription that "least in flight" looks at for one message, from the one
/// whose turn it is on: of more, each message looks at others.
pub const LEAST_IN_FLIGHT_LOOKS: usize = 256;
/// Topic aliases that a client may define on one connection.
pub const TOPIC_ALIAS_MAX: u16 = 32;
/// Topic aliases that we use towards one client, if it allows as many. Each costs a comparison per
/// message, and 32 bytes per connection.
pub const TOPIC_ALIASES_OUT_MAX: u16 = 16;
/// The most that can be configured instead.
pub const TOPIC_ALIASES_OUT_LIMIT: u16 = 256;
/// Bytes of a topic from which on an alias pays: it costs three bytes itself, in each packet, so
/// that with six its first use has paid for its definition.
pub const TOPIC_ALIAS_LEN_MIN: usize = 6;

/// Bytes waiting for one connection above which QoS 0 messages for it are dropped and counted.
pub const OUTBOX_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes waiting for one connection above which queued QoS 1 and 2 messages stay queued.
pub const OUTBOX_BYTES_MARK: usize = 256 * 1024;
/// Payloads of at least this size are shared between receivers; smaller ones are copied.
pub const SHARE_PAYLOAD_FROM: usize = 4096;

/// Payload memory of queued, in-flight and retained messages, Wills and topic aliases, for the whole
/// broker, in bytes.
pub const MEMORY_BUDGET_DEFAULT: usize = 1024 * 1024 * 1024;

/// The part of it that Wills and topic aliases may take together: one in so many.
pub const MEMORY_HELD_PART: usize = 4;

/// Batches that one lane's ring holds.
pub const LANE_RING_LEN: usize = 16;
/// Emptied batches that a lane keeps for their next use: what is on its way in a busy tick, not in
/// a burst. At most this many times [`BATCH_BYTES_KEPT`] of memory a lane.
pub const LANE_RECYCLE_LEN: usize = 4;
/// Bytes of a batch, large payloads included, above which publishers towards it wait for the next
/// tick.
pub const BATCH_BYTES: usize = 256 * 1024;
/// Bytes that an emptied batch keeps: its mark, and room for what crosses it.
pub const BATCH_BYTES_KEPT: usize = BATCH_BYTES + BATCH_BYTES / 4;
/// Buffers of recorded publications that a shard keeps for the next: what a busy tick has.
pub const CONTENTS_KEPT: usize = 8192;
/// Bytes that each of its two buffers keeps. Together at most 4 MiB a shard.
pub const CONTENT_BYTES_KEPT: usize = 256;
/// Bytes in a lane's spill above which publishers towards it are paused.
pub const SPILL_BYTES_MARK: usize = 1024 * 1024;
/// Bytes of publishes that one lane holds before its publishers wait, give or take the message
/// that crosses a batch's mark: the ring, the spill, and the batch of the tick.
pub const LANE_BYTES_MAX: usize = (LANE_RING_LEN + 1) * BATCH_BYTES + SPILL_BYTES_MARK;
/// What a stored message takes, for each byte of its entry in a lane, at most: small ones cost
/// more to keep than to send.
pub const STORED_PER_LANE_BYTE: usize = 5;
/// Open questions from one shard to one other (SHARDS.md L4).
pub const QUESTIONS_MAX: usize = 256;
/// Retained messages in one answer to a replay's question.
pub const REPLAY_PIECE: usize = 64;
/// Their bytes, beyond which an answer is cut after the message that crossed it.
pub const REPLAY_PIECE_BYTES: usize = 128 * 1024;
/// Bytes waiting for one connection above which a replay to it waits: up to there, all of a piece
/// but its last message fits below the mark. The shard awaits sends of more, so that it goes on.
pub const REPLAY_OUTBOX_BYTES_MAX: usize = OUTBOX_BYTES_MARK - REPLAY_PIECE_BYTES;
/// Stored topics looked at for one piece of a replay, matching or not.
pub const REPLAY_STEPS: usize = 4096;
/// Pieces of replays in one tick.
pub const REPLAY_PIECES_PER_TICK: usize = 64;
/// Topics that one shard remembers as seen live while answers to replays are awaited.
pub const REPLAY_FRESH_MAX: usize = 16_384;
/// Retained messages that one shard owns.
pub const RETAINED_TOPICS_MAX: usize = 4_000_000;
/// How long other shards go on forwarding what nobody here wants any more.
pub const INTEREST_LINGER: Duration = Duration::from_millis(500);
/// Filters that linger so; more are lowered at once.
pub const INTEREST_LINGER_MAX: usize = 4096;
/// Topics of which a shard remembers who receives them; a power of two.
pub const MATCH_CACHE_LEN: usize = 4096;
/// Subscriptions and groups that one remembered topic may hold beyond the topic tree's own lists.
pub const MATCH_CACHE_MERGED_MAX: usize = 256;
/// Bytes of a topic whose receivers are remembered: clients choose how long topics are.
pub const MATCH_CACHE_TOPIC_MAX: usize = 256;
/// Wills, expiries and moves handled in one tick (SHARDS.md L5).
pub const DEFERRED_PER_TICK: usize = 128;

/// Bytes read of a paused connection after which nothing more is read of it.
pub const INPUT_BYTES_MARK: usize = 64 * 1024;
/// Emptied output buffers that a shard keeps for their next use.
pub const SPARE_BUFFERS: usize = 256;
/// Bytes that each of them keeps.
pub const SPARE_BUFFER_BYTES: usize = 64 * 1024;
/// Reads within a second after which a connection's input counts as a stream, and its pure
/// acknowledgements are worth suppressing.
pub const QUICK_ACK_READS: u16 = 64;

/// Buffers kept for the next start of a frame that the end of a receive buffer cuts.
pub const SPARE_INPUTS: usize = 64;
/// The largest of them, in bytes.
pub const SPARE_INPUT_BYTES: usize = 4096;

/// The longest that an event loop looks for work before it sleeps, in microseconds: beyond, sleeping
/// is not what a message waits for.
pub const SPIN_MICROS_MAX: u32 = 1000;
/// Size of one provided receive buffer, in bytes.
pub const RECV_BUFFER_BYTES: usize = 4096;
/// Provided receive buffers of one shard; a power of two.
pub const RECV_BUFFERS: usize = 2048;
/// Submission queue entries of one ring.
pub const RING_ENTRIES: u32 = 4096;
/// Completions handled in one tick.
pub const COMPLETIONS_PER_TICK: usize = 1024;
/// Bytes read from one connection in one tick where the backend decides it (epoll).
pub const RECV_BYTES_PER_TICK: usize = 256 * 1024;
/// Size of one receive buffer of the epoll backend, in bytes: one is in use per read, not per
/// segment, so it is larger than a provided one.
pub const EPOLL_BUFFER_BYTES: usize = 16 * 1024;
/// Receive buffers of one shard with the epoll backend.
pub const EPOLL_BUFFERS: usize = COMPLETIONS_PER_TICK;
/// Connections accepted, or turned away, from one listener in one tick.
pub const ACCEPTS_PER_TICK: usize = 64;
/// Descriptors that connections leave free, for files and for shards that accept at the same time;
/// of a small limit a quarter. Peers beyond are turned away.
pub const SPARE_DESCRIPTORS: u64 = 16;
/// Pieces of one outgoing buffer that are handed to the kernel at once.
pub const SEND_PIECES: usize = 64;
/// Bytes of a journal's first segment; each next one has twice as many, up to the other size.
pub const JOURNAL_SEGMENT_BYTES_FIRST: u64 = 1024 * 1024;
/// Bytes of a segment at most, unless one record needs more.
pub const JOURNAL_SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes that gather for a commit from which on the next record is one of the next.
pub const JOURNAL_COMMIT_BYTES: usize = 4 * 1024 * 1024;
/// Bytes that a commit's buffer keeps for its next use.
pub const JOURNAL_COMMIT_BYTES_KEPT: usize = 8 * 1024 * 1024;
/// Longest topic whose receivers the journal's host remembers for the next message, in bytes.
pub const JOURNAL_KNOWN_TOPIC: usize = 1024;
/// Receivers of a topic that it remembers, at most.
pub const JOURNAL_KNOWN_RECEIVERS: usize = 64;
/// The journal's files take at most so many times what is needed of them, and so many segments.
pub const JOURNAL_DISK_FACTOR: u64 = 2;
/// See [`JOURNAL_DISK_FACTOR`].
pub const JOURNAL_DISK_SEGMENTS: u64 = 4;
/// Segments that are kept ready.
pub const JOURNAL_SPARES_MAX: usize = 2;
/// Bytes of an old segment that are read at once, and looked through in one turn, to free it.
pub const JOURNAL_CLEAN_BYTES: usize = 128 * 1024;
/// Segments that the journal has open at once; the one that was read longest ago is closed for another.
pub const JOURNAL_OPEN_MAX: usize = 8;
/// Segments with commits that nobody wanted synced, beyond which the next commit syncs them.
pub const JOURNAL_UNSYNCED_MAX: usize = 3;
/// Reads for messages that queues have left to the journal, under way at once.
pub const JOURNAL_READS_MAX: usize = 4;
/// Reads for one answer, after which it is given as far as it is.
pub const JOURNAL_READS_PER_ANSWER: u32 = 16;
/// Times that something is read whose checksum does not hold, before it is given up.
pub const JOURNAL_READ_TRIES_MAX: u32 = 6;
/// Bytes of one of them, unless one record has more.
pub const JOURNAL_READ_BACK_BYTES: usize = 1024 * 1024;
/// Bytes of an answer from which on it is given as far as it is.
pub const JOURNAL_ANSWER_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of a new segment that are zeroed at once.
pub const JOURNAL_ZERO_BYTES: usize = 1024 * 1024;
/// Which part of the memory budget a recovery reads of what queues hold; the rest stays on disk.
pub const RECOVER_MEMORY_PART: u64 = 8;
/// Bytes that a recovery reads at once as it looks through a segment, unless a commit has more. Less
/// than half of what a core's second cache holds.
pub const JOURNAL_SCAN_BYTES: usize = 256 * 1024;
/// Bytes that a recovery reads at once where it needs single records.
pub const JOURNAL_READ_BYTES: usize = 256 * 1024;
/// Bytes whose checksums a damaged frame may cost, for each of its own, while a whole record is
/// looked for in it.
pub const JOURNAL_RESYNC_FACTOR: usize = 64;
/// How long the journal waits before it tries again what has failed; doubled each time.
pub const JOURNAL_RETRY_FIRST: Duration = Duration::from_millis(50);
/// The longest of these waits.
pub const JOURNAL_RETRY_MAX: Duration = Duration::from_secs(2);
/// Answers to messages of which the journal has no record yet that are remembered.
pub const JOURNAL_EARLY_MAX: usize = 65_536;
/// Messages, from the last on, that an UNSUBSCRIBE makes the journal look at: more than can be
/// under way between shards.
pub const JOURNAL_UNSUBSCRIBE_LOOKS: usize = 16_384;
/// Messages in one record of what an UNSUBSCRIBE has ended.
pub const JOURNAL_ENDED_PER_RECORD: usize = 1024;
/// Messages of sessions that have ended that the journal takes apart in one turn.
pub const JOURNAL_ENDING_STEP: usize = 2048;
/// Damaged places that a recovery, or a turn of the journal, names one by one.
pub const JOURNAL_DAMAGE_REPORTED: usize = 100;
/// Operations on files that each of a backend's two helper threads has before it.
pub const FILE_OPS_MAX: usize = 64;
/// How long a listener rests after a failure to accept that turning peers away does not mend.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a closing connection may take to read what it was sent.
pub const CLOSE_FLUSH: Duration = Duration::from_secs(2);
/// How long we read to the peer's end after we have shut down writing.
pub const CLOSE_LINGER: Duration = Duration::from_millis(500);
/// How long a shutdown may take to flush all outboxes.
pub const SHUTDOWN_FLUSH: Duration = Duration::from_secs(3);
/// How long the control thread waits for all shards to stop: they may need
/// [`SHUTDOWN_FLUSH`] twice, for what is between them and for their clients.
pub const STOP_WAIT: Duration = Duration::from_secs(8);
/// How long the control thread waits for the counters of all shards.
pub const REPORT_WAIT: Duration = Duration::from_secs(1);
/// Connections that the kernel holds for a listener until they are accepted.
pub const LISTEN_BACKLOG: i32 = 4096;

/// Connections of one load generator.
pub const BENCH_CLIENTS_MAX: usize = 60_000;
/// Pairs of publisher and subscriber whose messages one load generator keeps account of.
pub const BENCH_STREAMS_MAX: usize = 4_000_000;
/// Largest message of the load generator, in bytes.
pub const BENCH_PAYLOAD_MAX: usize = 16 * 1024 * 1024;
/// Messages of one publisher that a closed loop has under way.
pub const BENCH_WINDOW_MAX: u32 = 65_536;
/// Longest measurement, and longest warm-up.
pub const BENCH_DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Gaps in the sequence of one stream that are remembered, to tell late from repeated.
pub const BENCH_GAPS_MAX: usize = 1024;
/// Bytes waiting for one publisher's connection above which it publishes no further.
pub const BENCH_OUT_BYTES_MARK: usize = 1024 * 1024;
/// How long it may take while connecting until the next client is connected and subscribed.
pub const BENCH_SET_UP_STEP: Duration = Duration::from_secs(20);
/// Silence after which a closed loop gives up what is under way. What comes later still counts.
pub const BENCH_STALL: Duration = Duration::from_secs(2);
/// Silence after which what has not arrived is lost. Longer than any stall of a busy machine: what
/// is only late must not be called lost.
pub const BENCH_SILENCE: Duration = Duration::from_secs(8);
/// How long taking stored messages and sessions out of the broker again may take.
pub const BENCH_CLEAN_UP: Duration = Duration::from_secs(30);
/// Threads of one load generator.
pub const BENCH_THREADS_MAX: usize = 64;
/// Bytes waiting for one receiver above which the sink drops what comes for it.
pub const BENCH_SINK_OUT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Sequence numbers that are believed where each one takes a bit.
pub const BENCH_SEQUENCE_MAX: u32 = 1 << 30;
/// How long closing may take.
pub const BENCH_GOODBYE: Duration = Duration::from_secs(2);

/// Sets of runs that are compared: as many as there are colours that can be told apart.
pub const COMPARE_SETS_MAX: usize = 8;
/// Runs in one set.
pub const COMPARE_RUNS_MAX: usize = 2000;
/// Folders below the given one in which runs are looked for.
pub const COMPARE_FOLDER_DEPTH_MAX: usize = 4;
/// Largest file of a run that is read, in bytes.
pub const COMPARE_FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Runs of each side from which on a difference is called one.
pub const COMPARE_VERDICT_RUNS_MIN: usize = 3;
/// Resamplings of a bootstrap.
pub const COMPARE_RESAMPLES: usize = 4000;
/// Points of a curve over time; a longer run is drawn by groups of seconds.
pub const COMPARE_POINTS_MAX: usize = 240;

const _: () = {
    assert!(RECV_BUFFERS.is_power_of_two() && RECV_BUFFERS <= 32_768, "a provided-buffer ring");
    assert!(RING_ENTRIES.is_power_of_two());
    assert!(MATCH_CACHE_LEN.is_power_of_two());
    assert!(OUTBOX_BYTES_MARK < OUTBOX_BYTES_MAX);
    assert!(
        REPLAY_OUTBOX_BYTES_MAX < OUTBOX_BYTES_MARK,
        "whoever stops at the mark is awaited too"
    );
    assert!(READ_PIECE_BYTES <= READ_WINDOW_BYTES);
    // A segment that is being prepared and a directory that is being synced come on top; the
    // others are for who accepts.
    let most = JOURNAL_OPEN_MAX + JOURNAL_UNSYNCED_MAX + JOURNAL_SPARES_MAX + 2;
    assert!(most <= SPARE_DESCRIPTORS as usize);
    assert!(JOURNAL_READS_MAX < JOURNAL_OPEN_MAX - 2, "the last and the oldest stay open");
    assert!(STOP_WAIT.as_secs() > 2 * SHUTDOWN_FLUSH.as_secs());
    assert!(CONNECT_SIZE_DEFAULT <= PACKET_SIZE_DEFAULT);
    assert!(CONNECT_SIZE_LEAST <= PACKET_SIZE_LEAST);
};
