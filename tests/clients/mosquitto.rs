//! mosquitto_pub and mosquitto_sub: libmosquitto, the C client, in all three versions.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};

/// By its name for `-V`.
pub const VERSIONS: [&str; 3] = ["mqttv31", "mqttv311", "mqttv5"];

/// How many seconds mosquitto_sub waits for messages before it gives up.
const WAIT: &str = "20";

/// One version against one broker.
pub struct Tools<'a> {
    pub addr: SocketAddr,
    pub version: &'a str,
}

/// A running mosquitto_sub whose subscription holds.
struct Subscriber {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Subscriber {
    /// The lines of the messages, once it ends by itself.
    fn lines(mut self) -> Vec<String> {
        let mut text = String::new();
        self.output.read_to_string(&mut text).expect("read from mosquitto_sub");
        let status = self.child.wait().expect("wait for mosquitto_sub");
        assert!(status.success(), "mosquitto_sub: {status}, having printed {text:?}");
        text.lines().filter(|line| line.starts_with("message ")).map(str::to_owned).collect()
    }

    /// Ends it without DISCONNECT.
    fn crash(mut self) {
        self.child.kill().expect("kill our own child");
        self.child.wait().expect("wait for our own child");
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Tools<'_> {
    fn command(&self, tool: &str, args: &[&str]) -> Command {
        // Into a pipe they would buffer the line that says that the subscription holds.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", tool]);
        command.args(["-h", &self.addr.ip().to_string(), "-p", &self.addr.port().to_string()]);
        command.args(["-V", self.version]).args(args).stdin(Stdio::null());
        command
    }

    fn publish(&self, args: &[&str]) {
        let out = self.command("mosquitto_pub", args).output().expect("run mosquitto_pub");
        assert!(out.status.success(), "mosquitto_pub {args:?}: {out:?}");
    }

    /// Starts mosquitto_sub and waits until it says that its subscription is acknowledged.
    fn subscribe(&self, args: &[&str]) -> Subscriber {
        let mut child = self
            .command("mosquitto_sub", &["-d", "-W", WAIT, "-F", "message %t %q %r %p"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("run mosquitto_sub");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut subscriber = Subscriber { child, output };
        let mut line = String::new();
        while !line.starts_with("Subscribed (mid") {
            line.clear();
            let read = subscriber.output.read_line(&mut line).expect("read from mosquitto_sub");
            assert!(read > 0, "mosquitto_sub {args:?} ended before its SUBACK");
        }
        subscriber
    }

    pub fn round_trips(&self, base: &str) {
        for qos in ["0", "1", "2"] {
            let topic = format!("{base}/{qos}");
            let subscriber = self.subscribe(&["-q", qos, "-t", &topic, "-C", "3"]);
            for payload in ["one", "two", "three"] {
                self.publish(&["-q", qos, "-t", &topic, "-m", payload]);
            }
            let want = ["one", "two", "three"].map(|p| format!("message {topic} {qos} 0 {p}"));
            assert_eq!(subscriber.lines(), want);
        }
    }

    pub fn retained(&self, base: &str) {
        let topic = format!("{base}/kept");
        self.publish(&["-q", "1", "-r", "-t", &topic, "-m", "kept"]);
        let filter = format!("{base}/+");
        let early = self.subscribe(&["-q", "1", "-t", &filter, "-C", "1"]);
        assert_eq!(early.lines(), [format!("message {topic} 1 1 kept")]);
        self.publish(&["-q", "1", "-r", "-n", "-t", &topic]);
        let late = self.subscribe(&["-q", "1", "-t", &filter, "-C", "1"]);
        self.publish(&["-q", "1", "-t", &format!("{base}/other"), "-m", "live"]);
        assert_eq!(late.lines(), [format!("message {base}/other 1 0 live")]);
    }

    pub fn will(&self, base: &str) {
        let topic = format!("{base}/will");
        let watcher = self.subscribe(&["-q", "1", "-t", &topic, "-C", "1"]);
        let will = ["--will-topic", &topic, "--will-payload", "crashed", "--will-qos", "1"];
        let other = ["-t", &format!("{base}/other")];
        // One that disconnects as it should has none.
        let polite = ["-t", &format!("{base}/other"), "-n"];
        self.publish(&[&will[..], &polite[..]].concat());
        self.subscribe(&[&will[..], &other[..]].concat()).crash();
        assert_eq!(watcher.lines(), [format!("message {topic} 1 0 crashed")]);
    }

    pub fn session(&self, base: &str) {
        let topic = format!("{base}/a");
        let id = format!("{}-kept", self.version);
        let mut persistent = vec!["-c", "-i", &id, "-q", "1", "-t", &topic];
        if self.version == "mqttv5" {
            persistent.extend(["-x", "600"]);
        }
        let subscriber = self.subscribe(&[&persistent[..], &["-E"]].concat());
        assert_eq!(subscriber.lines(), Vec::<String>::new());
        for payload in ["one", "two"] {
            self.publish(&["-q", "1", "-t", &topic, "-m", payload]);
        }
        // What waits may come before the SUBACK: this one is not to be waited for.
        let out = self
            .command("mosquitto_sub", &["-W", WAIT, "-C", "2", "-F", "%t %q %r %p"])
            .args(&persistent)
            .output()
            .expect("run mosquitto_sub");
        let want = format!("{topic} 1 0 one\n{topic} 1 0 two\n");
        assert_eq!(String::from_utf8_lossy(&out.stdout), want, "{out:?}");
    }
}
