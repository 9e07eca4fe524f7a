//! What this kernel and this sandbox let us have, tried piece by piece, with what to do about it.
//!
//! `--io auto` decides by it, and `noctule doctor` prints it. Nothing is concluded from a version
//! number: distributions backport, containers forbid. What can be tried is tried, on a ring or a
//! pair of sockets of its own.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Resource;

use super::socket;
use super::uring::{Uring, ring};
use super::{Backend, Choice, Completion, IoCounters, PoolSize, RecvEnd, RecvMode, Settings, Wait};
use crate::clock;
use crate::ids::ConnId;

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Feature {
    /// Its name, as the kernel's documentation has it.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What would make it better.
    pub fix: Option<String>,
}

/// How a feature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Not there, or too little; we go on without it, at a price.
    Lesser,
    /// Not there, and `io_uring` cannot be used without it.
    Missing,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "good",
            Self::Lesser => "lesser",
            Self::Missing => "missing",
        })
    }
}

/// The backend to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// [`Uring`].
    Uring,
    /// [`super::Epoll`].
    Epoll,
}

/// A decision.
#[derive(Clone, Debug)]
pub struct Selected {
    /// What to run on.
    pub engine: Engine,
    /// Why not on `io_uring`, in one line, when that was not asked for.
    pub reason: Option<String>,
}

/// Descriptors below which a broker is likely to run out of them.
const DESCRIPTORS_WANTED: u64 = 65_536;
/// How long any one trial may take.
const PATIENCE: Duration = Duration::from_secs(1);
const SANDBOX_FIX: &str = "let the sandbox's seccomp profile allow io_uring_setup, \
     io_uring_enter and io_uring_register (Docker and Podman: --security-opt seccomp=<profile>)";

/// Looks at everything, in the order in which one thing needs the other.
pub fn probe() -> Vec<Feature> {
    let mut features = vec![kernel()];
    let disabled = read_sysctl("/proc/sys/kernel/io_uring_disabled");
    features.extend(disabled.map(sysctl));
    let plain = io_uring::IoUring::new(TRIAL_ENTRIES);
    features.push(set_up(&plain, disabled));
    if let Ok(plain) = plain {
        features.push(feature_bits(plain.params()));
        drop(plain);
        features.extend(ring_features());
    }
    features.push(descriptors());
    features.push(locked_memory());
    features
}

/// Decides what to run on.
///
/// # Errors
/// When `io_uring` was asked for by name and cannot be had; the text says why.
pub fn select(choice: Choice) -> Result<Selected, String> {
    if choice == Choice::Epoll {
        return Ok(Selected { engine: Engine::Epoll, reason: None });
    }
    match (choice, obstacle(&probe())) {
        (_, None) => Ok(Selected { engine: Engine::Uring, reason: None }),
        (Choice::Uring, Some(reason)) => Err(reason),
        (_, Some(reason)) => Ok(Selected { engine: Engine::Epoll, reason: Some(reason) }),
    }
}

/// Why `io_uring` cannot be used, in one line.
pub fn obstacle(features: &[Feature]) -> Option<String> {
    let missing = features.iter().find(|feature| feature.verdict == Verdict::Missing)?;
    let mut line = format!("io_uring cannot be used: {}: {}", missing.name, missing.detail);
    if let Some(fix) = &missing.fix {
        line.push_str("; ");
        line.push_str(fix);
    }
    Some(line)
}

const TRIAL_ENTRIES: u32 = 8;

fn trial_settings() -> Settings {
    let size = PoolSize { count: 8, bytes: 256 };
    Settings {
        ring_entries: TRIAL_ENTRIES,
        uring_pool: size,
        epoll_pool: size,
        spin: Duration::ZERO,
    }
}

fn good(name: &'static str, detail: impl Into<String>) -> Feature {
    Feature { name, verdict: Verdict::Good, detail: detail.into(), fix: None }
}

fn missing(name: &'static str, error: &io::Error, fix: impl Into<String>) -> Feature {
    let detail = error.to_string();
    Feature { name, verdict: Verdict::Missing, detail, fix: Some(fix.into()) }
}

/// Only told: what follows shows what it can do.
fn kernel() -> Feature {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    };
    let (verdict, fix) = if version >= (6, 15) {
        (Verdict::Good, None)
    } else {
        let fix = "io_uring is used from Linux 6.1 on, and at its best from 6.15";
        (Verdict::Lesser, Some(fix.to_owned()))
    };
    Feature { name: "kernel", verdict, detail: format!("Linux {release}"), fix }
}

fn read_sysctl(path: &str) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// 1 forbids it to all but a group and the administrator, so the set-up decides.
fn sysctl(value: u32) -> Feature {
    let (verdict, detail, fix) = match value {
        0 => (Verdict::Good, "0, for all", None),
        1 => (Verdict::Good, "1, for the group of kernel.io_uring_group", None),
        _ => (Verdict::Missing, "2, for nobody", Some("sysctl kernel.io_uring_disabled=0")),
    };
    let fix = fix.map(str::to_owned);
    Feature { name: "kernel.io_uring_disabled", verdict, detail: detail.to_owned(), fix }
}

fn set_up(plain: &io::Result<io_uring::IoUring>, disabled: Option<u32>) -> Feature {
    const NAME: &str = "io_uring_setup";
    let error = match plain {
        Ok(_) => return good(NAME, "allowed"),
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(libc::EPERM) if disabled == Some(1) => missing(
            NAME,
            error,
            "join the group of sysctl kernel.io_uring_group, or set kernel.io_uring_disabled=0",
        ),
        Some(libc::EPERM | libc::EACCES) => missing(NAME, error, SANDBOX_FIX),
        Some(libc::ENOSYS) => {
            missing(NAME, error, format!("a kernel with CONFIG_IO_URING; or {SANDBOX_FIX}"))
        }
        Some(libc::ENOMEM) => missing(NAME, error, "raise RLIMIT_MEMLOCK (ulimit -l)"),
        Some(libc::EMFILE | libc::ENFILE) => {
            missing(NAME, error, "raise RLIMIT_NOFILE (ulimit -n)")
        }
        _ => missing(NAME, error, "Linux 6.1 or later"),
    }
}

fn feature_bits(params: &io_uring::Parameters) -> Feature {
    const NAME: &str = "EXT_ARG, NODROP, SUBMIT_STABLE, CQE_SKIP";
    if ring::has_required_features(params) {
        good(NAME, "all there")
    } else {
        missing(NAME, &io::ErrorKind::Unsupported.into(), "Linux 6.1 or later")
    }
}

fn ring_features() -> Vec<Feature> {
    const REQUIRED: &str = "SINGLE_ISSUER, DEFER_TASKRUN";
    if let Err(error) = ring::required(TRIAL_ENTRIES).build(TRIAL_ENTRIES) {
        return vec![missing(REQUIRED, &error, "Linux 6.1 or later; before it, epoll is faster")];
    }
    let mut features = vec![good(REQUIRED, "accepted")];
    let ours = match Uring::new(&trial_settings()) {
        Ok(ours) => ours,
        Err(error) => {
            features.push(missing("provided buffer ring", &error, "Linux 5.19 or later"));
            return features;
        }
    };
    features.push(good("provided buffer ring", "registered"));
    let there = ours.ring_features();
    drop(ours);
    features.push(optional("NO_SQARRAY", there.no_sqarray, "Linux 6.6", "a little CPU"));
    features.push(optional("registered ring", there.registered_fd, "Linux 5.18", "a little CPU"));
    let price = "an idle shard may be shown as waiting for disks";
    features.push(optional("NO_IOWAIT", there.no_iowait, "Linux 6.15", price));
    for (name, result) in [
        ("multishot receive", try_receive()),
        ("multishot accept", try_accept()),
        ("MSG_RING", try_message()),
        ("full-size ring", Uring::new(&Settings::default()).map(drop)),
    ] {
        features.push(match result {
            Ok(()) => good(name, "tried"),
            Err(error) if name == "full-size ring" => {
                missing(name, &error, "more memory, or a higher RLIMIT_MEMLOCK (ulimit -l)")
            }
            Err(error) => missing(name, &error, "Linux 6.1 or later"),
        });
    }
    features
}

fn optional(name: &'static str, there: bool, since: &str, price: &str) -> Feature {
    if there {
        return good(name, "in use");
    }
    let fix = Some(format!("{since} or later"));
    Feature { name, verdict: Verdict::Lesser, detail: format!("not there: {price}"), fix }
}

/// Polls until `done`, and hands the counters to it each time.
fn poll_until(
    uring: &mut Uring,
    mut done: impl FnMut(&IoCounters, Vec<Completion>) -> io::Result<bool>,
) -> io::Result<()> {
    let deadline = clock::now() + PATIENCE;
    while clock::now() < deadline {
        let mut completions = Vec::new();
        uring.poll(Wait::Until(deadline), &mut completions)?;
        if done(&uring.counters(), completions)? {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Cannot be asked for: the operation is the same as the one-shot receive.
fn try_receive() -> io::Result<()> {
    let mut uring = Uring::new(&trial_settings())?;
    let (ours, mut theirs) = UnixStream::pair()?;
    let conn = ConnId { index: 0, generation: 0 };
    uring.add_socket(conn, ours.into())?;
    uring.recv(conn, RecvMode::Multi);
    for turn in 1..=3 {
        theirs.write_all(b"x")?;
        poll_until(&mut uring, |counters, completions| {
            for completion in completions {
                if let Completion::RecvEnded { reason: RecvEnd::Error(error), .. } = completion {
                    return Err(error);
                }
            }
            if counters.rearmed > 0 {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Ok(counters.received == turn)
        })?;
    }
    Ok(())
}

fn try_accept() -> io::Result<()> {
    let mut uring = Uring::new(&trial_settings())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let addr = listener.local_addr()?;
    uring.add_listener(listener)?;
    for turn in 1..=3 {
        let _peer = TcpStream::connect(addr)?;
        poll_until(&mut uring, |counters, completions| {
            for completion in completions {
                if let Completion::AcceptFailed { error, .. } = completion {
                    return Err(error);
                }
            }
            if counters.rearmed > 0 {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Ok(counters.accepted == turn)
        })?;
    }
    Ok(())
}

fn try_message() -> io::Result<()> {
    let mut from = Uring::new(&trial_settings())?;
    let mut to = Uring::new(&trial_settings())?;
    from.wake(&to.waker());
    from.poll(Wait::None, &mut Vec::new())?;
    poll_until(&mut to, |counters, _| Ok(counters.wakes_received == 1))?;
    if from.counters().messages_failed > 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(())
}

fn descriptors() -> Feature {
    let limit = socket::descriptor_limit();
    let detail = format!("{} now, {} at most", limit.soft, limit.hard);
    let enough = limit.hard >= DESCRIPTORS_WANTED;
    let fix = format!(
        "each connection takes one: ulimit -Hn {DESCRIPTORS_WANTED}, LimitNOFILE= in a systemd unit"
    );
    Feature {
        name: "RLIMIT_NOFILE",
        verdict: if enough { Verdict::Good } else { Verdict::Lesser },
        detail,
        fix: (!enough).then_some(fix),
    }
}

/// Only told: the rings that we use are not charged to it on the kernels that we use them on.
fn locked_memory() -> Feature {
    let limit = rustix::process::getrlimit(Resource::Memlock);
    let detail = match limit.current {
        Some(bytes) => format!("{} KiB", bytes / 1024),
        None => "unlimited".to_owned(),
    };
    good("RLIMIT_MEMLOCK", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use seccompiler::{SeccompAction, SeccompFilter, TargetArch};
    use std::thread;

    fn find<'a>(features: &'a [Feature], name: &str) -> &'a Feature {
        features.iter().find(|feature| feature.name == name).expect(name)
    }

    #[test]
    fn what_is_not_good_says_what_to_do() {
        for feature in probe() {
            let good = feature.verdict == Verdict::Good;
            assert_eq!(good, feature.fix.is_none(), "{feature:?}");
            assert!(!feature.detail.is_empty(), "{feature:?}");
        }
    }

    #[test]
    fn the_verdict_agrees_with_the_attempt() {
        let works = Uring::new(&Settings::default()).is_ok();
        let selected = select(Choice::Auto).unwrap();
        assert_eq!(selected.engine == Engine::Uring, works, "{selected:?}");
        assert_eq!(selected.reason.is_none(), works);
        assert_eq!(select(Choice::Epoll).unwrap().engine, Engine::Epoll);
    }

    /// As Docker's default profile does, for the calling thread only.
    fn forbid_io_uring(errno: i32) {
        let rules =
            [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
        let filter = SeccompFilter::new(
            rules.into_iter().map(|call| (call, Vec::new())).collect(),
            SeccompAction::Allow,
            SeccompAction::Errno(errno as u32),
            TargetArch::try_from(std::env::consts::ARCH).unwrap(),
        )
        .unwrap();
        let program: seccompiler::BpfProgram = filter.try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
    }

    #[test]
    fn a_sandbox_that_forbids_it_means_epoll_and_says_why() {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let sandboxed = thread::spawn(move || {
                forbid_io_uring(errno);
                assert_eq!(find(&probe(), "io_uring_setup").verdict, Verdict::Missing);
                assert!(select(Choice::Uring).unwrap_err().contains("seccomp"));
                let selected = select(Choice::Auto).unwrap();
                assert_eq!(selected.engine, Engine::Epoll);
                let reason = selected.reason.unwrap();
                assert!(reason.contains("seccomp") && !reason.contains('\n'), "{reason}");
            });
            sandboxed.join().unwrap();
        }
    }
}
