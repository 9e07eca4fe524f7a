//! Tests of the configuration: the documented file, precedence, ranges.
#![forbid(unsafe_code)]

use super::*;
use clap::{Args as _, CommandFactory as _, FromArgMatches as _, Parser};

fn from_toml(text: &str) -> Settings {
    file::parse(text, Path::new("test.toml")).expect("parses")
}

fn from_flags(flags: &[&str]) -> Settings {
    let command = Settings::augment_args(clap::Command::new("test").no_binary_name(true));
    let matches = command.try_get_matches_from(flags).expect("valid flags");
    Settings::from_arg_matches(&matches).expect("settings")
}

fn refused(settings: Settings) -> String {
    resolve(settings).expect_err("must be refused").to_string()
}

#[test]
fn the_documented_file_says_the_defaults() {
    let documented = from_toml(DEFAULT_FILE);
    assert_ne!(documented, Settings::default());
    let defaults = resolve(Settings::default()).expect("the defaults hold");
    assert_eq!(resolve(documented).expect("it holds"), defaults);
}

/// Every flag has a key in the documented file, as a value or as a comment.
#[test]
fn the_documented_file_names_every_flag() {
    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        settings: Settings,
    }
    for arg in Command::command().get_arguments() {
        let key = match arg.get_id().as_str() {
            "help" => continue,
            "listen" => "address",
            other => other,
        };
        let named = DEFAULT_FILE
            .lines()
            .any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
        assert!(named, "{key} is not in noctule.toml");
        let env = arg.get_env().and_then(|env| env.to_str()).expect("every flag has a variable");
        assert!(env.starts_with("NOCTULE_"), "{env}");
    }
}

/// The help of each flag ends in its default, which is that of the documented file.
#[test]
fn the_help_says_the_defaults() {
    let file: toml::Table = DEFAULT_FILE.parse().expect("parses");
    let within = |section: &str, key: &str| file[section].get(key).cloned();
    let command = Settings::augment_args(clap::Command::new("test"));
    let mut said = 0;
    for arg in command.get_arguments() {
        let key = arg.get_id().as_str();
        let value = match key {
            "listen" => file["listener"][0].get("address").cloned(),
            _ => file
                .get(key)
                .cloned()
                .or(within("log", key))
                .or(within("limits", key))
                .or(within("capabilities", key))
                .or(within("referral", key))
                .or(within("durability", key)),
        };
        let help = arg.get_help().expect("every flag has a help text").to_string();
        let default = help.split_once("[default: ").map(|(_, default)| default);
        let expected = value.map(|value| match value {
            toml::Value::String(text) => format!("{text}]"),
            other => format!("{other}]"),
        });
        assert_eq!(default, expected.as_deref(), "{key}: {help}");
        said += usize::from(default.is_some());
    }
    assert!(said >= 20, "{said}");
}

#[test]
fn a_flag_wins_over_the_file_and_that_over_the_default() {
    let file = "shards = 3\nio = \"epoll\"\n[limits]\nqueue_len_max = 7\nreceive_maximum = 5\n";
    let flags = from_flags(&["--shards", "2", "--receive-maximum", "9", "--log-level", "warn"]);
    let config = resolve(flags.or(from_toml(file))).expect("holds");
    assert_eq!(config.shards, ShardCount::Exactly(2));
    assert_eq!(config.io, io::Choice::Epoll);
    assert_eq!((config.limits.queue_len_max, config.limits.receive_maximum), (7, 9));
    assert_eq!(config.limits.in_flight_max, limits::IN_FLIGHT_MAX);
    assert_eq!(config.log_level.0, "warn");
}

#[test]
fn listeners_given_by_flag_replace_those_of_the_file() {
    let file = "[[listener]]\naddress = \"127.0.0.1:1\"\n[[listener]]\naddress = \"[::1]:2\"\n";
    let ports = |settings| -> Vec<u16> {
        let config = resolve(settings).expect("holds");
        config.listeners.iter().map(|listener| listener.address.port()).collect()
    };
    assert_eq!(ports(from_toml(file)), [1, 2]);
    let flags = from_flags(&["--listen", "127.0.0.1:3", "--listen", "127.0.0.1:4,127.0.0.1:0"]);
    assert_eq!(ports(flags.or(from_toml(file))), [3, 4, 0]);
    assert_eq!(ports(Settings::default()), [1883]);
}

#[test]
fn strangers_are_let_in_only_when_said_so() {
    let open = ["--listen", "0.0.0.0:1883"];
    assert!(refused(from_flags(&open)).contains("--allow-anonymous"));
    for way in [&["--allow-anonymous"][..], &["--allow-anonymous=true"]] {
        assert!(resolve(from_flags(&[&open, way].concat())).is_ok());
    }
    let no = from_flags(&["--listen", "[::]:1883", "--allow-anonymous=false"]);
    refused(no.or(from_toml("allow_anonymous = true\n")));
    assert!(resolve(from_flags(&["--listen", "[::ffff:127.0.0.1]:1883"])).is_ok());
}

#[test]
fn spinning_is_bounded() {
    let config = resolve(from_flags(&["--spin-us", "50"])).expect("holds");
    assert_eq!(config.spin.as_micros(), 50);
    assert!(refused(from_toml("spin_us = 1001\n")).contains("spin_us is 1001"));
}

#[test]
fn limits_have_their_ranges() {
    for (line, words) in [
        ("packet_size_max = \"1GiB\"", "limits.packet_size_max is 1GiB"),
        ("packet_size_max = 10", "limits.packet_size_max is 10B"),
        ("outbox_bytes_max = \"1KiB\"", "limits.outbox_bytes_max"),
        ("connect_timeout = \"0s\"", "limits.connect_timeout"),
        ("connect_timeout = \"never\"", "limits.connect_timeout"),
        ("keep_alive_max = \"0s\"", "write never"),
        ("memory_budget = \"1MiB\"", "limits.memory_budget"),
    ] {
        let message = refused(from_toml(&format!("[limits]\n{line}\n")));
        assert!(message.contains(words), "{line}: {message}");
    }
    let text = "[limits]\nkeep_alive_max = \"2m\"\nsession_expiry_max = \"1h\"\n";
    let config = resolve(from_toml(text)).expect("holds");
    assert_eq!(config.limits.keep_alive_secs_max.map(u16::from), Some(120));
    assert_eq!(config.limits.session_expiry_secs_max, 3600);
    // Longer than any client can ask for, but not for ever.
    for (text, secs) in [("20h", Some(65_535)), ("never", None)] {
        let text = format!("[limits]\nkeep_alive_max = \"{text}\"\n");
        let limits = resolve(from_toml(&text)).expect("holds").limits;
        assert_eq!(limits.keep_alive_secs_max.map(u16::from), secs);
    }
}

/// Who wrote it is told where: file, line and column, or the flag and its variable.
#[test]
fn range_errors_name_their_place() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("n.toml");
    let text = "[log]\nlevel = \"info\"\n\n[limits]\n  packet_size_max = 10\n";
    std::fs::write(&path, text).expect("written");
    let load =
        |flags: &[&str], path| load(from_flags(flags), path).expect_err("refused").to_string();
    let message = load(&[], Some(path.as_path()));
    let place = format!("{}:5:3: limits.packet_size_max is 10B", path.display());
    assert!(message.starts_with(&place), "{message}");
    let flag = "--packet-size-max or NOCTULE_PACKET_SIZE_MAX: limits.packet_size_max is 11B";
    for path in [None, Some(path.as_path())] {
        let message = load(&["--packet-size-max=11"], path);
        assert!(message.starts_with(flag), "{message}");
    }
}

#[test]
fn capabilities_and_referral() {
    let text = "[capabilities]\nmaximum_qos = 1\nretain_available = false\n\
                response_information = \"r/{client_id}\"\n\
                [referral]\nserver_reference = \"b:1883\"\n";
    let flags = from_flags(&["--shared-subscriptions=false", "--refer-clients=permanently"]);
    let config = resolve(flags.or(from_toml(text))).expect("holds");
    let capabilities = &config.capabilities;
    assert_eq!(capabilities.maximum_qos, QoS::AtLeastOnce);
    assert!(!capabilities.retain_available && !capabilities.shared_subscriptions);
    assert!(capabilities.wildcard_subscriptions && capabilities.subscription_identifiers);
    assert_eq!(capabilities.response_information.as_deref(), Some("r/{client_id}"));
    let referral = Referral { server_reference: "b:1883".to_owned(), when: Refer::Permanently };
    assert_eq!(config.referral, Some(referral));

    for (text, words) in [
        ("[referral]\nrefer_clients = \"temporarily\"\n", "server_reference does not say"),
        ("[referral]\nserver_reference = \"\"\n", "has 0 bytes"),
        ("[referral]\nserver_reference = \"a\\u0000\"\n", "null character"),
        ("[limits]\ntopic_levels_max = 65537\n", "limits.topic_levels_max is 65537"),
        ("[limits]\nconnect_size_max = 10\n", "limits.connect_size_max is 10B"),
    ] {
        assert!(refused(from_toml(text)).contains(words), "{text}");
    }
    for (key, value) in [
        ("capabilities", "maximum_qos = 3"),
        ("capabilities", "response_information = \"r/#\""),
        ("capabilities", "response_information = \"r/{name}\""),
        ("referral", "refer_clients = \"now\""),
    ] {
        let text = format!("[{key}]\n{value}\n");
        assert!(file::parse(&text, Path::new("n.toml")).is_err(), "{text}");
    }
}

#[test]
fn one_address_is_one_listener() {
    let twice = from_flags(&["--listen", "127.0.0.1:1883,127.0.0.1:1883"]);
    assert!(refused(twice).contains("given twice"));
}

#[test]
fn data_is_kept_where_systemd_says() {
    let data = |given: &str| default_data(Some(OsString::from(given)));
    assert_eq!(default_data(None), Path::new("noctule-data"));
    assert_eq!(data(""), Path::new("noctule-data"));
    assert_eq!(data("/var/lib/noctule"), Path::new("/var/lib/noctule"));
    assert_eq!(data("/var/lib/a:/var/lib/b"), Path::new("/var/lib/a"));
}

#[test]
fn durability_of_all_of_listeners_and_of_topics() {
    use crate::broker::Level;
    assert_eq!(resolve(from_toml("")).expect("holds").durability.default, Level::Power);
    let text = "[durability]\ndefault = \"process\"\n\
                [[listener]]\naddress = \"1\"\n\
                [[listener]]\naddress = \"2\"\ndurability = \"none\"\n\
                [[rule]]\nfilter = \"a/#\"\ndurability = \"power\"\n";
    let durability = resolve(from_toml(text)).expect("holds").durability;
    assert_eq!(durability.default, Level::Process);
    assert_eq!(durability.listeners, [None, Some(Level::None)]);
    assert_eq!(durability.topics, [("a/#".into(), Level::Power)]);
    let flags = from_flags(&["--durability", "none", "--listen", "3"]);
    let durability = resolve(flags.or(from_toml(text))).expect("holds").durability;
    assert_eq!((durability.default, durability.listeners), (Level::None, vec![]));
}

#[test]
fn strategies_of_shared_subscriptions() {
    use crate::broker::strategy::{Rule, Strategy};
    assert_eq!(resolve(from_toml("")).expect("holds").shared_strategies.rules, []);
    let text = "shared_strategy = \"sticky\"\n[[shared]]\ngroup = \"a*\"\nstrategy = \"random\"\n";
    let strategies = resolve(from_toml(text)).expect("holds").shared_strategies;
    assert_eq!(strategies.default, Strategy::Sticky);
    assert_eq!(strategies.rules, [Rule { group: "a*".into(), strategy: Strategy::Random }]);
    let flags = from_flags(&["--shared-strategy", "least-in-flight"]);
    let strategies = resolve(flags.or(from_toml(text))).expect("holds").shared_strategies;
    assert_eq!((strategies.default, strategies.rules.len()), (Strategy::LeastInFlight, 1));
}
