//! What must hold of a fold at any time.

use super::{At, Fold};
use crate::journal::record::{Assign, Entry, Groups, Publish, Receiver, Receivers};
use crate::journal::wire::Numbers;
use crate::limits::{JOURNAL_EARLY_MAX, JOURNAL_ENDING_STEP};

impl Fold {
    /// Messages that only exchanges hold which are over.
    pub(in crate::journal) fn orphans(&self) -> String {
        let mut text = String::new();
        for (name, message) in self.messages.iter() {
            for owed in message.receivers.iter().filter(|owed| owed.is_assigned) {
                let session = &self.sessions[owed.holder as usize];
                if !session.exchanges.values().any(|e| e.message == Some(name) && !e.is_received) {
                    text += &format!(
                        "{name} {message:?} of {} {:?}\n",
                        session.client_id, session.exchanges
                    );
                }
            }
        }
        text
    }

    /// Where everything lies that is live.
    pub(in crate::journal) fn live_records(&self) -> Vec<At> {
        let mut all: Vec<At> = self.messages.iter().map(|(_, message)| message.at).collect();
        for (slot, session) in &self.sessions {
            if !self.clients.values().any(|live| *live as usize == slot) {
                continue;
            }
            all.push(session.at);
            all.extend(session.will);
            all.extend(session.unreleased.values().map(|(_, at)| *at));
            all.extend(session.exchanges.values().map(|exchange| exchange.at));
            all.extend(session.exchanges.values().filter_map(|exchange| exchange.received_at));
            for id in &session.subs {
                all.extend(self.plain[*id].get(slot as u32).map(|sub| sub.at));
            }
        }
        for slot in self.group_keys.values() {
            let group = &self.groups[*slot as usize];
            all.push(group.at);
            all.extend(group.members.iter().map(|member| member.at));
        }
        all.retain(|at| *at != At::default());
        all
    }
}

fn at(commit: u64) -> At {
    At { commit, offset: 0, len: 10 }
}

fn publish(sequence: u64, qos: u8) -> Publish<'static> {
    Publish {
        message: sequence << 8,
        is_copy: false,
        is_value: false,
        publisher: "p",
        packet_id: None,
        qos,
        retain: false,
        is_will: false,
        deadline: Some(1),
        topic: "t",
        forwarded: &[],
        payload: &[],
        groups: Groups::Sent(b"\x03g/t"),
        receivers: Receivers::default(),
    }
}

/// A fold as the host has it, with a commit for each record.
struct Host {
    fold: Fold,
    commit: u64,
}

impl Host {
    fn new() -> Self {
        Self { fold: Fold::new(1), commit: 0 }
    }

    /// One that reads a log whose first segments are gone.
    fn replaying() -> Self {
        Self { fold: Fold::replaying(1), commit: 0 }
    }

    fn apply(&mut self, entry: &Entry<'_>) {
        self.commit += 1;
        self.fold.apply(at(self.commit), entry);
    }

    fn session(&mut self, client_id: &str, number: u64) {
        self.apply(&Entry::Session { client_id, expiry_secs: 60, offline_since: None, number });
    }

    fn subscribe(&mut self, client_id: &str, filter: &str, options: u8, seen: &[u64]) {
        let mut bytes = Vec::new();
        let seen = Numbers::write(seen.iter().copied(), &mut bytes);
        let subscription_id = None;
        self.apply(&Entry::Subscribe { client_id, filter, options, subscription_id, seen });
    }

    fn unsubscribe(&mut self, client_id: &str, filter: &str) {
        self.apply(&Entry::Unsubscribe { client_id, filter, seen: Numbers::default() });
    }

    fn group(&mut self, group: &str, number: u64) {
        self.apply(&Entry::Group { group, number });
    }

    /// A PUB as it stands in a log, owed to this group at QoS 1.
    fn publish_to(&mut self, sequence: u64, group: u64) {
        let mut bytes = Vec::new();
        let subscription_ids = Numbers::default();
        let (is_group, is_assigned, retain) = (true, false, false);
        let number = group;
        Receiver { number, is_group, is_assigned, qos: 1, retain, subscription_ids }
            .put(&mut bytes);
        let receivers = Receivers::parse(&bytes).expect("written above");
        self.apply(&Entry::Publish(Publish { receivers, ..publish(sequence, 1) }));
    }

    /// Sequence numbers and holders.
    fn owed(&self) -> Vec<(u64, String)> {
        self.fold.all_owed().map(|(sequence, key)| (sequence, key.to_owned())).collect()
    }

    /// Where it lies.
    fn publish(&mut self, sequence: u64) -> At {
        self.take(&publish(sequence, 1))
    }

    fn take(&mut self, publish: &Publish<'_>) -> At {
        self.commit += 1;
        self.fold.resolve(publish);
        self.fold.publish(at(self.commit), publish);
        at(self.commit)
    }

    /// What is live, by what was said of it.
    fn live(&self) -> i64 {
        self.fold.live.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// A message whose time is over, and that a session is owed which is being taken apart.
#[test]
fn what_expires_meanwhile_is_no_longer_of_a_session_that_is_gone() {
    let mut host = Host::new();
    host.session("c", 1);
    host.subscribe("c", "t", 1, &[]);
    let count = 3 * JOURNAL_ENDING_STEP as u64;
    let places: Vec<At> = (1..=count).map(|sequence| host.publish(sequence)).collect();
    host.apply(&Entry::SessionEnded { client_id: "c" });
    assert!(host.fold.is_ending());
    for sequence in (count - 10..=count).rev() {
        host.fold.expire(places[sequence as usize - 1], &publish(sequence, 1));
    }
    while host.fold.take_apart(JOURNAL_ENDING_STEP) {}
    assert_eq!((host.fold.messages(), host.live()), (0, 0));
}

/// The last member that could have a group's messages leaves, others stay: that is paced, and what
/// the group is owed from then on is its own.
#[test]
fn a_group_that_is_owed_nothing_more_goes_on() {
    let mut host = Host::new();
    host.session("a", 1);
    host.session("b", 2);
    host.subscribe("a", "$share/g/t", 1, &[]);
    host.subscribe("b", "$share/g/t", 0, &[]);
    let count = 3 * JOURNAL_ENDING_STEP as u64;
    let first = host.publish(1);
    (2..=count).for_each(|sequence| _ = host.publish(sequence));
    host.unsubscribe("a", "$share/g/t");
    assert!(host.fold.is_ending(), "it is paced");
    host.subscribe("b", "$share/g/t", 1, &[]);
    host.publish(count + 1);
    // The group says that it is done with one that is being taken apart, and with its own.
    host.apply(&Entry::GroupAck { group: "g/t", message: 2 << 8 });
    let mut copied = 0;
    host.fold.copies(first, &Entry::Publish(publish(1, 1)), 0, &mut |entry| {
        let Entry::Publish(publish) = entry else { panic!("{entry:?}") };
        copied += publish.receivers.iter().count();
    });
    assert_eq!(copied, 0, "a restart does not owe it to the group again");
    while host.fold.take_apart(JOURNAL_ENDING_STEP) {}
    assert_eq!(host.owed(), [(count + 1, "g/t".to_owned())]);
    host.apply(&Entry::GroupAck { group: "g/t", message: (count + 1) << 8 });
    assert_eq!(host.fold.messages(), 0);
    host.apply(&Entry::SessionEnded { client_id: "b" });
    host.apply(&Entry::SessionEnded { client_id: "a" });
    while host.fold.take_apart(JOURNAL_ENDING_STEP) {}
    assert_eq!(host.live(), 0);
}

/// J9: a PUB names the groups that it was given to. A member that its origin had not heard of makes no
/// other group owed it, whatever was remembered of the topic.
#[test]
fn a_group_is_owed_what_names_it() {
    let mut host = Host::new();
    host.session("a", 1);
    host.subscribe("a", "$share/g/t", 1, &[]);
    host.subscribe("a", "$share/h/t", 1, &[]);
    let given: [&'static [u8]; 6] =
        [b"\x03g/t", b"", b"\x03h/t\x03g/t", b"\x03x/t", b"\x03h/t", b"\x03g/t"];
    for (sequence, groups) in (1..).zip(given) {
        host.take(&Publish { groups: Groups::Sent(groups), ..publish(sequence, 1) });
    }
    let mut owed = host.owed();
    owed.sort();
    let expected = [(1, "g/t"), (3, "g/t"), (3, "h/t"), (5, "h/t"), (6, "g/t")];
    assert_eq!(owed, expected.map(|(sequence, key)| (sequence, key.to_owned())));
}

/// The SUBs of a group's other members were copied behind the end of one's session: the group has
/// lasted (J10).
#[test]
fn a_group_lasts_while_its_members_are_not_read_yet() {
    for granted in [None, Some(0)] {
        let mut host = Host::replaying();
        ["a", "b", "c"].into_iter().zip(1..).for_each(|(id, number)| host.session(id, number));
        host.group("g/t", 9);
        host.subscribe("a", "$share/g/t", 1, &[]);
        if let Some(options) = granted {
            host.subscribe("b", "$share/g/t", options, &[]);
        }
        host.publish_to(1, 9);
        host.apply(&Entry::SessionEnded { client_id: "a" });
        host.publish_to(2, 9);
        host.subscribe("c", "$share/g/t", 1, &[]);
        host.fold.confirm();
        let mut owed = host.owed();
        owed.sort();
        assert_eq!(owed, [(1, "g/t".to_owned()), (2, "g/t".to_owned())]);
    }
}

/// When what a group is owed has ended, it has another number from then on: a replay sees that
/// without knowing its members.
#[test]
fn a_group_with_another_number_is_owed_nothing_of_before() {
    let mut live = Host::new();
    ["a", "b"].into_iter().zip(1..).for_each(|(id, number)| live.session(id, number));
    let filter = "$share/g/t";
    assert_eq!(live.fold.new_group(filter, 1), Some(("g/t", 3)));
    live.group("g/t", 3);
    live.subscribe("a", filter, 1, &[]);
    assert_eq!(live.fold.new_group(filter, 1), None);
    live.subscribe("b", filter, 0, &[]);
    live.publish(1);
    live.unsubscribe("a", filter);
    assert_eq!(live.fold.new_group(filter, 0), None, "it goes on, and is owed nothing");
    assert_eq!(live.fold.new_group(filter, 1), Some(("g/t", 4)));
    // Lowered, it is owed what it was.
    live.subscribe("b", filter, 1, &[]);
    live.publish(2);
    live.subscribe("b", filter, 0, &[]);
    assert_eq!(live.fold.new_group(filter, 1), None);

    let mut host = Host::replaying();
    ["a", "b"].into_iter().zip(1..).for_each(|(id, number)| host.session(id, number));
    host.group("g/t", 3);
    host.publish_to(1, 3);
    host.unsubscribe("a", filter);
    host.group("g/t", 4);
    host.subscribe("b", filter, 1, &[]);
    host.publish_to(2, 4);
    host.fold.confirm();
    assert_eq!(host.owed(), [(2, "g/t".to_owned())]);
    // Nobody came who could have it.
    let mut host = Host::replaying();
    host.session("b", 2);
    host.group("g/t", 3);
    host.publish_to(1, 3);
    host.subscribe("b", filter, 0, &[]);
    host.fold.confirm();
    assert_eq!((host.owed(), host.fold.messages()), (Vec::new(), 0));
}

/// The first of a group that a replay reads is a member's SUB: its number is not made up, or a
/// session that gets that one further on would lose it with the group's next.
#[test]
fn a_group_without_a_number_takes_nobody_elses() {
    let mut host = Host::replaying();
    host.fold.begin_after(0, 3);
    host.session("a", 2);
    host.subscribe("a", "$share/g/t", 1, &[]);
    assert_eq!(host.fold.next_number(), 3);
    host.session("b", 3);
    host.group("g/t", 4);
    let mut bytes = Vec::new();
    let (subscription_ids, retain) = (Numbers::default(), false);
    for (number, is_group) in [(3, false), (4, true)] {
        Receiver { number, is_group, is_assigned: false, qos: 1, retain, subscription_ids }
            .put(&mut bytes);
    }
    let receivers = Receivers::parse(&bytes).expect("written above");
    host.apply(&Entry::Publish(Publish { receivers, ..publish(1, 1) }));
    host.fold.confirm();
    let mut owed = host.owed();
    owed.sort();
    assert_eq!(owed, [(1, "b".to_owned()), (1, "g/t".to_owned())]);
    assert_eq!(host.fold.counts.unknown_receivers, 0);
}

/// What a SUB has seen keeps from it what its home had, and is forgotten when that has passed.
#[test]
fn what_a_subscription_has_seen_is_forgotten_when_it_has_passed() {
    let mut host = Host::new();
    host.session("c", 1);
    // Of origin 0 up to 5, of origin 1 up to 9.
    host.subscribe("c", "t", 1, &[5 << 8, 9 << 8 | 1]);
    (3..=4).for_each(|sequence| _ = host.publish(sequence));
    assert_eq!(host.fold.messages(), 0);
    let seen = |host: &Host| host.fold.sub(0, "t").map_or(0, |sub| sub.seen.len());
    assert_eq!(seen(&host), 2);
    host.publish(6);
    assert_eq!((host.fold.messages(), seen(&host)), (1, 1));
    host.apply(&Entry::Unsubscribe { client_id: "c", filter: "t", seen: Numbers::default() });
    assert!(host.fold.passing.iter().all(|passing| passing.is_empty()));
}

/// A subscription at QoS 0 is owed nothing: when it is raised, what its home has seen by then is not
/// owed, and what it had seen before says nothing any more.
#[test]
fn a_raised_subscription_has_seen_what_its_home_had() {
    for filter in ["t", "$share/g/t"] {
        let mut host = Host::new();
        host.session("c", 1);
        host.subscribe("c", filter, 0, &[2 << 8]);
        host.subscribe("c", filter, 2, &[4 << 8]);
        host.subscribe("c", filter, 1, &[9 << 8]);
        (4..=5).for_each(|sequence| _ = host.publish(sequence));
        let sequences: Vec<u64> = host.owed().iter().map(|(sequence, _)| *sequence).collect();
        assert_eq!(sequences, [5], "{filter}");
        assert!(host.fold.passing.iter().all(|passing| passing.is_empty()));
        host.subscribe("c", filter, 0, &[]);
        host.subscribe("c", filter, 1, &[8 << 8]);
        host.unsubscribe("c", filter);
        assert!(host.fold.passing.iter().all(|passing| passing.is_empty()));
    }
}

/// J7: a Will leaves before its record is taken, at QoS 2 too. One that had come to the home of a
/// subscription before that began is not owed; other QoS 2 messages come when their record is taken.
#[test]
fn a_subscription_has_seen_a_will() {
    for filter in ["t", "$share/g/t"] {
        let mut host = Host::new();
        host.session("c", 1);
        host.subscribe("c", filter, 2, &[6 << 8]);
        for sequence in 4..=8 {
            let is_will = sequence % 2 == 1;
            host.take(&Publish { is_will, ..publish(sequence, 2) });
        }
        let sequences: Vec<u64> = host.owed().iter().map(|(sequence, _)| *sequence).collect();
        assert_eq!(sequences, [4, 6, 7, 8], "{filter}");
    }
}

/// A Will at QoS 2 leaves before its record is taken: its exchange may be over by then (J6).
#[test]
fn an_exchange_may_be_over_before_its_message_is_taken() {
    for steps in 1..=2 {
        let mut host = Host::new();
        host.session("c", 1);
        host.subscribe("c", "t", 2, &[]);
        let message = Some(5 << 8);
        host.apply(&Entry::Assign(Assign {
            client_id: "c",
            packet_id: 7,
            message,
            retain: false,
            group: None,
            subscription_ids: Numbers::default(),
            copied: None,
        }));
        host.apply(&Entry::Received { client_id: "c", packet_id: 7, message });
        if steps == 2 {
            host.apply(&Entry::Done { client_id: "c", packet_id: 7, message });
        }
        host.publish(5);
        assert_eq!((host.fold.messages(), host.fold.early_len), (0, 0), "{steps}");
    }
}

/// What is early is of one origin: another's messages end nothing of it, and what is too much is
/// counted.
#[test]
fn what_is_early_waits_for_its_origin() {
    let mut host = Host::new();
    host.session("c", 1);
    host.subscribe("c", "t", 1, &[]);
    host.apply(&Entry::Acked { client_id: "c", message: 7 << 8 | 1 });
    host.publish(9);
    assert_eq!((host.fold.messages(), host.fold.early_len), (1, 1));
    host.apply(&Entry::Publish(Publish { message: 8 << 8 | 1, ..publish(8, 1) }));
    assert_eq!(host.fold.early_len, 0);
    for sequence in 100..101 + JOURNAL_EARLY_MAX as u64 {
        host.apply(&Entry::Acked { client_id: "c", message: sequence << 8 });
    }
    assert_eq!(host.fold.counts.early_forgotten, 1);
}

/// Who is owed a topic is remembered for its next message, and found anew when that may have changed:
/// by a subscription, an end of one, a session, a group, another QoS; and never kept where it depends on
/// the publisher.
#[test]
fn what_is_remembered_of_a_topic_is_true() {
    let mut host = Host::new();
    let holders = |host: &mut Host, publisher: &'static str, qos: u8| {
        host.commit += 1;
        let sequence = host.commit;
        let publish = Publish { publisher, ..publish(sequence, qos) };
        host.fold.resolve(&publish);
        let mut written = Vec::new();
        host.fold.put_receivers(&mut written);
        host.fold.publish(at(host.commit), &publish);
        let receivers = Receivers::parse(&written).expect("written above");
        assert!(receivers.iter().all(|receiver| receiver.qos <= qos));
        let all = host.owed().into_iter();
        let mut all: Vec<String> =
            all.filter(|(of, _)| *of == sequence).map(|(_, holder)| holder).collect();
        assert_eq!(all.len(), receivers.iter().count(), "written is what is owed");
        all.sort();
        all.join(" ")
    };
    let check = |host: &mut Host, expected: &str| {
        for qos in [1, 1, 2, 2] {
            assert_eq!(holders(host, "p", qos), expected);
        }
        assert_eq!(holders(host, "p", 0), "");
    };
    host.session("a", 1);
    host.session("b", 2);
    check(&mut host, "");
    host.subscribe("a", "t", 1, &[]);
    check(&mut host, "a");
    host.subscribe("b", "#", 2, &[]);
    check(&mut host, "a b");
    host.subscribe("b", "$share/g/t", 1, &[]);
    check(&mut host, "a b g/t");
    host.unsubscribe("b", "#");
    check(&mut host, "a g/t");
    host.apply(&Entry::SessionEnded { client_id: "b" });
    check(&mut host, "a");
    // No Local: what counts is who publishes.
    host.subscribe("a", "t", 1 | 1 << 2, &[]);
    for (publisher, expected) in [("p", "a"), ("a", ""), ("p", "a"), ("a", "")] {
        assert_eq!(holders(&mut host, publisher, 1), expected);
    }
}

/// What has an end before its PUB is not owed it, whatever is remembered of its topic.
#[test]
fn what_is_early_is_not_remembered() {
    let mut host = Host::new();
    host.session("c", 1);
    host.subscribe("c", "t", 1, &[]);
    host.publish(1);
    host.apply(&Entry::Acked { client_id: "c", message: 2 << 8 });
    let of_second = publish(2, 1);
    host.fold.resolve(&of_second);
    let mut written = Vec::new();
    host.fold.put_receivers(&mut written);
    assert!(written.is_empty(), "it is done with");
    host.publish(2);
    host.publish(3);
    assert_eq!(host.owed(), [(1, "c".to_owned()), (3, "c".to_owned())]);
}

/// J6, J9: a Will that one of a group has at QoS 2, and whose PUB is taken behind the ASSIGN, is not owed to
/// the group any more.
#[test]
fn an_early_assign_settles_for_its_group() {
    let mut host = Host::new();
    host.session("a", 1);
    host.session("b", 2);
    host.subscribe("a", "$share/g/t", 2, &[]);
    host.subscribe("b", "$share/g/t", 2, &[]);
    let message = Some(5 << 8);
    host.apply(&Entry::Assign(Assign {
        client_id: "a",
        packet_id: 7,
        message,
        retain: false,
        group: Some("g/t"),
        subscription_ids: Numbers::default(),
        copied: None,
    }));
    host.take(&Publish { is_will: true, ..publish(5, 2) });
    host.take(&publish(6, 2));
    let mut owed = host.owed();
    owed.sort();
    assert_eq!(owed, [(5, "a".to_owned()), (6, "g/t".to_owned())]);
    host.apply(&Entry::Done { client_id: "a", packet_id: 7, message });
    assert_eq!(host.owed(), [(6, "g/t".to_owned())]);
}
