//! `environment.json`: what a run ran on, and how it was started.
//!
//! Everything here is read, nothing is changed; what cannot be known is `null`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock;

/// Version of what [`Environment`] means.
pub const SCHEMA: u32 = 1;

/// What is to be described besides this machine.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// The broker's address, as it is connected to.
    pub broker_address: String,
    /// The broker's process, when it is on this machine.
    pub broker_pid: Option<u32>,
    /// The generator's kernel interface.
    pub generator_io: String,
}

/// What a run ran on, and how it was started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// [`SCHEMA`] of the program that wrote it.
    pub schema: u32,
    /// When this was read: RFC 3339, UTC.
    pub collected: String,
    /// The exact command, argument by argument.
    pub command: Vec<String>,
    /// The program that measured.
    pub generator: Program,
    /// The process that was measured.
    pub broker: Broker,
    /// The machine.
    pub machine: Machine,
}

/// The program that measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// Of noctule.
    pub version: String,
    /// Git commit, when it was told while building (`NOCTULE_COMMIT`).
    pub commit: Option<String>,
    /// `release`, or `debug` when assertions are on.
    pub profile: String,
    /// Kernel interface.
    pub io: String,
    /// CPUs that it may run on.
    pub cpus: Option<String>,
}

/// The process that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Broker {
    /// As it was connected to.
    pub address: String,
    /// Its process, when it was known; so are the rest.
    pub pid: Option<u32>,
    /// How it was started, argument by argument.
    pub command: Option<Vec<String>>,
    /// What the program says of itself, for the brokers that can be asked safely.
    pub version: Option<String>,
    /// CPUs that it may run on.
    pub cpus: Option<String>,
    /// How many threads it had.
    pub threads: Option<u32>,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Kernel's name, release and architecture.
    pub kernel: String,
    /// The distribution.
    pub system: Option<String>,
    /// CPU model.
    pub cpu_model: Option<String>,
    /// CPUs that are online.
    pub cpus: u32,
    /// CPUs that share a core with the first.
    pub threads_per_core: Option<u32>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
    /// `none` on bare metal, else the hypervisor or container as far as it can be told.
    pub virtualisation: Option<String>,
    /// CPU frequency governor; `None` where it is not visible.
    pub governor: Option<String>,
    /// Whether the CPU may go above its base frequency.
    pub boost: Option<bool>,
    /// What the kernel does against CPU vulnerabilities; those that do not affect it are left out.
    pub mitigations: BTreeMap<String, String>,
    /// TCP congestion control.
    pub congestion_control: Option<String>,
    /// The clock that the kernel reads.
    pub clock_source: Option<String>,
    /// CPUs that the kernel's scheduler leaves alone.
    pub isolated_cpus: Option<String>,
    /// Load average over 1, 5 and 15 minutes when the run began.
    pub load_average: Option<String>,
}

impl Environment {
    /// Reads it.
    pub fn collect(subject: &Subject) -> Self {
        let own = std::process::id();
        Self {
            schema: SCHEMA,
            collected: rfc3339(clock::unix_time()),
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
            generator: Program {
                version: env!("CARGO_PKG_VERSION").into(),
                commit: option_env!("NOCTULE_COMMIT").filter(|c| !c.is_empty()).map(Into::into),
                profile: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
                io: subject.generator_io.clone(),
                cpus: status_field(own, "Cpus_allowed_list:"),
            },
            broker: Broker::of(subject),
            machine: Machine::here(),
        }
    }
}

impl Broker {
    fn of(subject: &Subject) -> Self {
        let pid = subject.broker_pid;
        Self {
            address: subject.broker_address.clone(),
            pid,
            command: pid.and_then(command_line),
            version: pid.and_then(program_version),
            cpus: pid.and_then(|pid| status_field(pid, "Cpus_allowed_list:")),
            threads: pid.and_then(|pid| status_field(pid, "Threads:")?.parse().ok()),
        }
    }
}

impl Machine {
    /// The machine that this runs on.
    pub fn here() -> Self {
        let uname = rustix::system::uname();
        let word = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let kernel =
            [word(uname.sysname()), word(uname.release()), word(uname.machine())].join(" ");
        let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let load = line("/proc/loadavg");
        Self {
            kernel,
            system: value_of(&system, "PRETTY_NAME=").map(|name| name.trim_matches('"').into()),
            cpu_model: value_of(&cpu_info, "model name").map(str::to_owned),
            cpus: online_cpus(),
            threads_per_core: line("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
                .and_then(|list| cpu_count(&list)),
            memory_bytes: value_of(&memory, "MemTotal:")
                .and_then(|kib| kib.split_ascii_whitespace().next()?.parse::<u64>().ok())
                .map(|kib| kib * 1024),
            virtualisation: virtualisation(&cpu_info),
            governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            boost: boost(),
            mitigations: mitigations(Path::new("/sys/devices/system/cpu/vulnerabilities")),
            congestion_control: line("/proc/sys/net/ipv4/tcp_congestion_control"),
            clock_source: line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            isolated_cpus: line("/sys/devices/system/cpu/isolated"),
            load_average: load.map(|load| load.split(' ').take(3).collect::<Vec<_>>().join(" ")),
        }
    }
}

/// The first line of a file, when there is one with something on it.
fn line(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// What stands behind `name`, blanks and a colon at the start of a line.
fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let value = rest.trim_start().trim_start_matches(':').trim();
    (!value.is_empty()).then_some(value)
}

fn status_field(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    value_of(&status, name).map(str::to_owned)
}

fn command_line(pid: u32) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
    if bytes.is_empty() {
        return None;
    }
    Some(bytes.split(|b| *b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect())
}

/// How many CPUs a list such as `0-2,5` names.
fn cpu_count(list: &str) -> Option<u32> {
    let mut count = 0;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

fn online_cpus() -> u32 {
    line("/sys/devices/system/cpu/online")
        .and_then(|list| cpu_count(&list))
        .or_else(|| std::thread::available_parallelism().ok()?.get().try_into().ok())
        .unwrap_or(0)
}

fn boost() -> Option<bool> {
    let cpu = "/sys/devices/system/cpu";
    line(format!("{cpu}/cpufreq/boost"))
        .map(|boost| boost == "1")
        .or_else(|| line(format!("{cpu}/intel_pstate/no_turbo")).map(|off| off == "0"))
}

/// What can be told without root and without asking other programs.
fn virtualisation(cpu_info: &str) -> Option<String> {
    let container = ["/.dockerenv", "/run/.containerenv"].iter().any(|p| Path::new(p).exists());
    let machine = match line("/sys/hypervisor/type") {
        Some(hypervisor) => Some(hypervisor),
        None => {
            let names = ["sys_vendor", "product_name"]
                .map(|name| line(format!("/sys/class/dmi/id/{name}")).unwrap_or_default());
            let under = value_of(cpu_info, "flags")
                .map(|flags| flags.split_ascii_whitespace().any(|flag| flag == "hypervisor"));
            match under {
                Some(true) => Some(names.join(" ").trim().to_owned())
                    .filter(|name| !name.is_empty())
                    .map_or(Some("a hypervisor".to_owned()), |name| {
                        Some(format!("a hypervisor ({name})"))
                    }),
                Some(false) => None,
                // Not visible on this architecture.
                None => return container.then(|| "a container".to_owned()),
            }
        }
    };
    Some(match (machine, container) {
        (Some(machine), false) => machine,
        (Some(machine), true) => format!("{machine}, in a container"),
        (None, true) => "a container".to_owned(),
        (None, false) => "none".to_owned(),
    })
}

fn mitigations(folder: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            line(entry.path()).filter(|state| state != "Not affected").map(|state| (name, state))
        })
        .collect()
}

/// Brokers that print their version and end, and how to ask them.
const VERSION_FLAGS: &[(&str, &str)] = &[
    ("noctule", "--version"),
    ("mosquitto", "-h"),
    ("flashmq", "--version"),
    ("nats-server", "--version"),
    ("rumqttd", "--version"),
];

/// What the program of `pid` says of its version. Only programs of [`VERSION_FLAGS`] are run.
fn program_version(pid: u32) -> Option<String> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = exe.file_name()?.to_str()?;
    let (_, flag) = VERSION_FLAGS.iter().find(|(known, _)| *known == name)?;
    let output = std::process::Command::new(&exe)
        .arg(flag)
        .stdin(std::process::Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// A time since 1970 as `2026-11-21T11:30:00Z`.
pub fn rfc3339(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 0000-03-01, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_795_260_645, "2026-11-21T11:30:45Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn lists_of_cpus_are_counted() {
        assert_eq!(cpu_count("0-2,5\n"), Some(4));
        assert_eq!(cpu_count("3"), Some(1));
        assert_eq!(cpu_count("a"), None);
        assert_eq!(cpu_count("2-1"), None);
    }

    #[test]
    fn this_machine_and_a_process_are_described() {
        let subject = Subject {
            broker_address: "127.0.0.1:1883".into(),
            broker_pid: Some(std::process::id()),
            generator_io: "epoll".into(),
        };
        let environment = Environment::collect(&subject);
        assert!(environment.machine.kernel.starts_with("Linux "), "{environment:?}");
        assert!(environment.machine.cpus > 0 && environment.machine.memory_bytes > Some(1 << 20));
        assert_eq!(environment.broker.command, Some(environment.command.clone()));
        assert_eq!(environment.broker.version, None, "a program that is not known is not run");
        assert_eq!(environment.broker.cpus, environment.generator.cpus);
        let json = serde_json::to_string(&environment).unwrap();
        assert_eq!(serde_json::from_str::<Environment>(&json).unwrap(), environment);
    }

    #[test]
    fn a_broker_elsewhere_is_only_an_address() {
        let environment = Environment::collect(&Subject::default());
        assert_eq!((environment.broker.pid, environment.broker.command), (None, None));
    }
}
