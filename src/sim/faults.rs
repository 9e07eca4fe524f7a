//! What can happen in a simulated world, by name: faults and features, which of them a seed has
//! switched on and how often they strike, and how often they did.
#![forbid(unsafe_code)]

use super::random::Random;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// One thing that a seed may switch on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// As `--without` and the table call it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// Reads of one or a few bytes.
    SmallReads = "small-reads",
    /// Sends that the kernel takes in pieces.
    ShortWrites = "short-writes",
    /// Segments that take long.
    Delays = "delays",
    /// Connections that break.
    Resets = "resets",
    /// Clients that are gone without a word.
    Vanish = "vanish",
    /// Clients that do not read for a while.
    ZeroWindow = "zero-window",
    /// No receive buffer (ENOBUFS): a receive that waits, a multishot that is begun again.
    NoBuffers = "no-buffers",
    /// Accept without a descriptor (EMFILE).
    Emfile = "emfile",
    /// A socket that cannot be registered.
    RegisterError = "register-error",
    /// Few completions per poll, as after an overflow of the queue.
    FewCompletions = "few-completions",
    /// Completions of different connections in any order.
    Shuffled = "shuffled-completions",
    /// Data and the end of a cancelled receive, or of a closed connection, that come late.
    LateEnds = "late-ends",
    /// A shard that does not run for a while.
    StalledShard = "stalled-shard",
    /// Wake-ups for nothing.
    Spurious = "spurious-wake",
    /// Hours that pass at once.
    ClockJump = "clock-jump",
    /// The broker stops as it should, and starts again with nothing.
    Restart = "restart",
    /// The broker is killed, and starts again with nothing.
    Crash = "crash",
    /// A connection of a client that has one.
    Takeover = "takeover",
    /// A connection that its client gives up before CONNACK.
    Abandon = "abandon",
    /// CONNECT with Clean Start where there may be a session.
    CleanStart = "clean-start",
    /// Connections with a Will.
    Will = "will",
    /// Wills that wait.
    WillDelay = "will-delay",
    /// Sessions that end some seconds after their connection.
    SessionExpiry = "session-expiry",
    /// Messages that live for seconds.
    MessageExpiry = "message-expiry",
    /// Retained messages.
    Retain = "retain",
    /// Retained messages that are cleared.
    Clear = "retain-clear",
    /// Filters with wildcards.
    Wildcards = "wildcards",
    /// Shared subscriptions.
    Shared = "shared",
    /// No Local, Retain As Published, Retain Handling.
    Options = "subscription-options",
    /// Subscription identifiers.
    Identifiers = "subscription-identifiers",
    /// UNSUBSCRIBE.
    Unsubscribe = "unsubscribe",
    /// Topic aliases towards the broker.
    Aliases = "topic-alias",
    /// Payloads of some kilobytes.
    Large = "large-payload",
    /// Payloads of about a hundred kilobytes.
    Huge = "huge-payload",
    /// Many topics, mostly retained.
    ManyTopics = "many-topics",
    /// Topic aliases towards clients.
    AliasesOut = "topic-alias-out",
    /// Ages of input that are known to some milliseconds only.
    CoarseAges = "coarse-ages",
    /// Clients that take small packets only.
    PacketMax = "packet-max",
    /// Clients that acknowledge late.
    SlowAck = "slow-ack",
    /// Clients with a small Receive Maximum.
    Window = "small-window",
    /// Clients that break the protocol.
    Misbehave = "misbehave",
    /// Clients with a keep alive.
    KeepAlive = "keep-alive",
    /// DISCONNECT with code 0x04.
    Disconnects = "disconnect-kinds",
    /// DISCONNECT with another session expiry.
    ExpiryChange = "expiry-change",
    /// Packets right behind CONNECT.
    Behind = "behind-connect",
    /// Enhanced authentication, in several steps.
    Login = "authentication",
    /// The same again, by clients that are online.
    LoginAgain = "re-authentication",
    /// A broker that queues little.
    QueueLimit = "queue-limit",
    /// A broker whose connections may have little unsent.
    OutboxLimit = "outbox-limit",
    /// A broker with little memory for messages.
    MemoryLimit = "memory-limit",
    /// A broker with no more sessions than its clients need, and strangers who want some too.
    SessionLimit = "session-limit",
    /// A broker that allows few subscriptions.
    SubscriptionLimit = "subscription-limit",
    /// A broker that takes small packets only.
    PacketLimit = "packet-limit",
    /// A broker that caps the keep alive.
    KeepAliveLimit = "keep-alive-limit",
    /// A broker whose journal is on a disk: what it has acknowledged lasts.
    Durability = "durability",
    /// The power is cut, and what was not synced is lost, or not.
    PowerCut = "power-cut",
    /// After a restart there are as many shards as it comes.
    Reshard = "other-shard-count",
    /// A disk that does nothing for a while.
    DiskStuck = "disk-stuck",
    /// Writes that fail, and have happened in part.
    DiskWriteError = "disk-write-error",
    /// Syncs that fail, and forget.
    DiskSyncError = "disk-sync-error",
    /// No room on the disk (ENOSPC).
    DiskFull = "disk-full",
    /// A file system that cannot be written (EROFS).
    DiskReadOnly = "disk-read-only",
    /// A durable broker that leaves queues to its journal alone.
    Evict = "queues-on-disk",
    /// A crash or a power cut that waits for a write of the journal to be under way.
    MidWrite = "crash-mid-write",
    /// Clients that subscribe to one new topic at one time, and publish there.
    Herd = "herd",
    /// Clients that use a packet id again as soon as it is free.
    LowestId = "lowest-packet-id",
    /// Clients that ask for what the broker does not take, and a broker that takes less than it may.
    Refusals = "refused-requests",
}

impl Kind {
    /// Whether something goes wrong, in the network, the kernel, the clock, the disk or the process;
    /// the others are what clients do, and what the broker offers.
    pub const fn is_fault(self) -> bool {
        matches!(
            self,
            Self::SmallReads
                | Self::ShortWrites
                | Self::Delays
                | Self::Resets
                | Self::Vanish
                | Self::ZeroWindow
                | Self::NoBuffers
                | Self::Emfile
                | Self::RegisterError
                | Self::FewCompletions
                | Self::Shuffled
                | Self::LateEnds
                | Self::StalledShard
                | Self::Spurious
                | Self::ClockJump
                | Self::Restart
                | Self::Crash
                | Self::CoarseAges
                | Self::PowerCut
                | Self::DiskStuck
                | Self::DiskWriteError
                | Self::DiskSyncError
                | Self::DiskFull
                | Self::DiskReadOnly
                | Self::MidWrite
        )
    }
}

/// Which kinds are on, how often they strike, and how often they did.
#[derive(Clone, Debug)]
pub struct Faults {
    weights: Vec<u32>,
    calm: bool,
    struck: Vec<u64>,
}

impl Faults {
    /// A seed's choice, without those that are to be left out.
    pub fn choose(random: &mut Random, without: &[Kind]) -> Self {
        let weights = Kind::ALL
            .iter()
            .map(|kind| {
                let on = random.chance(650);
                let weight = random.pick(&[20, 80, 200, 500]);
                if on && !without.contains(kind) { weight } else { 0 }
            })
            .collect();
        Self { weights, calm: false, struck: vec![0; Kind::ALL.len()] }
    }

    /// Whether it may strike at all.
    pub fn is_on(&self, kind: Kind) -> bool {
        self.weights[kind as usize] > 0 && !self.calm
    }

    /// How often in a thousand; 0 when it is off.
    pub fn weight(&self, kind: Kind) -> u32 {
        if self.calm { 0 } else { self.weights[kind as usize] }
    }

    /// Whether it strikes now, out of a thousand chances; if so it is counted.
    pub fn strikes(&mut self, kind: Kind, random: &mut Random, per_mille: u32) -> bool {
        let strikes = self.is_on(kind) && random.chance(per_mille);
        self.struck[kind as usize] += u64::from(strikes);
        strikes
    }

    /// The same by its own weight.
    pub fn strikes_by_weight(&mut self, kind: Kind, random: &mut Random) -> bool {
        let weight = self.weight(kind);
        self.strikes(kind, random, weight)
    }

    /// Nothing strikes any more, or things do again.
    pub fn set_calm(&mut self, calm: bool) {
        self.calm = calm;
    }

    /// How often each has struck.
    pub fn struck(&self) -> impl Iterator<Item = (Kind, u64)> + '_ {
        Kind::ALL.iter().map(|kind| (*kind, self.struck[*kind as usize]))
    }

    /// The kinds that are on.
    pub fn on(&self) -> Vec<Kind> {
        Kind::ALL.iter().copied().filter(|kind| self.weights[*kind as usize] > 0).collect()
    }
}
